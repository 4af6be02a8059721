"""What is published of a model, as data: keys, files, tensors, the manifest that lists them. Standard library only."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import ManifestError
from runtime.out_indices import Canonical, label

SCHEMA_VERSION = 2
# Of how artifacts are made: raised when a build of the same inputs would now give other files.
RECIPE = 7
TARGETS = ("cpu", "cuda")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
INPUTS = ("float32", "uint8")
# Formats whose files are data. Any other is a program: whoever loads it runs what its author wrote.
DATA = ("onnx",)


@dataclass(frozen=True, order=True)
class Form:
    """One way to store what a variant computes; a build makes several of one export.

    Attributes:
        format: `onnx`, `torchscript` or `pt2`.
        target: The device it is made for, `cpu` or `cuda`; `any` for TorchScript, which both read alike.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        input: Input contract: `float32`, normalised [B, C, H, W], or `uint8`, images [B, H, W, 3].
    """

    format: str
    target: str = ""
    precision: str = "fp32"
    input: str = "float32"

    def __post_init__(self) -> None:
        if not self.target:
            object.__setattr__(self, "target", "any" if self.format == "torchscript" else "cpu")

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that read it: by the first it must be verified, by the others it may be.

        OpenVINO reads the ONNX graphs made for CPUs, and alone computes them in bfloat16.
        """
        if (self.format, self.target) != ("onnx", "cpu"):
            return (self.format,)
        return ("openvino",) if self.precision == "bf16" else ("onnx", "openvino")

    def __str__(self) -> str:
        """Return the form in the words of a user: `onnx for cuda, fp16, uint8 input`."""
        made_for = "" if self.target == "any" else f" for {self.target}"
        takes = "" if self.input == "float32" else f", {self.input} input"
        return f"{self.format}{made_for}, {self.precision}{takes}"


@dataclass(frozen=True)
class ArtifactKey:
    """What makes two artifacts of one model different.

    Attributes:
        out_indices: Canonical output request; `None` is the embedding.
        format, target, precision, input: See `Form`.
        image_size: Height and width in pixels (depth, height and width of a volume), or `dynamic`.
        options: The builder's own options, sorted, each value as JSON.
        weights: `pretrained`, `random:<seed>`, `initial:<seed>` (a library's own initialisation) or
            `checkpoint:<digits>` (a local file, by its SHA-256).
    """

    out_indices: Canonical
    format: str
    target: str
    precision: str
    image_size: tuple[int, ...] | str
    options: tuple[tuple[str, str], ...]
    weights: str
    input: str = "float32"

    @property
    def form(self) -> Form:
        """How it is stored."""
        return Form(self.format, self.target, self.precision, self.input)

    def to_json(self) -> dict[str, Any]:
        """Return the key as JSON values."""
        size = self.image_size
        return {
            **asdict(self),
            "out_indices": None if self.out_indices is None else list(self.out_indices),
            "image_size": size if isinstance(size, str) else list(size),
            "options": {name: json.loads(value) for name, value in self.options},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ArtifactKey":
        """Return the key that `to_json` wrote."""
        indices, size = data["out_indices"], data["image_size"]
        return cls(
            out_indices=None if indices is None else tuple(int(i) for i in indices),
            format=str(data["format"]),
            # Schema version 1 knew one graph per format, made for no device in particular.
            target=str(data.get("target", Form(str(data["format"])).target)),
            precision=str(data["precision"]),
            image_size=size if isinstance(size, str) else _sides(size),
            options=options_key(data["options"]),
            weights=str(data["weights"]),
            input=str(data["input"]),
        )

    def describe(self) -> str:
        """Return the key in the words of a user: `2, onnx for cpu, fp32, 224x224, pretrained weights`."""
        size = self.image_size if isinstance(self.image_size, str) else "x".join(map(str, self.image_size))
        options = [f"{name}={json.loads(value)}" for name, value in self.options]
        return ", ".join([label(self.out_indices), str(self.form), size, *options, f"{self.weights} weights"])


def _sides(sizes: Any) -> tuple[int, ...]:
    sides = tuple(int(side) for side in sizes)
    if len(sides) not in (2, 3):
        raise ManifestError(f"lists an image size of {len(sides)} sides")
    return sides


def options_key(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return options in the spelling of a key: sorted, hashable, the same before and after JSON."""
    return tuple((name, json.dumps(options[name], sort_keys=True)) for name in sorted(options))


@dataclass(frozen=True)
class StoredFile:
    """A file that a manifest lists."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: its name and shape; a string is a symbolic dimension such as `batch` or `16*h`."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Artifact:
    """One published artifact.

    Attributes:
        key: What it is.
        files: The graph first, then the weight data it reads.
        inputs, outputs: In call order.
        facts: Preprocessing, source, versions built with, parity: what the manifest tells beyond the key.
    """

    key: ArtifactKey
    files: tuple[StoredFile, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graph(self) -> StoredFile:
        """The graph file."""
        return self.files[0]

    @property
    def outdated(self) -> bool:
        """Whether another recipe than this release's made it; its numbers are still those it was verified with."""
        return bool(self.facts.get("versions", {}).get("recipe") != str(RECIPE))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return {
            "key": self.key.to_json(),
            "files": [asdict(f) for f in self.files],
            "inputs": [{**asdict(t), "shape": list(t.shape)} for t in self.inputs],
            "outputs": [{**asdict(t), "shape": list(t.shape)} for t in self.outputs],
            **self.facts,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Artifact":
        """Return the artifact of a manifest entry."""
        known = ("key", "files", "inputs", "outputs")
        if not data["files"]:
            raise ManifestError("lists an artifact without files")
        return cls(
            key=ArtifactKey.from_json(data["key"]),
            files=tuple(StoredFile(_plain_name(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in data["files"]),
            inputs=tuple(TensorInfo(t["name"], tuple(t["shape"]), t["dtype"]) for t in data["inputs"]),
            outputs=tuple(TensorInfo(t["name"], tuple(t["shape"]), t["dtype"]) for t in data["outputs"]),
            facts={k: v for k, v in data.items() if k not in known},
        )


def _plain_name(name: object) -> str:
    if not isinstance(name, str) or name != Path(name).name or name in ("", "..") or set(name) & set("\\\0"):
        raise ManifestError(f"lists {name!r}, which is not a plain file name inside the model's folder")
    return name


@dataclass(frozen=True)
class Manifest:
    """What is published of one model."""

    model: str
    artifacts: tuple[Artifact, ...] = ()

    def merged(self, artifacts: Iterable[Artifact]) -> "Manifest":
        """Return the manifest that lists `artifacts`, too, each instead of the one that had its key."""
        new = tuple(artifacts)
        keys = {artifact.key for artifact in new}
        return Manifest(self.model, (*(a for a in self.artifacts if a.key not in keys), *new))

    def to_text(self) -> str:
        """Return the manifest as sorted, diff-friendly JSON."""
        entries = sorted((a.to_json() for a in self.artifacts), key=lambda e: json.dumps(e["key"], sort_keys=True))
        data = {"schema_version": SCHEMA_VERSION, "model": self.model, "artifacts": entries}
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_text(cls, text: str, path: Path | str, advice: str | None = None) -> "Manifest":
        """Return the manifest that `to_text` wrote at `path`; `advice` says what to do about one that cannot be used.

        Raises:
            ManifestError: The text is no manifest, or one of a newer release.
        """
        advice = advice or rebuild(path)
        try:
            data = json.loads(text)
            version = data["schema_version"]
            if version > SCHEMA_VERSION:
                raise ManifestError(
                    f"{path} has schema version {version}, this release reads up to {SCHEMA_VERSION}. "
                    "It was written by a newer release: pip install --upgrade backbone-runtime, or build with this one "
                    "into another folder: python -m exporters.build NAME --artifacts=FOLDER."
                )
            return cls(str(data["model"]), tuple(Artifact.from_json(entry) for entry in data["artifacts"]))
        except ManifestError as error:
            if str(path) in str(error):
                raise
            raise ManifestError(f"{path} {error}. {advice}") from error
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise ManifestError(
                f"{path} is not a valid manifest ({type(error).__name__}: {error}). {advice}"
            ) from error


def rebuild(path: Path | str) -> str:
    """Return what to do about a manifest that cannot be used."""
    return f"Delete {path} and build the model again: python -m exporters.build NAME."
