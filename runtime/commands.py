"""A request in the words of a user: the command that builds its artifact, the call that loads it. Standard library."""

import json
import shlex
from pathlib import Path
from typing import Any

from runtime.artifacts import default_root
from runtime.manifest import Form
from runtime.out_indices import flag
from runtime.request import Request
from runtime.sharing.address import is_address


def build_command(request: Request, form: Form) -> str:
    """Return the shell command that builds the artifact which answers `request` in `form`."""
    command = ["python", "-m", "exporters.build", request.spec.name, f"--format={form.format}"]
    if form.target != "any":
        command.append(f"--target={form.target}")
    if form.precision != "fp32":
        command.append(f"--precision={form.precision}")
    if form.input != "float32":
        command.append(f"--input={form.input}")
    command.append(flag(request.canonical))
    if request.weights_key.startswith("random"):
        command += ["--weights=random", f"--seed={request.seed}"]
    if request.weights_key.startswith("checkpoint"):
        command.append(f"--checkpoint-path={request.checkpoint_path or 'FILE'}")
    if request.image_size is not None:
        size = request.size
        command.append(f"--image-size={size if isinstance(size, str) else 'x'.join(map(str, size))}")
    for name, value in request.options.items():
        command.append(f"--option={name}={value if isinstance(value, str) else json.dumps(value)}")
    module = request.spec.build.__module__
    if module != "__main__" and not module.startswith("runtime.backbones."):
        command.append(f"--import={module}")
    if request.artifacts is not None and not is_address(request.artifacts):
        command.append(f"--artifacts={request.artifacts}")
    return shlex.join(command)


def load_call(request: Request, form: Form, backend: str | None = None) -> str:
    """Return the call that loads the artifact which answers `request` in `form`, by its first backend or this one."""
    given: dict[str, Any] = {"backend": backend or form.backends[0]}
    if request.device is not None:
        given["device"] = request.device
    if form.precision != "fp32":
        given["precision"] = form.precision
    if form.input != "float32":
        given["input"] = form.input
    if request.out_indices is not None:
        given["out_indices"] = request.out_indices
    if request.weights_key.startswith("random"):
        given |= {"weights": "random"} | ({"seed": request.seed} if request.seed else {})
    if request.weights_key.startswith("checkpoint"):
        given["weights"] = request.weights_key
    if request.image_size is not None:
        given["image_size"] = request.image_size
    given |= request.options
    if request.artifacts is not None and Path(request.artifacts) != default_root():
        given["artifacts"] = request.artifacts
    arguments = [repr(request.spec.name), *(f"{name}={value!r}" for name, value in given.items())]
    return f"runtime.load_model({', '.join(arguments)})"
