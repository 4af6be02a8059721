"""Building an architecture of timm, and what is known of it without importing timm."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime import registry
from runtime.builders import Adapt
from runtime.errors import RegistrationError, UnknownModelError
from runtime.facts import HubFile, Preprocessing

if TYPE_CHECKING:
    from torch import nn

    from runtime.backbones.timm_vit import ImageSize
    from runtime.out_indices import OutIndices
    from runtime.weights import Weights


@dataclass(frozen=True, eq=False)
class TimmBuilder:
    """Builds a timm architecture."""

    name: str
    architecture: str
    arguments: Mapping[str, Any]
    adapt: Adapt | None

    def __call__(
        self, weights: "Weights", out_indices: "OutIndices" = None, image_size: "ImageSize" = 224
    ) -> "nn.Module":
        """Return the embedding [B, D], or feature maps [B, C, h, w]; see `timm_vit`."""
        from runtime.backbones.timm_vit import timm_vit

        self._check_architecture()
        return timm_vit(self.architecture, weights, out_indices, image_size, adapt=self.adapt, **self.arguments)

    def _check_architecture(self) -> None:
        import difflib

        import timm

        bare = self.architecture.partition(".")[0]
        if bare not in (known := timm.list_models()):
            near = ", ".join(difflib.get_close_matches(bare, known, n=3, cutoff=0.6)) or "none"
            raise RegistrationError(
                f"{self.name!r}: timm {timm.__version__} has no architecture {bare!r}. Nearest: {near}. "
                "See timm.list_models()."
            )
        if "dynamic_img_size" not in _vit_parameters(bare):
            raise RegistrationError(
                f"{self.name!r}: {bare!r} is no Vision Transformer of timm. Build it in a function of your own and "
                "register that, with register_model or wrappers.function."
            )


def _vit_parameters(architecture: str) -> tuple[str, ...]:
    """Return the constructor's parameters where timm builds `architecture` as a VisionTransformer; none elsewhere."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    of = timm.models.model_entrypoint(architecture).__module__.rpartition(".")[2]
    return tuple(inspect.signature(VisionTransformer).parameters) if of in ("vision_transformer", "deit") else ()


def published_facts(architecture: str, *, own_weights: bool) -> dict[str, Any]:
    """Return the facts of timm's own `architecture`; its licence and source only where its weights are meant."""
    of_weights = ("source", "licence") if own_weights else ()
    try:
        known = registry.find(f"timm/{architecture}")
    except UnknownModelError:
        return _named(architecture, own_weights=own_weights)
    return {fact: getattr(known, fact) for fact in ("preprocessing", "depth", "patch_size", *of_weights)}


def _named(architecture: str, *, own_weights: bool) -> dict[str, Any]:
    """Return what the name itself says: `vit_small_patch16_224.dino` has patches of 16 and sides of 224 pixels."""
    bare, _, tag = architecture.partition(".")
    found: dict[str, Any] = {}
    if patch := re.search(r"patch(\d+)", bare):
        found["patch_size"] = int(patch[1])
    if size := re.search(r"_(\d{2,4})$", bare):
        found["preprocessing"] = Preprocessing(size=int(size[1]))
    if own_weights and tag:
        found["source"] = HubFile(f"timm/{architecture}")
    return found
