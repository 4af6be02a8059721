"""The table of weights inside an artifact of torch. Standard library only: building reads it without torch."""

# Name inside the archive. Per tensor: [file, offset in bytes, shape, whether it is stored transposed, dtype].
TABLE = "weights.json"
Row = tuple[str, int, list[int], bool, str]
