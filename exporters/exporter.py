"""One export, written in several forms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from exporters import record
from exporters.plan import Job
from exporters.pool import WeightPool
from exporters.reference import Reference, example
from runtime.eager import EagerModel
from runtime.errors import BackboneError
from runtime.manifest import Form


@dataclass(frozen=True)
class Written:
    """A graph that was written.

    Attributes:
        files: The weight files it reads.
        facts: What its manifest entry tells of how it was made, JSON values.
    """

    files: list[str]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exporter:
    """Writes the forms of one format; what they share is made once, for the first of them.

    Attributes:
        job: What is built.
        format: `onnx`, `torchscript` or `pt2`.
        model: The eager backbone; writing TorchScript empties it.
        references: By input contract.
    """

    job: Job
    format: str
    model: EagerModel
    references: Mapping[str, Reference]

    def write(self, form: Form, pool: WeightPool, path: Path) -> Written:
        """Write the graph of `form` to `path` and its weights to the pool.

        Raises:
            ExportError: The exporter failed, or the graph does not keep what it must.
        """
        if isinstance(self._writer, BackboneError):
            raise type(self._writer)(*self._writer.args)
        return self._writer(form, pool, path)

    @cached_property
    def _writer(self) -> Callable[[Form, WeightPool, Path], Written] | BackboneError:
        """What writes the forms; or why there is none, which is found out once and told for each of them."""
        try:
            return {"onnx": self._onnx, "pt2": self._pt2, "torchscript": self._torchscript}[self.format]()
        except BackboneError as error:
            return type(error)(*error.args)  # without its traceback, whose frames hold the weights

    def _onnx(self) -> Callable[[Form, WeightPool, Path], Written]:
        from exporters import to_onnx
        from exporters.images import Images

        request, images = self.job.request, Images(self.job.request, self.job.calibration)
        names = next(iter(self.references.values())).names
        patch = request.spec.patch_size if images.dynamic else None
        program = to_onnx.export(self.model.module, example(request), names, patch)

        def write(form: Form, pool: WeightPool, path: Path) -> Written:
            model, facts = to_onnx.derive(program, form, images)
            return Written(to_onnx.write(model, pool, path, record.metadata(request, form)), facts)

        return write

    def _pt2(self) -> Callable[[Form, WeightPool, Path], Written]:
        from exporters import to_pt2

        request = self.job.request
        patch = request.spec.patch_size if request.size == "dynamic" else None

        def write(form: Form, pool: WeightPool, path: Path) -> Written:
            program = to_pt2.export(
                self.model.module, example(request), device=form.target, precision=form.precision, patch_size=patch
            )
            return Written(to_pt2.write(program, pool, path))

        return write

    def _torchscript(self) -> Callable[[Form, WeightPool, Path], Written]:
        from exporters import to_torchscript

        traced = to_torchscript.export(self.model.module, example(self.job.request))
        return lambda _, pool, path: Written(to_torchscript.write(traced, pool, path))
