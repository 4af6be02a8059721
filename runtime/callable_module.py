"""A command that has the name of a function of `runtime`: imported, its module takes the function's place there.

`python -m runtime.embed` needs a module of that name, and importing it (as pkgutil, doctest and documentation tools do)
binds it to `runtime.embed`, which until then was the function. So the module can be called as the function is.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def stand_in(name: str, function: Callable[..., Any]) -> None:
    """Make the module called `name` callable: calling it calls `function`, and it has its signature."""
    module = sys.modules[name]
    module.__class__ = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function)})
    module.__dict__["__wrapped__"] = function  # what inspect.signature and help follow
