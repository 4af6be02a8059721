"""A configuration on disk begins with the SHA-256 of what follows, so that a change by hand is seen. Pure."""

import hashlib

_HEAD = "# Written by python -m exporters.triton. SHA-256 of all that follows: "


def sign(text: str) -> str:
    """Return the text of a file whose first line says what the others were."""
    return f"{_HEAD}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def is_as_written(signed: str) -> bool:
    """Return whether a file is still what `sign` made."""
    return sign(signed.partition("\n")[2]) == signed
