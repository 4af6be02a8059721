"""Write the list of backbones, in docs/backbones.md and README.md, from the registry and the records of building."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalogue_report import Record, read_ledger
from runtime import HubFile, LibraryInit, Url, list_models
from runtime.arguments import parser_of
from runtime.registry import find
from runtime.spec import BackboneSpec

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "backbones.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- backbones: python -m benchmarks.support_matrix -->", "<!-- end of backbones -->"

HEAD = [
    "| Backbone | Parameters | Embedding | Maps | Formats | Difference | Size | Licence | Source |",
    "|---|--:|--:|---|---|---|--:|---|---|",
]
LEGEND = """\
Built with loud random weights and compared with eager PyTorch on real tissue, noise, constants and extremes:
*difference*, of the embedding, then of the maps: the largest absolute one and, *rel.*, the largest root mean square
relative to the output's own.
*Maps*: how many `out_indices` reaches, and the shape of the last. *Size*: weights, shared by all variants and,
but where batch norms are folded into ONNX's convolutions, by both formats.
*Gated*: the publisher wants terms to be accepted before the download."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both files."""
    parser = parser_of("python -m benchmarks.support_matrix", __doc__)
    parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def rendered() -> dict[Path, str]:
    """Return what each of the files must contain, for the registry and the records as they are."""
    table = "\n".join(matrix([find(name) for name in list_models()], read_ledger()))
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return {
        PAGE: f"# Backbones\n\n{LEGEND}\n\n{table}\n",
        README: f"{before}{BEGIN}\n\n{table}\n\n{END}{after}",
    }


def matrix(specs: Sequence[BackboneSpec], records: Sequence[Record]) -> list[str]:
    """Return the table: one row for each backbone, built or not."""
    return [*HEAD, *(f"| {' | '.join(cells(spec, records).values())} |" for spec in specs)]


def cells(spec: BackboneSpec, records: Sequence[Record]) -> dict[str, str]:
    """Return what is said of one backbone, by the names of the table's columns; `records` may be of others, too."""
    by_variant = {record["variant"]: record for record in records if record["model"] == spec.name}
    mine = list(by_variant.values())
    embedding = by_variant.pop("embedding", None)
    maps = list(by_variant.values())
    return {
        "Backbone": f"`{spec.name}`",
        "Parameters": _millions(embedding),
        "Embedding": _dimension(embedding),
        "Maps": _map_shape(spec, maps),
        "Formats": ", ".join(sorted({o["format"] for r in mine for o in r["outcomes"] if o["status"] == "built"}))
        or "not built",
        "Difference": f"{_difference([embedding] if embedding else [])}, {_difference(maps)}",
        "Size": _size(mine),
        "Licence": f"{spec.licence or 'not stated'}{' (gated)' if spec.gated else ''}",
        "Source": _source(spec),
    }


def _millions(record: Record | None) -> str:
    return f"{record['parameters'] / 1e6:,.1f} M" if record and record["parameters"] else ""


def _outputs(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [output for record in records for outputs in record["outputs"].values() for output in outputs]


def _dimension(record: Record | None) -> str:
    outputs = _outputs([record] if record else [])
    return str(outputs[0]["shape"][-1]) if outputs else ""


def _map_shape(spec: BackboneSpec, records: Sequence[Record]) -> str:
    outputs = _outputs(records)
    if not outputs:
        return f"{spec.depth}" if spec.depth else ""
    return f"{spec.depth or '?'} of {'x'.join(map(str, outputs[-1]['shape'][1:]))}"


def _difference(records: Sequence[Record]) -> str:
    outputs = _outputs(records)
    if not outputs:
        return "-"
    absolute, relative = (max(o[key] for o in outputs) for key in ("max_abs", "relative_rms"))
    return f"{absolute:.1e} (rel. {relative:.1e})"


def _size(records: Sequence[Record]) -> str:
    weights = {n: size for r in records for n, size in r["files"].items() if n.startswith("weights.")}
    return f"{sum(weights.values()) / 1e6:,.0f} MB" if weights else ""


def _source(spec: BackboneSpec) -> str:
    source = spec.source
    if isinstance(source, HubFile):
        return f"[{source.repo}](https://huggingface.co/{source.repo})"
    if isinstance(source, Url):
        return f"[{source.url.rsplit('/', 1)[-1]}]({source.url})"
    return "random weights" if isinstance(source, LibraryInit) else str(source or "its function")


if __name__ == "__main__":
    sys.exit(main())
