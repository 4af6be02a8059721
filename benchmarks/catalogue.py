"""Build registered backbones with random weights and record time, memory, disk and parity of each.

Writes benchmarks/reports/catalogue.jsonl (one line per variant; what is recorded for these versions is not built again)
and catalogue.md. `python -m benchmarks.support_matrix` makes the list of backbones from the same records.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.catalogue_report import LEDGER, form_of, read_ledger, write_report
from exporters.arguments import parameter_count
from exporters.plan import DEFAULT_FORMATS
from exporters.staleness import versions
from runtime import list_models
from runtime.arguments import parser_of
from runtime.artifacts import Store, open_store
from runtime.manifest import Artifact
from runtime.out_indices import label
from runtime.registry import find

Record = dict[str, Any]
# As the manifest spells them: drawn from seed 0, or the library's own where nothing is published.
WEIGHTS = ("random:0", "initial:0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is not recorded yet; return 0 when nothing failed."""
    options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    store = open_store(options.artifacts)
    failed = False
    for model in list_models(options.names or "*"):
        if variants := _outstanding(model, options.out_indices or ["none", "1", "4"]):
            print(f"{model} [{'] ['.join(variants)}] ...", file=sys.stderr, flush=True)
            records = _build(model, variants, store, options.max_params)
            failed |= any(o["status"] == "failed" for record in records for o in record["outcomes"])
            with LEDGER.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, sort_keys=True) + "\n" for record in records)
        if options.discard:
            shutil.rmtree(store.folder(model), ignore_errors=True)
    write_report(list_models())
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("python -m benchmarks.catalogue", __doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="GLOB", help="default: every registered backbone")
    parser.add_argument("--artifacts", metavar="DIR", help="store to build into")
    parser.add_argument("--out-indices", action="append", metavar="WHICH", help="repeatable; default: none, 1 and 4")
    parser.add_argument("--max-params", type=parameter_count, metavar="N", help="as of exporters.build")
    parser.add_argument("--discard", action="store_true", help="delete each model's artifacts once they are recorded")
    return parser


def _outstanding(model: str, variants: Iterable[str]) -> list[str]:
    now = _versions(model)
    recorded = {(r["model"], r["variant"]) for r in read_ledger() if r["versions"] == now and _settled(r)}
    spelled = {"none": "embedding"}
    return [variant for variant in variants if (model, spelled.get(variant, variant)) not in recorded]


def _versions(model: str) -> dict[str, dict[str, str]]:
    return {format: versions(format, find(model)) for format in DEFAULT_FORMATS}


def _settled(record: Record) -> bool:
    return all(outcome["status"] == "built" for outcome in record["outcomes"])


def _build(model: str, variants: list[str], store: Store, max_params: int | None) -> list[Record]:
    command = [sys.executable, "-m", "exporters.build", model, "--weights=random", "--json", "--force"]
    command += [f"--artifacts={store.root}", *(f"--out-indices={variant}" for variant in variants)]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, *([f"--max-params={max_params}"] if max_params else [])], capture_output=True, text=True
    )
    wall = time.perf_counter() - started
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    if not outcomes:
        note = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        outcomes = [{"variant": "embedding", "format": "", "status": "failed", "note": note, "seconds": wall}]
    labels = list(dict.fromkeys(outcome["variant"] for outcome in outcomes))
    records = [_record(model, label, [o for o in outcomes if o["variant"] == label], store) for label in labels]
    # Starting up belongs to the first variant, so that the sum is the time that really passed.
    records[0]["seconds"] = round(records[0]["seconds"] + wall - sum(r["seconds"] for r in records), 1)
    return records


def _record(model: str, variant: str, outcomes: list[Record], store: Store) -> Record:
    """Return the outcomes of a variant, and what the manifest tells of its artifacts."""
    built = {form_of(o) for o in outcomes if o["status"] == "built"}
    artifacts = [
        a
        for a in store.read(model).artifacts
        if form_of(a.key.to_json()) in built and label(a.key.out_indices) == variant and a.key.weights in WEIGHTS
    ]
    return {
        "model": model,
        "variant": variant,
        "seconds": max(o["seconds"] for o in outcomes),
        "versions": _versions(model),
        "outcomes": [{k: v for k, v in o.items() if k not in ("model", "variant", "detail")} for o in outcomes],
        "parameters": max((a.facts["parameters"] for a in artifacts), default=None),
        "image_size": next((list(a.key.image_size) for a in artifacts), None),
        "outputs": {form_of(a.key.to_json()): _outputs(a) for a in artifacts},
        "files": {file.name: file.bytes for a in artifacts for file in a.files},
    }


def _outputs(artifact: Artifact) -> list[Record]:
    parities = artifact.facts["parity"]["outputs"]
    return [{"shape": list(tensor.shape), **parity} for tensor, parity in zip(artifact.outputs, parities, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
