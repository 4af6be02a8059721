"""The support matrix: the registry's facts beside what building, verifying and measuring each backbone recorded."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import support_matrix, sweep_timm
from benchmarks.catalogue_report import Record, read_ledger
from runtime import list_models
from runtime.manifest import Form
from runtime.registry import find
from runtime.spec import BackboneSpec
from site_pages import ROOT

# Where the page goes in the site, instead of the shorter table of docs/backbones.md.
PAGE = "backbones.md"
COLUMNS = (
    *("Backbone", "Architecture", "Parameters", "Embedding", "Maps", "Size", "Licence", "Gated"),
    *("Verified", "Difference", "Source"),
)
_RIGHT = ("Parameters", "Embedding", "Size")


def page() -> str:
    """Return the page, for the registry and the records as they are."""
    names = [name for name in list_models() if not name.startswith("test/")]
    records, measured = read_ledger(), measured_forms()
    families: dict[str, list[BackboneSpec]] = {}
    for name in names:
        families.setdefault(name.split("/")[0], []).append(find(name))
    lines = ["---", "hide: [navigation, toc]", "---", "", "# Support matrix", "", _LEGEND, ""]
    for family, specs in families.items():
        rows = [row(spec, records, measured.get(spec.name, ())) for spec in specs]
        lines += [f"## {family}", "", *table(COLUMNS, rows), ""]
    return "\n".join([*lines, *_timm(sweep_timm.read(sweep_timm.RESULTS))]) + "\n"


def row(spec: BackboneSpec, records: Sequence[Record], measured: Sequence[str]) -> dict[str, str]:
    """Return what is said of one backbone; `measured` are forms of it that a benchmark compared with eager."""
    built = {_form(o) for r in records if r["model"] == spec.name for o in r["outcomes"] if o["status"] == "built"}
    cells = support_matrix.cells(spec, records)
    return cells | {
        "Size": cells["Size"].replace(" ", "\u00a0"),
        "Architecture": _architecture(spec),
        "Licence": spec.licence or "not stated",
        "Gated": "yes" if spec.gated else "no",
        "Verified": ", ".join([*sorted(built), *(form for form in measured if form not in built)]) or "not built",
    }


def measured_forms() -> dict[str, tuple[str, ...]]:
    """Return which ways to serve a backbone were measured against eager, by backbone, of all benchmark reports."""
    forms: dict[str, dict[str, None]] = {}
    for report in sorted((ROOT / "benchmarks" / "reports").glob("benchmark*.json")):
        for section in json.loads(report.read_text(encoding="utf-8"))["sections"]:
            ours = [c for c in section["contenders"] if c["side"] == "ours" and c.get("fidelity")]
            forms.setdefault(section["model"], {}).update(dict.fromkeys(c["label"] for c in ours))
    return {model: tuple(labels) for model, labels in forms.items()}


def table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a Markdown table."""
    rule = "|".join("--:" if column in _RIGHT else "---" for column in columns)
    lines = [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    return [f"| {' | '.join(columns)} |", f"|{rule}|", *lines]


def _form(outcome: Record) -> str:
    """Return how an outcome is stored, `onnx fp32`; the first records were fp32 and do not say so."""
    if "target" not in outcome:
        return f"{outcome['format']} fp32"
    form = Form(outcome["format"], outcome["target"], outcome["precision"], outcome["input"])
    target = f" for {form.target}" if form.target not in ("any", "cpu") else ""
    return f"{form.format} {form.precision}{target}" + (" from uint8" if form.input == "uint8" else "")


def _architecture(spec: BackboneSpec) -> str:
    """Return what the first line of a backbone's function calls it, without its output."""
    first = (spec.build.__doc__ or "").strip().partition("\n")[0]
    return re.split(r": |, \[", first, maxsplit=1)[0].rstrip(".")


def _timm(tried: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        {
            "Backbone": f"`timm/{name}`",
            "Family": result["family"],
            "Parameters": f"{result['parameters'] / 1e6:,.1f} M" if result.get("parameters") else "",
            "Result": _result(result),
            "Difference": f"rel. {max(o['relative_rms'] for o in result['outputs']):.1e}" if result["outputs"] else "",
        }
        for name, result in tried.items()
    ]
    return ["## timm", "", _TIMM, "", *table(("Backbone", "Family", "Parameters", "Result", "Difference"), rows)]


def _result(result: Mapping[str, Any]) -> str:
    """Return whether a model of timm was built, and why not."""
    if result["status"] == "built":
        return "verified"
    return f"{result['status']}: {result['reason']}".replace("|", r"\|")


_LEGEND = """\
Each backbone was built with loud random weights and compared with eager PyTorch on real tissue, noise, constants
and extremes, see [the catalogue](reports/catalogue.md). *Verified*: the forms that passed; those beyond ONNX and
TorchScript in fp32 were compared in [the benchmark](reports/benchmark.md), which tells their errors. Other
backbones can be built in them, too: nothing is published unverified. *Difference*, of the embedding, then of the
maps: the largest absolute one and, *rel.*, the largest root mean square relative to the output's own. *Maps*: how
many `out_indices` reaches, and the shape of the last. *Size*: weights, shared by all variants. *Gated*: the
publisher wants terms to be accepted before the download. Encoders that are not here: [what was left out, and
why](left_out.md)."""

_TIMM = """\
`timm/<name>` is any model of timm, by its name there; `list_models("timm/convnext*")` lists them. These were tried,
one by one: ONNX and TorchScript of the embedding, ONNX of the last two maps, in fp32. [The report](reports/timm.md)
counts them by family; one that is not here is verified like any other when it is built."""
