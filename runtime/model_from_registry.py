"""A backbone as an `nn.Module`, for YAML configurations such as eva's."""

from collections.abc import Callable
from typing import Any

from runtime.errors import DependencyError
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
    `load_model`; the latter win. With an artifact behind it the module has no parameters and moves with its input.

    Args:
        model_name: Registry name.
        model_kwargs: Keywords of `load_model`, such as `{"out_indices": 2, "backend": "onnx"}`.
        model_extra_kwargs: More of them.
        transforms: Applied to the output.
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
        self.backbone = load_model(model_name, {**(model_kwargs or {}), **(model_extra_kwargs or {})})
        self.eval()

    def forward(self, tensor: Tensor) -> Any:
        """Return the embedding [B, D] or the list of feature maps, on the device of `tensor`."""
        output = self.backbone(tensor)
        return output if self.transforms is None else self.transforms(output)
