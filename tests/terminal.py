"""Commands, as a terminal sees them: what they print, and how they end."""

import contextlib
import io
from collections.abc import Callable, Sequence

from builds import Ran


def run(main: Callable[[Sequence[str]], int], *arguments: object) -> Ran:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as leave:
            status = int(leave.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())
