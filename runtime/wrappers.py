"""Your own backbone from a usual source, in one line each: timm, transformers, torch.hub, a function, a checkpoint.

>>> from runtime import LocalFile, wrappers
>>> wrappers.timm("my/doc_vit", "vit_small_patch16_224", source=LocalFile("my_vit.safetensors"), depth=12)

Each call registers one backbone, as `register_model` does; further keywords are facts of `BackboneSpec`
(`preprocessing=`, `licence=`, `depth=`, ...). Nothing is imported, read or downloaded until the backbone is loaded,
except a local transformers folder's JSON files. See docs/own_backbones.md.
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from runtime import registry
from runtime.builders import Adapt, CheckpointBuilder, FunctionBuilder
from runtime.errors import RegistrationError
from runtime.facts import HubFile, Source, TorchHub
from runtime.pretrained_folder import described
from runtime.timm_builder import TimmBuilder, published_facts
from runtime.torch_hub_builder import TorchHubBuilder
from runtime.transformers_builder import TransformersBuilder, TransformersOutput

_DECIDED = ("out_indices", "features_only", "pretrained", "checkpoint_path")
_GITHUB = re.compile(r"[\w.-]+/[\w.-]+(?::(?P<ref>[\w./-]+))?")


def timm(
    name: str,
    architecture: str,
    *,
    source: Source | None = None,
    arguments: Mapping[str, Any] | None = None,
    adapt: Adapt | None = None,
    **facts: Any,
) -> None:
    """Register a timm architecture: [B, 3, H, W] to its pooled embedding [B, D], or to maps [B, C, h, w].

    Args:
        name: Registry name, such as `my/vit`.
        architecture: timm's name. One with a tag (`vit_small_patch16_224.dino`) names timm's own weights, too.
        source: Your checkpoint instead: `HubFile`, `Url` or `LocalFile`; `LibraryInit` for none.
        arguments: Further arguments of `timm.create_model`, such as `{"reg_tokens": 4}`.
        adapt: `adapt(tensors, module)` renames the tensors of a checkpoint that spells them differently.
        **facts: See `register_model`. The image size and the patch are read off the architecture's name where it has
            them; without `preprocessing`, images are scaled to [0, 1] and not normalised.

    Raises:
        RegistrationError: Nothing says which weights, or `arguments` hold what `load_model` decides.
    """
    _undecided(name, arguments)
    inherited = published_facts(architecture, own_weights=source is None)
    if source is None and (source := inherited.pop("source", None)) is None:
        raise RegistrationError(
            f"{name!r}: nothing says which weights {architecture!r} has. Name timm's own by their tag "
            f"('{architecture}.<tag>'), or pass source=HubFile(...), Url(...), LocalFile(...) or LibraryInit()."
        )
    _register(
        name,
        TimmBuilder(name, architecture, dict(arguments or {}), adapt),
        {"extra": "eager"} | inherited | facts,
        source,
    )


def transformers(
    name: str,
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    source: Source | None = None,
    output: TransformersOutput = "cls",
    arguments: Mapping[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Register a vision model of the transformers library, by hub name or by the folder of `save_pretrained`.

    The repository's own code is never executed: the architecture must be one that transformers ships.

    Args:
        name: Registry name, such as `my/dino`.
        model: `owner/repository` on the Hugging Face hub, or a folder (a `Path`, or a string with a leading `/`, `.`
            or `~`). Its `config.json` is needed under random weights, too.
        revision: Commit, tag or branch on the hub.
        source: Another checkpoint for the same configuration.
        output: `cls` for the CLS token after the final norm, `pooler` for the model's `pooler_output`.
        arguments: Fields of the configuration to override.
        **facts: See `register_model`. For a folder, preprocessing, depth and patch size are read off its JSON files.

    Raises:
        RegistrationError: The folder holds no configuration, or `model` is neither.
    """
    local = _is_folder(model)
    where = str(Path(model).expanduser().absolute()) if local else str(model)
    if not local and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", where):
        raise RegistrationError(f"{name!r}: {where!r} is neither a repository of the hub (owner/name) nor a folder.")
    inherited, published = described(name, Path(where)) if local else ({}, HubFile(where, revision=revision))
    builder = TransformersBuilder(name, where, local, revision, output, dict(arguments or {}))
    _register(name, builder, {"extra": "transformers"} | inherited | facts, source or published)


def torch_hub(
    name: str,
    repository: str | os.PathLike[str],
    entry: str,
    *,
    source: Source | None = None,
    arguments: Mapping[str, Any] | None = None,
    pretrained: str | None = "pretrained",
    adapt: Adapt | None = None,
    **facts: Any,
) -> None:
    """Register an entry of a torch.hub repository, which must return a module: [B, 3, H, W] to [B, D].

    Loading it RUNS THE REPOSITORY'S CODE on your machine, with your rights, without a question: registering it is your
    word that you trust that code. The ref is therefore not optional; a full commit hash is the only one that
    nobody can move.

    Args:
        name: Registry name, such as `my/hub`.
        repository: `owner/repo:ref` on GitHub, or a folder with a `hubconf.py` (a `Path`, or a string with a leading
            `/`, `.` or `~`).
        entry: Function of its `hubconf.py`.
        source: Your checkpoint instead of what the entry loads itself.
        arguments: Arguments of the entry.
        pretrained: The entry's flag for its own weights: `True` is passed for them, `False` for random weights and
            for `source`. `None` for an entry without one.
        adapt: `adapt(tensors, module)` renames the tensors of `source`.
        **facts: See `register_model`.

    Raises:
        RegistrationError: The repository has no ref, or is no repository.
    """
    local = _is_folder(repository)
    where = str(Path(repository).expanduser().absolute()) if local else str(repository)
    found = _GITHUB.fullmatch(where)
    if not local and (found is None or found["ref"] is None):
        raise RegistrationError(
            f"{name!r}: {where!r} does not say which state of the repository. Its code runs on your machine: "
            "pin it as 'owner/repo:<tag or commit>'. A folder is written with a leading /, . or ~."
        )
    hub = TorchHub(where, entry, local)
    _register(name, TorchHubBuilder(name, hub, dict(arguments or {}), pretrained, adapt), facts, source or hub)


def function(
    name: str,
    path: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    source: Source | None = None,
    adapt: Adapt | None = None,
    **facts: Any,
) -> None:
    """Register any function or class that returns a module: images [B, C, H, W] or volumes [B, C, D, H, W] to [B, D].

    Its parameters `out_indices` (with `features_only`, where it has that, too) and `image_size` are filled in as for
    `register_model`; those not in `arguments` become options of `load_model`. They are read off its source file, so
    that an artifact of it is served without importing it.

    Args:
        name: Registry name, such as `my/fn`.
        path: `package.module:function`, or `package.module.function`.
        arguments: Arguments that are always passed.
        source: Checkpoint to load strictly into the module; `None` when the function loads its own weights.
        adapt: `adapt(tensors, module)` renames the checkpoint's tensors; by default a `state_dict` or `model` entry
            of the checkpoint is taken.
        **facts: See `register_model`.

    Raises:
        RegistrationError: `path` is no dotted path, or `arguments` hold what `load_model` decides.
    """
    _undecided(name, arguments, ("out_indices", "features_only", "image_size"))
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*(\.[^\W\d]\w*)*", path):
        raise RegistrationError(f"{name!r}: {path!r} is no path of a function. Write 'package.module:function'.")
    builder = FunctionBuilder(name, path, dict(arguments or {}), source is not None, adapt)
    _register(name, builder, facts, source)


def checkpoint(name: str, backbone: str, *, source: Source, adapt: Adapt | None = None, **facts: Any) -> None:
    """Register the architecture of a registered backbone with another checkpoint, such as a fine-tuned one.

    Preprocessing, depth and patch size are the backbone's; licence and gating are not, for they belong to its weights.

    Args:
        name: Registry name, such as `my/finetuned`.
        backbone: Registered name of the architecture, such as `pathology/kaiko_vits16`.
        source: `HubFile`, `Url` or `LocalFile`, spelt as that backbone's publisher or this package spells it.
        adapt: `adapt(tensors, module)` renames the tensors to the spelling of the backbone's publisher.
        **facts: See `register_model`.

    Raises:
        UnknownModelError: `backbone` is not registered.
        RegistrationError: `backbone` builds its own weights.
    """
    base = registry.find(backbone)
    if "weights" not in base.parameters:
        raise RegistrationError(
            f"{name!r}: {base.name!r} loads its weights itself: its function has no parameter weights to hand a "
            "checkpoint to. Use wrappers.function with that function, or add the parameter to it."
        )
    of_its_own = ("name", "build", "aliases", "source", "licence", "gated")
    inherited = {f.name: getattr(base, f.name) for f in fields(base) if f.name not in of_its_own}
    inherited["extra"] = base.extra or "eager"
    _register(name, CheckpointBuilder(base.build, adapt), inherited | facts, source)


def _register(name: str, builder: Any, facts: dict[str, Any], source: Source | None) -> None:
    """Register `builder` as if it were a function of the module that called the wrapper: workers import that one."""
    frame = sys._getframe(2)
    vars(builder).update(
        __module__=frame.f_globals["__name__"], __qualname__=f"wrappers.{sys._getframe(1).f_code.co_name}"
    )
    registry.register_model(name, source=source, **facts)(builder)


def _undecided(name: str, arguments: Mapping[str, Any] | None, decided: tuple[str, ...] = _DECIDED) -> None:
    if taken := sorted(set(arguments or ()) & set(decided)):
        raise RegistrationError(
            f"{name!r}: arguments= holds {', '.join(taken)}, which load_model decides. Leave it out; "
            "image sizes are declared with preprocessing=Preprocessing(size=...)."
        )


def _is_folder(place: str | os.PathLike[str]) -> bool:
    return not isinstance(place, str) or place.startswith(("/", ".", "~")) or Path(place).is_absolute()
