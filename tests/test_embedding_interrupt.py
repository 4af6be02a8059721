"""Ctrl-C before a run has begun: one line and status 130, whatever is being imported."""

import subprocess
import sys

import pytest

# Sends the signal when a module is looked for.
CODE = """
import os, runpy, signal, sys
class At:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, {handler})
sys.meta_path.insert(0, At())
sys.argv = ["embed", "test/nothing", "nowhere", "--out", "out"]
{start}
"""
AS_MODULE = "runpy.run_module('runtime.embed', run_name='__main__')"
AS_SCRIPT = "from runtime.embedding.entry import main; sys.exit(main())"


def started(module: str, start: str, handler: str = "signal.default_int_handler") -> subprocess.CompletedProcess[str]:
    code = CODE.format(module=module, start=start, handler=handler)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("start", [AS_MODULE, AS_SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize("module", ["numpy", "numpy.linalg", "PIL", "runtime.embedding.run"])
def test_an_interrupt_while_modules_are_imported_ends_in_a_line(module: str, start: str) -> None:
    ran = started(module, start)

    assert (ran.returncode, ran.stdout) == (130, "")
    assert ran.stderr == "interrupted: nothing was begun\n"


def test_an_interrupt_while_the_command_is_read_ends_in_a_line() -> None:
    ran = started("rich.console", AS_MODULE)  # after the arguments were parsed

    assert (ran.returncode, ran.stdout) == (130, "")
    assert ran.stderr == "interrupted: what was published stays; run the same command with --resume to go on\n"


def test_who_ignores_interrupts_is_not_interrupted() -> None:
    ran = started("numpy", AS_MODULE, "signal.SIG_IGN")  # as background jobs of a shell do

    assert ran.returncode == 1
    assert "There is no nowhere" in ran.stderr
