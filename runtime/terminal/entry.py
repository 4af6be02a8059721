"""The command `python -m runtime`, installed as `backbone`: its first word names what is to be done."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from runtime.arguments import parser_of

# Word -> the module whose `main` does it, and what it does. Modules are imported when their word comes.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "list": ("runtime.terminal.listing", "which backbones there are, and which of them are built"),
    "info": ("runtime.terminal.info", "one backbone: its facts, its artifacts, what would serve it and why"),
    "doctor": ("runtime.terminal.doctor", "what is wrong with this machine, and how to mend it"),
}
EXAMPLES = """examples:
  python -m runtime list "pathology/*"
  python -m runtime info pathology/kaiko_vits16
  python -m runtime doctor

`python -m runtime COMMAND --help` explains each. Installed, `backbone COMMAND` is the same.

exit status: 0 done, 1 something failed, 2 wrong usage, 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    listed = "\n".join(f"  {word:8}{what}" for word, (_, what) in COMMANDS.items())
    parser = parser_of("python -m runtime", f"Backbones, served from artifacts:\n{listed}", EXAMPLES)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=f"one of {', '.join(COMMANDS)}")
    module, _ = COMMANDS[parser.parse_args(given[:1]).command]
    status: int = import_module(module).main(given[1:])
    return status
