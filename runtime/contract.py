"""Which images a backbone takes, and what is wrong with others. Pure: no pixel is looked at."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.spec import BackboneSpec


@dataclass(frozen=True)
class Contract:
    """What one loaded backbone takes.

    Attributes:
        spec: The backbone.
        size: Sides in pixels, or `dynamic`.
        input: `float32`, normalised images [B, C, H, W], or `uint8`, pictures [B, H, W, C].
    """

    spec: BackboneSpec
    size: tuple[int, ...] | str
    input: str = "float32"

    def check(self, images: Any, is_tensor: bool, device: str) -> None:
        """Raise unless `images` can be served on `device`.

        Raises:
            InputError: Wrong type, dtype, byte order, rank, channels or size, an empty batch, or another GPU's memory.
        """
        if not is_tensor and not isinstance(images, np.ndarray):
            raise InputError(
                f"{self.spec.name} takes a numpy array or torch tensor, not {type(images).__name__}. "
                "For pictures: model(model.preprocess(images))."
            )
        if is_tensor and (empty := _without_values(images)):
            raise InputError(f"{self.spec.name} takes {self}; got {empty}")
        dtype = str(images.dtype).removeprefix("torch.")
        problem = self.problem(dtype, tuple(images.shape))
        if problem:
            raise InputError(f"{self.spec.name} takes {self}; got {dtype} {list(images.shape)}: {problem}")
        if is_tensor and images.device.type != "cpu" and str(images.device) != device:
            where = "images.cpu()" if device == "cpu" else f"images.to({device!r})"
            raise InputError(
                f"{self.spec.name} runs on {device}; got images on {images.device}. Give it {where}, or load it with "
                f"device={str(images.device)!r}."
            )

    def problem(self, dtype: str, shape: tuple[int, ...]) -> str | None:
        """Return what is wrong with images of this dtype (as numpy spells it) and shape, or `None`."""
        facts = self.spec.preprocessing
        if wrong := self._wrong_dtype(dtype):
            return wrong
        if len(shape) != facts.spatial_dims + 2:
            count = {2: "four", 3: "five"}[facts.spatial_dims]
            return f"a batch has {count} dimensions; images[None] makes one image a batch."
        if shape[0] == 0:
            return "the batch is empty."
        place, axis = ("second", 1) if self.input == "float32" else ("last", -1)
        if shape[axis] != facts.channels:
            return f"the {place} dimension is the channels, {facts.channels}."
        return self._wrong_size(shape[2:] if self.input == "float32" else shape[1:-1])

    def _wrong_dtype(self, dtype: str) -> str | None:
        if dtype == self.input:
            return None
        if dtype[0] in "<>" and np.dtype(dtype).newbyteorder("=") == self.input:
            return f"its bytes are in another machine's order; images.astype({self.input!r}) turns them round."
        if self.input == "uint8":
            return "it was loaded with input='uint8', which normalises inside; load it with input='float32'."
        if dtype == "uint8":
            return "pictures go through model.preprocess(images) first, or load it with input='uint8'."
        return "convert it to float32."

    def _wrong_size(self, sides: tuple[int, ...]) -> str | None:
        if self.size == "dynamic":
            wrong = any(side == 0 or side % self.spec.patch_size for side in sides)
            return "both sides must be multiples of the patch." if wrong else None
        if sides == self.size:
            return None
        given = sides[0] if len(set(sides)) == 1 else sides
        dynamic = " or image_size='dynamic'" if len(sides) == 2 else ""
        return f"load it with image_size={given}{dynamic} for other sizes."

    def __str__(self) -> str:
        facts = self.spec.preprocessing
        order = f"{facts.channels}, {facts.axes}" if self.input == "float32" else f"{facts.axes}, {facts.channels}"
        patches = f"multiples of {self.spec.patch_size}"
        sides = patches if isinstance(self.size, str) else ", ".join(map(str, self.size))
        return f"{self.input} [B, {order}] with {facts.axes} = {sides}"


def _without_values(tensor: Any) -> str | None:
    """Return what is wrong with a torch tensor whose values do not lie in memory one by one, or `None`."""
    if tensor.device.type == "meta":
        return "a tensor on the meta device, which has a shape and no values. Give it images that were computed."
    layout = str(tensor.layout).removeprefix("torch.")
    if layout != "strided":
        return f"a tensor of layout {layout}. Give it a dense batch, such as images.to_dense()."
    return None
