"""What `out_indices` means, worked out without torch.

`None` is the embedding; an int n is the last n feature maps; a sequence names blocks, counted from the start or
(negative) from the end. Maps come in ascending block order and duplicates collapse, as in timm.
"""

from collections.abc import Sequence

from runtime.errors import OutIndicesError

OutIndices = int | Sequence[int] | None
# None, or ascending block indices; negative (counted from the end) wherever the depth is known or not needed.
Canonical = tuple[int, ...] | None


def canonical(out_indices: OutIndices, depth: int | None) -> Canonical:
    """Return the one spelling that all equal requests share.

    With a known depth every index counts from the end: for 12 blocks `2`, `(-1, -2)` and `[10, 11]` all give
    `(-2, -1)`.

    Raises:
        OutIndicesError: The value is 0, empty, out of range or of the wrong type.
    """
    if out_indices is None:
        return None
    if isinstance(out_indices, bool) or not isinstance(out_indices, int | Sequence) or isinstance(out_indices, str):
        written = " In YAML and in environment variables a list is written [-4, -2]." * isinstance(out_indices, str)
        raise OutIndicesError(
            f"out_indices={out_indices!r} is neither None, an int nor a sequence of ints. {_USAGE}{written}"
        )
    if isinstance(out_indices, int):
        return _last(out_indices, depth)
    return _blocks(out_indices, depth)


_USAGE = "Use None for the embedding, n for the last n maps, or block indices such as (-2, -4)."


def _last(count: int, depth: int | None) -> tuple[int, ...]:
    limit = depth if depth is not None else count
    if not 1 <= count <= limit:
        reach = f"1 to {depth}" if depth is not None else "at least 1"
        raise OutIndicesError(f"out_indices={count}: the number of last feature maps is {reach}. {_USAGE}")
    return tuple(range(-count, 0))


def _blocks(indices: Sequence[int], depth: int | None) -> tuple[int, ...]:
    if not indices or any(isinstance(i, bool) or not isinstance(i, int) for i in indices):
        raise OutIndicesError(f"out_indices={indices!r} must hold one or more ints. {_USAGE}")
    if depth is None:
        return tuple(dict.fromkeys(indices))
    wrong = [i for i in indices if not -depth <= i < depth]
    if wrong:
        raise OutIndicesError(
            f"out_indices={tuple(indices)}: {', '.join(map(str, wrong))} out of range. The backbone has {depth} "
            f"blocks: 0 to {depth - 1}, or -{depth} to -1."
        )
    return tuple(sorted({i if i < 0 else i - depth for i in indices}))


def label(indices: Canonical) -> str:
    """Return the shortest spelling a user would type: `embedding`, `4` or `-4,-2`."""
    if indices is None:
        return "embedding"
    if indices == tuple(range(-len(indices), 0)):
        return str(len(indices))
    return ",".join(map(str, indices))


def flag(indices: Canonical) -> str:
    """Return the option of `exporters.build` that asks for these outputs."""
    return f"--out-indices={'none' if indices is None else label(indices)}"
