"""Command line: `python -m runtime.pull`. Never imported: `runtime.pull` is the function of that name."""

import sys

from runtime.sharing.command import main

if __name__ == "__main__":
    sys.exit(main())
