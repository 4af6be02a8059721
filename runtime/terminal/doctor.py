"""Command line: `python -m runtime doctor`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from runtime.arguments import add_common, import_modules, parser_of
from runtime.doctor.checks import examine
from runtime.doctor.examination import gather
from runtime.doctor.verdict import FAIL, WARN, Finding
from runtime.terminal.output import say, say_json
from runtime.terminal.status import exit_status

EPILOG = """examples:
  python -m runtime doctor
  python -m runtime doctor --hash --artifacts /data/artifacts     # every published byte, too
  HF_HUB_OFFLINE=1 python -m runtime doctor                       # without asking the hub
  python -m runtime doctor --json | jq 'select(.status != "PASS")'

Libraries are tried in processes of their own. Nothing is changed.

exit status: 0 no FAIL (WARN is no failure), 1 at least one FAIL, 2 wrong usage, 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    description = "Find out what is wrong with this machine and its artifacts, and say how to mend it."
    parser = parser_of("python -m runtime doctor", description, EPILOG)
    parser.add_argument("--hash", action="store_true", help="compare the SHA-256 of every published file, not its size")
    add_common(parser, "one JSON object per finding")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    import_modules(options.imports)
    findings = examine(gather(options.artifacts, full=options.hash))
    for finding in findings:
        if options.json:
            say_json(asdict(finding))
        else:
            say(line(finding))
    failed = sum(finding.status == FAIL for finding in findings)
    if not options.json:
        warned = sum(finding.status == WARN for finding in findings)
        say(f"\n{failed} FAIL, {warned} WARN, {len(findings) - failed - warned} PASS")
    return 1 if failed else 0


def line(finding: Finding) -> str:
    """Return a finding as it is printed, its fix on a line below."""
    indent = "\n" + " " * 19
    told = f"{finding.status}  {finding.topic:12} {finding.says}".replace("\n", indent)
    return told + f"{indent}fix: " + finding.fix.replace("\n", indent + "     ") if finding.fix else told
