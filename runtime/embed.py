"""`python -m runtime.embed`. Never imported: `runtime.embed` is the function of the same name."""

import sys

from runtime.embedding.command import main

if __name__ == "__main__":
    sys.exit(main())
