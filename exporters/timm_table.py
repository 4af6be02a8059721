"""Write the table of timm's architectures and pretrained tags: `python -m exporters.timm_table`.

Every architecture of the installed timm is built on the meta device; that takes minutes. `runtime` reads the table
where neither timm nor torch is installed. Run it for a new timm release and commit what it wrote.
"""

import sys
import warnings
from importlib.metadata import version

from runtime.arguments import parser_of
from runtime.backbones import timm_installed, timm_table


def main() -> int:
    """Write the table; return 0."""
    parser_of("python -m exporters.timm_table", __doc__.splitlines()[0]).parse_args()
    warnings.simplefilter("ignore")
    names = timm_installed.names()
    known = {}
    for count, name in enumerate(names, 1):
        print(f"\r{count}/{len(names)} {name:60}", end="", file=sys.stderr)
        known[name] = timm_installed.describe(name)
    timm_table.TABLE.write_text(timm_table.to_json(known, version("timm")), encoding="utf-8")
    print(f"\n{timm_table.TABLE}: {len(known)} architectures", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
