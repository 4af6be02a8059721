"""A backbone as an `nn.Module`, for YAML configurations such as eva's."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from runtime.errors import DependencyError, OptionError
from runtime.load import load_model

try:
    from torch import Tensor, nn
except ImportError as error:
    raise DependencyError(
        "ModelFromRegistry is a torch.nn.Module, and torch is not installed: pip install 'backbone-runtime[eager]'. "
        "load_model serves ONNX artifacts without it."
    ) from error


class ModelFromRegistry(nn.Module):
    """The backbone registered as `model_name`, as a module: images [B, C, H, W] to an embedding or a list of maps.

    The arguments are those of eva's class of the same name. `model_kwargs` and `model_extra_kwargs` are keywords of
    `load_model`; the latter win. Whatever serves, the module has no parameters and an empty state: it is frozen, always
    in eval mode inside, and moves with its input. A pickle opens a session of its own where it is loaded; a deep copy
    shares this one's.

    Args:
        model_name: Registry name.
        model_kwargs: Keywords of `load_model`, such as `{"out_indices": 2, "backend": "onnx"}`.
        model_extra_kwargs: More of them.
        transforms: Applied to the output.

    Attributes:
        backbone: The `Backbone` that serves, with its `backend`, `device` and `info`.

    Raises:
        OptionError: Keywords that are no dict, or one that neither load_model nor the backbone knows.
        BackboneError: See `load_model`.
    """

    def __init__(
        self,
        model_name: str,
        model_kwargs: dict[str, Any] | None = None,
        model_extra_kwargs: dict[str, Any] | None = None,
        transforms: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.model_name = model_name
        self.transforms = transforms
        given = {"model_kwargs": model_kwargs, "model_extra_kwargs": model_extra_kwargs}
        self.backbone = load_model(model_name, _merged(given))
        self.eval()

    def forward(self, tensor: Tensor) -> Any:
        """Return the embedding [B, D] or the list of feature maps, on the device of `tensor`, without gradients.

        Raises:
            InputError: The backbone does not take such a tensor; under a trainer of half precision it is not float32.
        """
        output = self.backbone(tensor)
        return output if self.transforms is None else self.transforms(output)

    def extra_repr(self) -> str:
        """Return what serves, for the module's repr."""
        return repr(self.backbone)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelFromRegistry":
        # eva copies its model for every run. A backbone holds nothing that a call changes, and a giant's session takes
        # half a minute and gigabytes.
        memo[id(self.backbone)] = self.backbone
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


def _merged(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of all that was given under these names, the last winning."""
    merged: dict[str, Any] = {}
    for name, keywords in given.items():
        if not isinstance(keywords, Mapping | None):
            raise OptionError(
                f"{name}={keywords!r} must be a dict of load_model's keywords. In YAML: {name}: {{backend: onnx}}."
            )
        merged |= keywords or {}
    return merged
