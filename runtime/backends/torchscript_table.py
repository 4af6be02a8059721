"""The table of weights inside a TorchScript artifact. Standard library only: building reads it without torch."""

# Name inside the archive. Per parameter: [file, offset in bytes, shape, whether it is stored transposed]; float32.
TABLE = "weights.json"
Row = tuple[str, int, list[int], bool]
