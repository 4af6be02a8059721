"""Vision backbones by registered name, served from verified artifacts or from eager PyTorch.

>>> from runtime import list_models
>>> list_models("universal/*_random")
['universal/vit_small_patch16_224_random', 'universal/vit_tiny_patch16_224_random']
"""

from typing import TYPE_CHECKING, Any

from runtime import errors
from runtime.facts import HubFile, LibraryInit, LocalFile, Preprocessing, Url
from runtime.registry import BackboneModelRegistry, list_models, register_model

if TYPE_CHECKING:
    from runtime import wrappers
    from runtime.backbone import Backbone
    from runtime.embedding.run import embed
    from runtime.load import load_model
    from runtime.model_from_registry import ModelFromRegistry
    from runtime.sharing.pulling import pull

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "BackboneModelRegistry",
    "HubFile",
    "LibraryInit",
    "LocalFile",
    "ModelFromRegistry",
    "Preprocessing",
    "Url",
    "embed",
    "errors",
    "list_models",
    "load_model",
    "pull",
    "register_model",
    "wrappers",
]

# Loaded on first use: numpy is not needed to list names, torch only for ModelFromRegistry.
_LAZY = {
    "Backbone": "runtime.backbone",
    "embed": "runtime.embedding.run",
    "load_model": "runtime.load",
    "ModelFromRegistry": "runtime.model_from_registry",
    "pull": "runtime.sharing.pulling",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY and name != "wrappers":
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    import importlib

    if name == "wrappers":
        return importlib.import_module("runtime.wrappers")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
