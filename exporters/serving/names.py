"""What a backbone is called in a model repository. Pure."""

import re
from dataclasses import replace

from runtime.errors import OptionError
from runtime.out_indices import Canonical
from runtime.request import Request

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def name_of(request: Request) -> str:
    """Return the name that a request's model has in a repository: the same for the same inputs and outputs."""
    parts = [request.spec.name.replace("/", "--"), *_maps(request.canonical)]
    if request.precision != "fp32":
        parts.append(request.precision)
    if request.input != "float32":
        parts.append(request.input)
    size = request.size
    if size != replace(request, image_size=None).size:
        parts.append(size if isinstance(size, str) else "x".join(map(str, size)))
    if request.weights_key.startswith("random"):
        parts.append("random")
    return "--".join(parts)


def _maps(indices: Canonical) -> list[str]:
    if indices is None:
        return []
    if indices == tuple(range(-len(indices), 0)):
        return [f"last{len(indices)}"]
    return ["blocks" + "_".join(map(str, indices))]


def check_name(name: str) -> None:
    """Raise unless `name` can be a model's: one folder, and one part of a URL.

    Raises:
        OptionError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"--name={name!r} cannot be the name of a model in Triton: it is a folder's name and a part of URLs. Use "
            "letters, digits, '.', '_' and '-', the first a letter, a digit or '_', 200 at most."
        )
