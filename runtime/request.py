"""What a caller of load_model asked for, checked once and carried whole. Standard library only."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from runtime.artifacts import checkpoint_digest
from runtime.errors import OptionError, WeightsError
from runtime.facts import LibraryInit, LocalFile, Source
from runtime.manifest import INPUTS, PRECISIONS, ArtifactKey, Form, options_key
from runtime.out_indices import Canonical, OutIndices, canonical
from runtime.spec import BackboneSpec

BACKENDS = ("auto", "onnx", "openvino", "pt2", "torchscript", "eager")
ON_FALLBACK = ("warn", "error")
WEIGHTS = ("pretrained", "random")
# A local checkpoint is known by its content: the first digits of its SHA-256.
_CHECKPOINT = re.compile(r"checkpoint:[0-9a-f]{12}")
# Every value of `Request.weights_key`; what comes from elsewhere may hold no other. No seed of torch has more digits.
WEIGHTS_KEY = re.compile(rf"pretrained|(random|initial):-?\d{{1,20}}|{_CHECKPOINT.pattern}", re.ASCII)
VERIFY = ("size", "full")
LOADS = ("throughput", "fast")
# The values that ask onnxruntime for nothing: every backend can serve them.
NOT_OF_ONNXRUNTIME: Mapping[str, Any] = {
    "providers": None,
    "load": "throughput",
    "reuse_outputs": False,
    "cuda_graphs": False,
    "gpu_mem_limit": None,
}
# Nobody is worse off without these: with `auto` another backend may serve where onnx cannot. The others need CUDA.
_HARMLESS = ("load", "reuse_outputs", "providers")


@dataclass(frozen=True)
class Request:
    """Everything that decides what load_model returns; picklable."""

    spec: BackboneSpec
    out_indices: OutIndices = None
    backend: str = "auto"
    device: str | None = None
    precision: str = "fp32"
    input: str = "float32"
    on_fallback: str = "warn"
    artifacts: str | None = None
    providers: tuple[str, ...] | None = None
    provider_options: tuple[Mapping[str, Any], ...] | None = None
    threads: int | None = None
    weights: str = "pretrained"
    seed: int = 0
    image_size: int | tuple[int, ...] | str | None = None
    verify: str = "size"
    load: str = "throughput"
    batch_sizes: tuple[int, ...] | None = None
    reuse_outputs: bool = False
    cuda_graphs: bool = False
    gpu_mem_limit: int | None = None
    checkpoint_path: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("backend", self.backend, BACKENDS),
            ("precision", self.precision, PRECISIONS),
            ("input", self.input, INPUTS),
            ("on_fallback", self.on_fallback, ON_FALLBACK),
            ("verify", self.verify, VERIFY),
            ("load", self.load, LOADS),
        ):
            if value not in allowed:
                raise OptionError(f"{name}={value!r} is none of {', '.join(map(repr, allowed))}.")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise OptionError(
                f"threads={self.threads!r} must be an int of at least 1, or None for every CPU available."
            )
        if type(self.seed) is not int:
            raise OptionError(f"seed={self.seed!r} must be an int.")
        if self.providers is not None and self.backend not in ("auto", "onnx"):
            raise OptionError(
                f"providers={list(self.providers)} are onnxruntime's: backend={self.backend!r} takes device= only."
            )
        self._check_input()
        self._check_running()
        self._check_weights()
        self._check_options()

    def _check_input(self) -> None:
        facts = self.spec.preprocessing
        if self.input == "uint8" and (facts.mean is None or facts.std is None or facts.spatial_dims != 2):
            raise OptionError(
                f"input='uint8' normalises inside the graph, and {self.spec.name!r} declares no mean and std for "
                "8-bit images. Scale your data as its publisher did and use input='float32'."
            )

    def _check_running(self) -> None:
        sizes, limit = self.batch_sizes, self.gpu_mem_limit
        if sizes is not None and (not sizes or any(type(size) is not int or size < 1 for size in sizes)):
            raise OptionError(f"batch_sizes={list(sizes)} must be ints of at least 1, such as (1, 8, 32, 64).")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise OptionError(f"gpu_mem_limit={limit!r} must be bytes, an int such as 8 * 1024**3.")
        for name in ("reuse_outputs", "cuda_graphs"):
            if type(getattr(self, name)) is not bool:
                raise OptionError(f"{name}={getattr(self, name)!r} must be True or False.")
        asked = [name for name, value in NOT_OF_ONNXRUNTIME.items() if getattr(self, name) != value]
        alien = [name for name in asked if self.backend != "auto" or name not in _HARMLESS]
        if alien and self.backend != "onnx":
            raise OptionError(
                f"{', '.join(alien)}: only the onnx backend can do that, not backend={self.backend!r}. "
                "Leave it out, or use backend='onnx'."
            )
        if self.cuda_graphs and (sizes is None or self.image_size == "dynamic"):
            raise OptionError(
                "cuda_graphs=True captures one graph for each of batch_sizes at a fixed image size: give batch_sizes, "
                "such as (1, 8), and no image_size='dynamic'."
            )

    @property
    def of_onnxruntime(self) -> tuple[str, ...]:
        """What was asked for that only onnxruntime can do, spelled as it was asked."""
        asked = {name: getattr(self, name) for name, no in NOT_OF_ONNXRUNTIME.items() if getattr(self, name) != no}
        return tuple(f"{name}={list(v) if isinstance(v, tuple) else v!r}" for name, v in asked.items())

    def _check_weights(self) -> None:
        if self.weights not in WEIGHTS and not _CHECKPOINT.fullmatch(str(self.weights)):
            allowed = ", ".join(map(repr, WEIGHTS))
            raise OptionError(
                f"weights={self.weights!r} is none of {allowed}, 'checkpoint:<the first 12 digits of a SHA-256>'."
            )
        if self.checkpoint_path is None:
            return
        if self.weights != "pretrained":
            raise OptionError(
                f"checkpoint_path={self.checkpoint_path!r} and weights={self.weights!r} exclude each other: "
                "leave one out."
            )
        if "weights" not in self.spec.parameters:
            raise OptionError(
                f"checkpoint_path={self.checkpoint_path!r}: {self.spec.name!r} loads its own weights; its function has "
                "no parameter weights. Leave checkpoint_path out, or add that parameter to the registered function."
            )

    def _check_options(self) -> None:
        unknown = sorted(set(self.options) - set(self.spec.options))
        if unknown:
            own = ", ".join(self.spec.options) or "none"
            raise OptionError(
                f"load_model({self.spec.name!r}) got an unknown keyword: {', '.join(unknown)}. "
                f"Valid are {', '.join(OPTION_NAMES)}; of this backbone itself: {own}."
            )
        try:
            options_key(self.options)
        except TypeError as error:
            raise OptionError(
                f"Options of {self.spec.name!r} must be JSON values, to be part of a key: {error}."
            ) from error
        if self.out_indices is not None and "out_indices" not in self.spec.parameters:
            raise OptionError(
                f"{self.spec.name!r} gives an embedding only: its function takes no out_indices. "
                "Leave out_indices out, or add that parameter to the registered function."
            )

    @property
    def canonical(self) -> Canonical:
        """The outputs asked for, in the spelling that equal requests share."""
        return canonical(self.out_indices, self.spec.depth)

    @property
    def size(self) -> tuple[int, ...] | str:
        """Height and width in pixels (depth, height and width of a volume), or `dynamic`."""
        facts, patch = self.spec.preprocessing, self.spec.patch_size
        size = facts.size if self.image_size is None else self.image_size
        if size == "dynamic" and facts.spatial_dims == 2:
            return "dynamic"
        sides = (size,) * facts.spatial_dims if isinstance(size, int) else size
        if not _is_list(sides) or len(sides) != facts.spatial_dims or any(type(s) is not int or s < 1 for s in sides):
            either = "height and width) or 'dynamic'" if facts.spatial_dims == 2 else "depth, height and width)"
            raise OptionError(f"image_size={size!r} must be pixels (an int, or {either}.")
        if any(side % patch for side in sides):
            near = tuple(max(patch, round(side / patch) * patch) for side in sides)
            which = "both" if len(sides) == 2 else "all"
            raise OptionError(
                f"image_size={size!r}: {which} sides must be multiples of {self.spec.name}'s patch, {patch} pixels. "
                f"Nearest: {near[0] if len(set(near)) == 1 else near}."
            )
        return tuple(sides)

    @property
    def weights_key(self) -> str:
        """Which weights, as an artifact's key spells it."""
        if self.checkpoint_path is not None:
            return f"checkpoint:{_digest(self.checkpoint_path)[:12]}"
        if _CHECKPOINT.fullmatch(self.weights):
            return self.weights
        if isinstance(self.spec.source, LibraryInit):
            return f"initial:{self.spec.source.seed}"
        return "pretrained" if self.weights == "pretrained" else f"random:{self.seed}"

    @property
    def source(self) -> Source | None:
        """Where the weights come from: the checkpoint that was named, else what the backbone declares."""
        return self.spec.source if self.checkpoint_path is None else LocalFile(self.checkpoint_path)

    def form(self, format: str, target: str = "") -> Form:
        """Return the form that answers this request in `format`, made for `target`."""
        return Form(format, target, self.precision, self.input)

    def key(self, form: Form) -> ArtifactKey:
        """Return the key of this request's artifact in `form`."""
        return ArtifactKey(
            out_indices=self.canonical,
            format=form.format,
            target=form.target,
            precision=form.precision,
            image_size=self.size,
            options=options_key(self.options),
            weights=self.weights_key,
            input=form.input,
        )


def is_drawn(weights_key: str) -> bool:
    """Return whether a key's weights are numbers drawn from a seed, not what anybody trained."""
    return weights_key.startswith(("random:", "initial:"))


def _digest(checkpoint: str) -> str:
    try:
        return checkpoint_digest(Path(checkpoint).expanduser().absolute())
    except OSError as error:
        raise WeightsError(
            f"checkpoint_path={checkpoint!r} cannot be read: {error.strerror or error}. Name a checkpoint file "
            "(.safetensors, or a PyTorch checkpoint) that this process may read."
        ) from error


_REQUIRED = inspect.Parameter.empty
OPTION_NAMES = tuple(n for n in Request.__dataclass_fields__ if n not in ("spec", "options"))


def make_request(spec: BackboneSpec, model_kwargs: Mapping[str, Any] | None, given: Mapping[str, Any]) -> Request:
    """Return the request for `spec`; keywords may come directly or inside `model_kwargs`, not in both.

    Raises:
        OptionError: A keyword is unknown, given twice, or has a value it cannot have.
    """
    inside = dict(model_kwargs or {})
    twice = sorted(set(inside) & set(given))
    if twice:
        raise OptionError(f"{', '.join(twice)} given both directly and inside model_kwargs: leave one out.")
    merged = {**inside, **given}
    known = {name: value for name, value in merged.items() if name in OPTION_NAMES and value is not None}
    # What the backbone does anyway is not part of the request: the same artifact answers it.
    options = {n: v for n, v in merged.items() if n not in OPTION_NAMES and v != spec.defaults.get(n, _REQUIRED)}
    known.setdefault("on_fallback", os.environ.get("BACKBONE_ON_FALLBACK") or "warn")
    for name in ("artifacts", "checkpoint_path"):
        if name in known:
            known[name] = os.fspath(known[name])
    for name in ("providers", "provider_options", "batch_sizes"):
        if name in known:
            known[name] = _several(name, known[name])
    sizes = known.get("batch_sizes")
    if sizes is not None and all(type(size) is int for size in sizes):  # the request refuses others
        known["batch_sizes"] = tuple(sorted(set(sizes)))
    if "device" in known:
        known["device"] = str(known["device"])
    return Request(spec=spec, options=options, **known)


def _several(name: str, value: Any) -> tuple[Any, ...]:
    if not _is_list(value):
        raise OptionError(f"{name}={value!r} must be a list, even of one.")
    return tuple(value)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
