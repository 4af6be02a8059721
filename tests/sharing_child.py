"""Runs the commands that share artifacts, one after the other, as the lines on standard input say; see sharing_client.

Started as a script. Nothing that serving must not need can be imported here unless `HEAVY` is set.
"""

import contextlib
import io
import json
import os
import resource
import sys
import time
import traceback
import warnings
from typing import Any

from environments import BLOCK

if "HEAVY" not in os.environ:
    exec(BLOCK)

import numpy as np
import plugin  # noqa: F401  (registers test/tiny_vit)
from huggingface_hub import constants

import runtime
from exporters import push
from runtime.sharing import command as pull_command
from runtime.terminal import info


def load(name: str, options: dict[str, Any]) -> int:
    """Load a backbone, run it, print what served."""
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backbone = runtime.load_model(name, **options)
    outputs = backbone(images)
    told = {
        "backend": backbone.backend,
        "warnings": [str(w.message) for w in caught],
        "artifacts": backbone._request.artifacts,
        "output": [o.tolist() for o in outputs] if isinstance(outputs, list) else outputs.tolist(),
    }
    print(json.dumps(told))
    return 0


def pull(repository: str, options: dict[str, Any]) -> int:
    """Call the Python function."""
    print(json.dumps([[done.model, done.status, done.commit] for done in runtime.pull(repository, **options)]))
    return 0


COMMANDS = {
    "push": lambda *arguments: push.main(arguments),
    "pull": lambda *arguments: pull_command.main(arguments),
    "info": lambda *arguments: info.main(arguments),
    "load": load,
    "runtime.pull": pull,
}


def run(what: str, arguments: list[Any]) -> int | str:
    """Return the exit status, or what was raised."""
    try:
        return COMMANDS[what](*arguments)
    except SystemExit as leave:
        return int(leave.code or 0)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def main() -> None:
    time.sleep = lambda seconds: None  # nobody waits between tries
    constants.DOWNLOAD_CHUNK_SIZE = 1000  # what it has written it need not ask for again
    for line in sys.stdin:
        what, arguments, limit = json.loads(line)
        out, err = io.StringIO(), io.StringIO()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(what, arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)


if __name__ == "__main__":
    main()
