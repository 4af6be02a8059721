"""`runtime.embed` and `runtime.pull` are functions, and modules that run as commands: either can be called."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["embed", "pull"])
def test_what_has_been_imported_as_a_module_is_still_called_as_the_function(name: str) -> None:
    code = f"""
import pkgutil, importlib, inspect, runtime
function = runtime.{name}
assert "runtime.{name}" in [one.name for one in pkgutil.iter_modules(runtime.__path__, "runtime.")]
module = importlib.import_module("runtime.{name}")
assert inspect.ismodule(module) and runtime.{name} is module
assert callable(module)
assert inspect.signature(module) == inspect.signature(function)
from runtime import {name}
from runtime.errors import BackboneError
try:
    {name}("no such thing", "nowhere")
except (BackboneError, TypeError) as error:
    print(type(error).__name__)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert ran.stderr == ""
    assert ran.stdout.strip() in ("InputError", "HubError", "OptionError")
