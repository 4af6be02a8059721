"""What a comparison of two reports says of one contender."""

from dataclasses import dataclass

FAILING = ("slower", "gone", "less exact", "slower load", "slower start", "more memory")


@dataclass(frozen=True)
class Finding:
    """What became of a contender: one of `FAILING`, or `within noise`, `faster`, `same`, `new`, `not compared`."""

    what: str
    verdict: str
    detail: str
