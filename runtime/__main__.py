"""Command line: `python -m runtime`. State lives elsewhere: this file is loaded as `__main__`."""

import sys

from runtime.terminal.entry import main

if __name__ == "__main__":
    sys.exit(main())
