"""What listing the registry costs beyond starting Python."""

import statistics
import subprocess
import sys
import time

from benchmarks.figure import Figure

GOAL_SECONDS = 0.15


def measure(rounds: int) -> Figure:
    """Return the median seconds of `import runtime; list_models()` beyond those of an empty program, in turns."""
    empty, listing = [], []
    for _ in range(rounds):
        empty.append(_seconds("pass"))
        listing.append(_seconds("import runtime; runtime.list_models()"))
    beyond = statistics.median(listing) - statistics.median(empty)
    return Figure(
        name="import runtime; list_models()",
        goal=f"less than {GOAL_SECONDS} s beyond the interpreter's start",
        reached=beyond < GOAL_SECONDS,
        measured=f"{beyond:.3f} s",
        data={"empty_seconds": empty, "listing_seconds": listing},
    )


def _seconds(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - started
