"""Everything that can go wrong, as one tree.

::

    BackboneError
    ├── UnknownModelError        (ValueError)    the name is not registered
    ├── RegistrationError        (ValueError)    a registration that cannot stand
    ├── OptionError              (TypeError)     an unknown keyword, or one that does not fit the backbone
    ├── OutIndicesError          (ValueError)    out_indices is 0, out of range or of the wrong type
    ├── InputError               (ValueError)    images of the wrong type, rank, channels or size; no images at all
    │   └── UnreadableImageError                 one image of many is corrupt, cut, empty, too large or no image
    ├── DependencyError          (ImportError)   a package is missing, or two of them exclude each other
    ├── DeviceError              (RuntimeError)  the device asked for does not start
    ├── ClosedError              (RuntimeError)  a backbone was called after close()
    ├── WeightsError             (RuntimeError)  a source is gated, unreachable, damaged or does not fit
    ├── ArtifactError            (RuntimeError)
    │   ├── ArtifactNotFoundError                nothing was built for what was asked
    │   ├── ArtifactCorruptError                 a published file is missing, cut, altered or out of place
    │   ├── ManifestError                        a manifest is invalid or from a newer release
    │   ├── StoreError                           the artifacts folder cannot be written
    │   ├── HubError                             a shared repository is unreachable, unknown, gated or refuses
    │   ├── RedistributionError                  a licence or its publisher forbids sharing an artifact in public
    │   └── RepositoryError                      a model repository holds another model, or cannot be written
    ├── OutputError              (RuntimeError)  a folder of embeddings holds something else or cannot be written
    ├── ClusterError             (RuntimeError)  Ray does not answer, has no room, or lost what it was working on
    └── BuildError               (RuntimeError)
        ├── ExportError                          the exporter did not give a usable graph
        └── VerificationError                    the artifact's numbers are not the eager backbone's

    BackendFallbackWarning       (UserWarning)   something slower than what was asked for is serving
    PrecisionWarning             (UserWarning)   numbers may be worse on this CPU than where they were verified
    PluginWarning                (UserWarning)   an installed backbone plugin could not be imported

A message says what was asked, why it cannot be had, what exists, and what to do next.
"""


class BackboneError(Exception):
    """Base of every error this project raises on purpose."""


class UnknownModelError(BackboneError, ValueError):
    """No backbone is registered under the name."""


class RegistrationError(BackboneError, ValueError):
    """A backbone cannot be registered as declared."""


class OptionError(BackboneError, TypeError):
    """A keyword is unknown, given twice, or does not fit the backbone."""


class OutIndicesError(BackboneError, ValueError):
    """The feature maps asked for do not exist."""


class InputError(BackboneError, ValueError):
    """Images that the backbone cannot take, or a place where none are."""


class UnreadableImageError(InputError):
    """One image cannot be decoded; the message is the reason. The others of its input can still be embedded."""


class DependencyError(BackboneError, ImportError):
    """A package is missing, or two installed packages exclude each other."""


class DeviceError(BackboneError, RuntimeError):
    """The device or provider asked for does not start."""


class ClosedError(BackboneError, RuntimeError):
    """The backbone was closed."""


class WeightsError(BackboneError, RuntimeError):
    """Pretrained weights cannot be had, or do not fit the architecture."""


class ArtifactError(BackboneError, RuntimeError):
    """Base of what can be wrong with built artifacts."""


class ArtifactNotFoundError(ArtifactError):
    """Nothing was built for what was asked."""


class ArtifactCorruptError(ArtifactError):
    """A published file is missing, cut short, altered or out of place."""


class ManifestError(ArtifactError):
    """A manifest cannot be read: invalid, or written by a newer release."""


class StoreError(ArtifactError):
    """The artifacts folder cannot be written."""


class HubError(ArtifactError):
    """A repository of shared artifacts is unreachable, unknown, gated, or refuses what was asked of it."""


class RedistributionError(ArtifactError):
    """Artifacts of gated or restricted weights would become public."""


class RepositoryError(ArtifactError):
    """A server's model repository holds another model under the name, or cannot be written."""


class OutputError(BackboneError, RuntimeError):
    """A folder of embeddings cannot be written: it holds something else, another run writes to it, the disk is full."""


class ClusterError(BackboneError, RuntimeError):
    """A Ray cluster does not answer, has no room for what was asked, or failed at its work more than once too often."""


class BuildError(BackboneError, RuntimeError):
    """Base of what can go wrong while building an artifact."""


class ExportError(BuildError):
    """The exporter did not give a usable graph."""


class VerificationError(BuildError):
    """The artifact's numbers differ from the eager backbone's by more than the limit."""


class BackendFallbackWarning(UserWarning):
    """Something slower than what was asked for is serving; the message says why and how to mend it."""


class PrecisionWarning(UserWarning):
    """Numbers may be worse on this machine than where they were verified."""


class PluginWarning(UserWarning):
    """An installed package offers backbones but could not be imported."""
