"""The images that a build measures with: those it verifies on, and those it calibrates int8 on."""

from dataclasses import dataclass

from exporters.int8.calibration import DYNAMIC, bundled_calibration, load_calibration
from exporters.reference import image_sizes
from exporters.verify import Batch, verification_inputs
from runtime.errors import BuildError
from runtime.facts import Preprocessing
from runtime.request import Request


@dataclass(frozen=True)
class Images:
    """Where a variant's images come from.

    Attributes:
        request: What is built.
        folder: Of calibration images; `None` for the bundled tissue, `none` for ranges taken from each batch.
    """

    request: Request
    folder: str | None = None

    @property
    def facts(self) -> Preprocessing:
        """How an image becomes model input."""
        return self.request.spec.preprocessing

    @property
    def dynamic(self) -> bool:
        """Whether height and width vary."""
        return self.request.size == "dynamic"

    def verification(self) -> list[Batch]:
        """Return the batches that artifacts are verified on, float32 [B, C, H, W]."""
        return verification_inputs(self.facts, image_sizes(self.request))

    def calibration(self) -> list[Batch] | None:
        """Return the images that ranges of int8 are measured on, float32 [B, C, H, W]; `None` for dynamic ranges.

        Raises:
            BuildError: The folder holds no images, or the backbone takes volumes.
        """
        if self.folder == DYNAMIC:
            return None
        size = image_sizes(self.request)[0]
        if len(size) != 2:
            raise BuildError(
                f"--precision int8 calibrates on pictures, and {self.request.spec.name!r} takes volumes. "
                "Build it in fp32."
            )
        if self.folder is None:
            return bundled_calibration(self.facts, size)
        return load_calibration(self.folder, self.facts, size)
