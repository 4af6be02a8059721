"""How a command ends: one place where errors become exit statuses."""

import os
import sys
from collections.abc import Callable

from runtime.errors import BackboneError, OptionError, OutIndicesError, UnknownModelError
from runtime.terminal.output import complain, remark

# What the user typed cannot be meant.
WRONG_USAGE = (UnknownModelError, OptionError, OutIndicesError)


def exit_status(work: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Return what `work` returns; 1 for an error of this project, 2 for wrong usage, 130 for Ctrl-C.

    Args:
        work: The command.
        interrupted: What is told after Ctrl-C.
    """
    try:
        status = work()
        sys.stdout.flush()
    except WRONG_USAGE as error:
        complain(error)
        return 2
    except BackboneError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        remark(interrupted)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
