"""Weight data shared by all graphs of a model: each tensor is stored once, by content.

Which tensors exist is read off the published graphs themselves, and their bytes are hashed anew: there is no index that
could be wrong. Files that were damaged on disk are left out, so what they held is written again.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.artifacts import file_problem
from runtime.backends.weight_table import TABLE
from runtime.manifest import Manifest

# onnxruntime memory-maps external data at page boundaries; what is smaller than a page only needs a cache line.
PAGE, LINE = 4096, 64
# Of one value; of types that are not here, one.
_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}


@dataclass(frozen=True)
class Slice:
    """Where a tensor's bytes lie: a file of the model's folder, and the range in it."""

    file: str
    offset: int
    length: int


class WeightPool:
    """The tensors already published in `folder`, and those added since, in one new file of `staging`."""

    def __init__(self, folder: Path, manifest: Manifest, staging: Path) -> None:
        self._staging = staging
        files = {file.name: file for artifact in manifest.artifacts for file in artifact.files}
        sound = {name for name, file in files.items() if file_problem(folder / name, file, full=True) is None}
        graphs = [artifact.graph.name for artifact in manifest.artifacts if artifact.graph.name in sound]
        slices = dict.fromkeys(piece for name in graphs for piece in _slices(folder / name) if piece.file in sound)
        self._known = {_digest(_read(folder, piece)): piece for piece in slices}

    def find(self, tensor: np.ndarray[Any, Any]) -> Slice | None:
        """Return where a tensor with these bytes is stored, if it is."""
        return self._known.get(_digest(tensor))

    def place(self, tensors: Iterable[np.ndarray[Any, Any]]) -> list[Slice]:
        """Return where each tensor is stored, writing those that are new. One tensor is held in memory at a time."""
        digests: list[str] = []
        fresh: dict[str, tuple[int, int]] = {}
        part = self._staging / "weights.part"
        with part.open("wb") as file:
            for given in tensors:
                tensor = np.ascontiguousarray(given)
                digest = _digest(tensor)
                digests.append(digest)
                if digest not in self._known and digest not in fresh:
                    file.write(b"\0" * (-file.tell() % (PAGE if tensor.nbytes >= PAGE else LINE)))
                    fresh[digest] = (file.tell(), tensor.nbytes)
                    file.write(_bytes(tensor))
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            name = f"weights.{hashlib.sha256(''.join(fresh).encode()).hexdigest()[:12]}.data"
            part.replace(self._staging / name)
            self._known.update({digest: Slice(name, *where) for digest, where in fresh.items()})
        else:
            part.unlink()
        return [self._known[digest] for digest in digests]


def _bytes(tensor: np.ndarray[Any, Any]) -> Any:
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _digest(tensor: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _slices(graph: Path) -> Iterator[Slice]:
    """Return the stored tensors that a published graph reads."""
    if graph.suffix == ".onnx":
        yield from _slices_of_onnx(graph)
    else:
        with zipfile.ZipFile(graph) as archive:
            record = next(name for name in archive.namelist() if name.endswith(f"/extra/{TABLE}"))
            for file, offset, shape, *others in json.loads(archive.read(record)).values():
                dtype = others[1] if len(others) > 1 else "float32"  # before recipe 3 there were no others
                yield Slice(file, offset, _BYTES.get(dtype, 1) * int(np.prod(shape)))


def _slices_of_onnx(graph: Path) -> Iterator[Slice]:
    import onnx

    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            yield Slice(where["location"], int(where["offset"]), int(where["length"]))


def _read(folder: Path, piece: Slice) -> np.ndarray[Any, Any]:
    return np.memmap(folder / piece.file, mode="r", offset=piece.offset, shape=(piece.length,), dtype=np.uint8)
