"""`python -m runtime.embed` and `backbone-embed`: Ctrl-C ends them in a line, also while all else is being imported."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command on what was typed; return its exit status."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        # Not KeyboardInterrupt: libraries turn one that comes while they are imported into errors of their own.
        signal.signal(signal.SIGINT, _leave)
    from runtime.embedding.command import main as run  # takes most of a second

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    sys.stderr.write("interrupted: nothing was begun\n")
    sys.stderr.flush()
    os._exit(130)
