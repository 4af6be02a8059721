"""Eager module -> `.pt2` package compiled ahead of time by AOTInductor; its weights go to the model's shared pool."""

import contextlib
import copy
import json
import logging
import os
import shlex
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from packaging.version import Version
from torch import Tensor, nn

from exporters.placement import place
from exporters.pool import WeightPool
from runtime.backends.eager import DTYPES
from runtime.backends.pt2 import machine
from runtime.backends.pt2_package import CODE, NEEDS, Machine
from runtime.backends.pt2_package import X86 as X86_LEVELS
from runtime.backends.weight_table import TABLE
from runtime.errors import BuildError, ExportError

# The first torch that can be told which CPUs to compile for, and to leave out the paths of this machine.
OLDEST = Version("2.13")
# What the compiler may use of an x86 CPU, whatever the one at hand has: packages run on all that have AVX2. torch's own
# kernels, where nearly all time goes, choose their instructions at run time.
X86: dict[str, Any] = {"cpp.simdlen": 256, "cpp.march": "x86-64-v3"}
OPTIONS: dict[str, Any] = {
    # Freezing would make weights opaque, which cannot be shared: no gain for transformers, a tenth for a ResNet.
    "freezing": False,
    "compile_threads": 1,
    "cpp.dynamic_threads": True,
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.package_constants_on_disk_format": "pickle_weights",  # they come beside the files, as tensors
    "aot_inductor.enable_line_tables": False,  # they hold the paths of the machine that compiles
    "aot_inductor.precompile_headers": False,
}


class InPrecision(nn.Module):
    """A module that computes in another precision than it takes and gives, float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, images: Tensor) -> Any:
        """Return the module's outputs in float32."""
        output = self.module(images.to(self.dtype))
        return [o.float() for o in output] if isinstance(output, list | tuple) else output.float()


def export(
    module: nn.Module, example: Tensor, *, device: str, precision: str, patch_size: int | None
) -> torch.export.ExportedProgram:
    """Return the exported program with a dynamic batch (and, with `patch_size`, dynamic height and width).

    Args:
        module: Left as it is; the program has weights of its own where device or precision differ.
        example: A batch of two.
        device: `cpu` or `cuda`.
        precision: `fp32`, `fp16` or `bf16`.
        patch_size: What height and width are multiples of; `None` when they are fixed.

    Raises:
        ExportError: torch could not export the module.
        BuildError: CUDA cannot be used here, or torch is too old.
    """
    if Version(torch.__version__).release < OLDEST.release:  # a vendor's build is a pre-release
        raise BuildError(
            f"pt2 packages are compiled for other CPUs than the one at hand, which takes torch {OLDEST} or newer; this "
            f"is torch {torch.__version__}. Run: pip install -U torch. Other formats and serving need no newer one."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise BuildError("pt2 for cuda is compiled on the GPU, and torch sees none here. Build it where there is one.")
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if patch_size is not None:
        dynamic |= {2: patch_size * torch.export.Dim("h", min=2), 3: patch_size * torch.export.Dim("w", min=2)}
    dtype = DTYPES[precision]
    try:
        with torch.no_grad(), _quiet():
            moved = _converted(module, device, dtype)
            prepared = moved if dtype == torch.float32 else InPrecision(moved, dtype)
            return torch.export.export(prepared.eval(), (example.to(device),), dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:
        raise ExportError(f"torch.export could not export it: {_first_line(error)}") from error


def write(program: torch.export.ExportedProgram, pool: WeightPool, path: Path) -> list[str]:
    """Compile the program into a package at `path`, its weights in the pool; return the weight files it reads.

    Raises:
        BuildError: There is no C++ compiler, or it fails.
    """
    compiler = find_compiler()
    (example,), _ = program.example_inputs
    # Its name is part of what is hashed into the names of compiled files: not a random one.
    folder = path.with_name("compiling")
    with torch.no_grad(), _quiet(), _own_cache(folder):
        try:
            module = program.module(check_guards=False)
            made: Any = torch._inductor.aot_compile(
                module, (example,), options=_options(example.device, compiler, folder)
            )
        except Exception as error:
            raise BuildError(f"AOTInductor could not compile it: {_first_line(error)}") from error
        (weights,) = (part for part in made if isinstance(part, dict))
        table = place({name: tensor for name, (tensor, _) in weights.items()}, pool)
        # Sources are not needed to run, and tell where they lay.
        compiled = [Path(part) for part in made if isinstance(part, str) and not part.endswith(".cpp")]
        records = {f"{CODE}{file.name}": file.read_bytes() for file in compiled}
    records[f"extra/{TABLE}"] = json.dumps(table, sort_keys=True).encode()
    records[f"extra/{NEEDS}"] = json.dumps(asdict(_needs(example.device)), sort_keys=True).encode()
    with path.open("wb") as file:
        _archive(records, file)
    return sorted({row[0] for row in table.values()})


def find_compiler() -> str:
    """Return the command of the C++ compiler.

    Raises:
        BuildError: There is none.
    """
    from torch._inductor import config

    command = str(next(filter(None, config.cpp.cxx)))
    if shutil.which(shlex.split(command)[0]) is None:
        raise BuildError(
            f"pt2 is compiled C++, and there is no compiler {command!r} here. Install one (apt-get install g++), or "
            "name yours in the environment variable CXX. Serving needs none."
        )
    return command


def _options(device: torch.device, compiler: str, folder: Path) -> dict[str, Any]:
    # Error messages name source files: not where they lie on the machine that compiles.
    hidden = [f"-ffile-prefix-map={folder}=.", f"-ffile-prefix-map={Path(torch.__file__).parent}=torch"]
    options = OPTIONS | {"cpp.cxx": (None, f"{compiler} {shlex.join(hidden)}")}
    return options | (X86 if _is_x86(machine(str(device))) else {})


def _needs(device: torch.device) -> Machine:
    here = machine(str(device))
    return replace(here, instructions="AVX2") if _is_x86(here) else here


def _is_x86(here: Machine) -> bool:
    return here.instructions in X86_LEVELS


def _converted(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Return a copy whose floating-point tensors are converted; the originals are never held twice in float32."""
    replaced: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        moved = tensor.detach().to(device, kind)
        replaced[id(tensor)] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(module, replaced)


@contextlib.contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Compile in `folder`, from nothing that was compiled before; it is gone afterwards, also when compiling failed."""
    from torch._inductor.utils import clear_caches

    own = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    before = {name: os.environ.get(name) for name in own}
    folder.mkdir()
    os.environ.update(own)
    clear_caches()
    try:
        yield
    finally:
        clear_caches()
        shutil.rmtree(folder)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _archive(records: dict[str, bytes], file: BinaryIO) -> None:
    """Write through a file object: the archive gets a neutral name, and rebuilds of the same records are identical."""
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    with PT2ArchiveWriter(file) as writer:
        for name in sorted(records):
            writer.write_bytes(name, records[name])


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the compiler says about itself; what goes wrong is raised."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
