"""Write a report of `python -m benchmarks.run` as Markdown and plots; `python -m benchmarks.render REPORT.json` again.

The plots need matplotlib, which is not needed to measure: a report can be carried to where it is.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.run_markdown import markdown
from runtime.arguments import parser_of
from runtime.machine import installed


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the Markdown and the plots of a report; return the exit status."""
    parser = parser_of("python -m benchmarks.render", __doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="the .json that python -m benchmarks.run wrote")
    options = parser.parse_args(arguments)
    try:
        lines = render(options.report)
    except results.ReportError as error:
        parser.error(str(error))
    print("\n".join(lines))
    return 0


def render(report: Path) -> list[str]:
    """Write Markdown and plots beside a report; return what was written, or not and why.

    Raises:
        ReportError: It cannot be read.
    """
    read = results.read(report)
    plots: list[Path] = []
    said: list[str] = []
    if installed("matplotlib"):
        from benchmarks import plots as drawing

        plots = drawing.draw(read, report.with_suffix(""))
    else:
        said.append(f"No plots: matplotlib is not installed. Where it is: python -m benchmarks.render {report}")
    text = report.with_suffix(".md")
    text.write_text(markdown(read, [plot.name for plot in plots]), encoding="utf-8")
    return [f"Report: {text}", *(f"Plot: {plot}" for plot in plots), *said]


if __name__ == "__main__":
    sys.exit(main())
