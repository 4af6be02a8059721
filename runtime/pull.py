"""Command line: `python -m runtime.pull`. Imported, it can be called as the function `runtime.pull`."""

import sys

if __name__ == "__main__":
    from runtime.sharing.command import main

    sys.exit(main())

from runtime.callable_module import stand_in
from runtime.sharing.pulling import pull

stand_in(__name__, pull)
