"""From a published artifact back to the request it answers. Standard library only."""

import json
import os
from typing import Any

from runtime.errors import ArtifactError
from runtime.manifest import ArtifactKey
from runtime.request import Request, make_request
from runtime.spec import BackboneSpec


def request_of(
    spec: BackboneSpec,
    key: ArtifactKey,
    *,
    artifacts: str | None = None,
    device: str | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
) -> Request:
    """Return the request that an artifact of `spec` with this key answers; what the backbone does anyway is left out.

    Args:
        spec: The backbone, as it is registered now.
        key: The artifact's.
        artifacts: Folder of artifacts to put into the request.
        device: Device to put into the request.
        checkpoint_path: The file that an artifact of a local checkpoint was built from.

    Raises:
        ArtifactError: No request leads to the artifact: the backbone was registered otherwise when it was built, or the
            checkpoint is another one.
        OptionError: The backbone no longer has one of its options.
    """
    kind, _, detail = key.weights.partition(":")
    given: dict[str, Any] = {
        "out_indices": key.out_indices,
        "precision": key.precision,
        "input": key.input,
        "artifacts": artifacts,
        "device": device,
    }
    if kind == "random":
        given |= {"weights": "random", "seed": int(detail)}
    if kind == "checkpoint":
        given |= {"weights": key.weights} if checkpoint_path is None else {"checkpoint_path": checkpoint_path}
    options = {name: json.loads(value) for name, value in key.options}
    request = make_request(spec, options, given)
    if request.size != key.image_size:
        request = make_request(spec, options, given | {"image_size": key.image_size})
    if (now := request.key(key.form)) != key:
        raise ArtifactError(
            f"{spec.name!r} as it is registered here answers to {now.describe()}; published is {key.describe()}. "
            "Nobody can load that any more: build it again, and remove it with python -m exporters.prune."
        )
    return request
