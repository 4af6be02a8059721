"""Which backbones exist. Standard library only: listing never imports torch."""

import difflib
import fnmatch
import importlib.metadata
import re
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from runtime.errors import PluginWarning, RegistrationError, UnknownModelError
from runtime.spec import BackboneSpec, Family

ENTRY_POINT_GROUP = "backbones"

# A name is a folder of the store, too: it must not lead out of it, nor be a hidden one.
_NAME = re.compile(r"\w[^/\\]*(/\w[^/\\]*)*")

Builder = TypeVar("Builder", bound=Callable[..., Any])


_families: dict[str, Family] = {}
_specs: dict[str, BackboneSpec] = {}
_aliases: dict[str, str] = {}
_lock = threading.RLock()
_plugins_loaded = False


def register_model(name: str, **facts: Any) -> Callable[[Builder], Builder]:
    """Register the decorated function as backbone `name`; the function itself is returned untouched.

    The function returns a `torch.nn.Module` that maps a float32 image batch [B, C, H, W] to an embedding [B, D], or
    to a list of feature maps [B, C, h, w] when it takes `out_indices` and is given one. It may also take
    `image_size` and `weights`; `load_model` fills them in. Any further parameter becomes an option of `load_model`.

    Args:
        name: Registry name, such as `my/model`.
        **facts: Optional fields of `BackboneSpec` (`preprocessing`, `licence`, `depth`, ...).

    Raises:
        RegistrationError: The name or an alias is taken or not well formed, or a fact is unknown.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RegistrationError(f"{name!r} is no name for a backbone. Write @register_model('my/name').")
    if isinstance(facts.get("aliases"), str):
        raise RegistrationError(f"aliases={facts['aliases']!r} must be a tuple of names, even of one.")
    allowed = [f for f in BackboneSpec.__dataclass_fields__ if f not in ("name", "build")]
    unknown = sorted(set(facts) - set(allowed))
    if unknown:
        raise RegistrationError(
            f"register_model({name!r}) got {', '.join(unknown)}. Declared facts are: {', '.join(allowed)}."
        )

    def register(build: Builder) -> Builder:
        _add(BackboneSpec(name=name, build=build, **facts))
        return build

    return register


def _add(spec: BackboneSpec) -> None:
    with _lock:
        for key in (spec.name, *spec.aliases):
            if key in _specs or key in _aliases:
                taken = _specs[_aliases.get(key, key)].build
                raise RegistrationError(
                    f"A backbone is already registered as {key!r} (by {taken.__module__}.{taken.__qualname__}). "
                    "Choose another name."
                )
        _specs[spec.name] = spec
        _aliases.update(dict.fromkeys(spec.aliases, spec.name))


def register_family(family: Family) -> None:
    """Register all names that start with `family.prefix`; single names of `register_model` come before them.

    Raises:
        RegistrationError: The prefix is taken.
    """
    with _lock:
        if family.prefix in _families:
            raise RegistrationError(f"A family is already registered for names that start with {family.prefix!r}.")
        _families[family.prefix] = family


def find(name: str) -> BackboneSpec:
    """Return the backbone registered as `name`, or under that former name, or by a family.

    Raises:
        UnknownModelError: With the nearest names.
    """
    _load_builtin()
    if (spec := _lookup(name)) is None:
        _load_plugins()  # only now: looking through every installed package takes time
        spec = _lookup(name)
    if spec is None:
        raise UnknownModelError(_unknown(name))
    return spec


def _lookup(name: str) -> BackboneSpec | None:
    spec = _specs.get(_aliases.get(name, name))
    family = _family(name)
    return family.resolve(name) if spec is None and family else spec


def _family(name: str) -> Family | None:
    return next((family for prefix, family in _families.items() if str(name).startswith(prefix)), None)


def _unknown(name: str) -> str:
    family = _family(name)
    known = [*_aliases, *_specs, *(family.names(name) if family else ())]
    tail = {full.rsplit("/", 1)[-1]: full for full in known}
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    close += [tail[t] for t in difflib.get_close_matches(str(name).rsplit("/", 1)[-1], tail, n=3, cutoff=0.6)]
    nearest = list(dict.fromkeys(_aliases.get(n, n) for n in close))[:3]
    hint = f"Nearest: {', '.join(nearest)}. " if nearest else ""
    start, word = family.prefix if family else "", str(name).rsplit("/", 1)[-1].split("_")[0]
    return f"No backbone is registered as {name!r}. {hint}See list_models({f'{start}*{word}*'!r}) or list_models()."


def list_models(pattern: str | Iterable[str] = "*") -> list[str]:
    """Return the registered names that match a glob such as `pathology/*` (or any of several), sorted.

    The names of a family are listed when the glob starts with its prefix: `timm/resnet*`. Pretrained tags of timm are
    listed when it also has a dot: `timm/resnet50.*`.
    """
    _load_builtin()
    _load_plugins()
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    return sorted({name for p in patterns for name in _candidates(p) if fnmatch.fnmatchcase(name, p)})


def _candidates(pattern: str) -> Iterable[str]:
    family = _family(pattern)
    return [*_specs, *family.names(pattern)] if family else _specs


def _load_builtin() -> None:
    import runtime.backbones  # noqa: F401  (registers on import)


def _load_plugins() -> None:
    """Register the backbones of installed packages, once."""
    global _plugins_loaded
    with _lock:
        if _plugins_loaded:
            return
        _plugins_loaded = True
        for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            _load_plugin(entry)


def _load_plugin(entry: importlib.metadata.EntryPoint) -> None:
    try:
        entry.load()
    except Exception as error:  # a broken plugin must not take the others down
        warnings.warn(
            f"Backbones of the installed plugin {entry.name!r} ({entry.value}) are not available: "
            f"{type(error).__name__}: {error}",
            PluginWarning,
            stacklevel=4,
        )


class BackboneModelRegistry:
    """The registry under the name that eva's users know; the functions of this package do the work."""

    @staticmethod
    def list_models(pattern: str | Iterable[str] = "*") -> list[str]:
        """See `runtime.list_models`."""
        return list_models(pattern)

    @staticmethod
    def load_model(model_name: str, model_kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        """See `runtime.load_model`."""
        from runtime.load import load_model

        return load_model(model_name, model_kwargs, **options)

    @staticmethod
    def register(name: str, **facts: Any) -> Callable[[Builder], Builder]:
        """See `runtime.register_model`."""
        return register_model(name, **facts)

    @staticmethod
    def get(name: str) -> Callable[..., Any]:
        """Return the function registered as `name`."""
        return find(name).build
