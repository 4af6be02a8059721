"""`python -m runtime.embed`. Imported, it can be called as the function `runtime.embed`."""

import sys

if __name__ == "__main__":
    from runtime.embedding.entry import main

    sys.exit(main())

from runtime.callable_module import stand_in
from runtime.embedding.run import embed

stand_in(__name__, embed)
