"""`make demo`: two registered names, built, verified and served without torch in the process, on real tissue.

Builds `universal/vit_small_patch16_224_random` and `universal/vit_tiny_patch16_224_random` as ONNX and TorchScript,
serves them, compares every backend with eager torch on tiles of scikit-image's immunohistochemistry example, and draws
the last feature map of the small one (first three principal components as red, green and blue) beside the image.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from benchmarks.contender import WITHOUT_TORCH, Contender, runners
from benchmarks.turns import in_turns
from exporters import build, display
from runtime import registry
from runtime.arguments import parser_of, positive
from runtime.preprocess import preprocess

MODELS = ("universal/vit_small_patch16_224_random", "universal/vit_tiny_patch16_224_random")
TILE = 224
# The image is enlarged to this many tiles a side: a finer grid of patches to look at.
GRID = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; return its exit status."""
    parser = parser_of("python -m benchmarks.demo", __doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where the picture goes (default: demo/)")
    parser.add_argument("--rounds", type=positive, default=5, help="timed rounds (default: 5)")
    options = parser.parse_args(arguments)
    variants = ["--out-indices", "none", "--out-indices", "2"]
    if status := build.main([*MODELS, *variants]):
        return status
    picture = tissue()
    out = display.console()
    table = _table()
    for model in MODELS:
        for out_indices in (None, 2):
            maps = _compare(model, out_indices, picture, options.rounds, table)
            if model == MODELS[0] and out_indices == 2:
                path = draw(picture, maps[-1], options.out)
    out.print()
    out.print(table)
    out.print(f"\nThe onnx processes could not import {', '.join(WITHOUT_TORCH[:3])}, ... Feature maps: {path}")
    return 0


def tissue() -> Image.Image:
    """Return a real histology image: colon, stained with DAB and haematoxylin."""
    import skimage.data

    side = GRID * TILE
    picture = Image.fromarray(skimage.data.immunohistochemistry())  # type: ignore[no-untyped-call]
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def tiles(picture: Image.Image) -> list[Image.Image]:
    """Return the picture's tiles, row by row."""
    corners = [(TILE * column, TILE * row) for row in range(GRID) for column in range(GRID)]
    return [picture.crop((left, top, left + TILE, top + TILE)) for left, top in corners]


def _compare(
    model: str, out_indices: int | None, picture: Image.Image, rounds: int, table: Table
) -> list[NDArray[np.float32]]:
    """Add a row per backend to the table; return the outputs of the process without torch."""
    images = preprocess(tiles(picture), registry.find(model).preprocessing)
    outputs_asked: dict[str, Any] = {} if out_indices is None else {"out_indices": out_indices}
    contenders = [
        Contender("eager", model, {"backend": "eager", **outputs_asked}),
        Contender("torchscript", model, {"backend": "torchscript", **outputs_asked}),
        Contender("onnx", model, {"backend": "onnx", **outputs_asked}, blocked=WITHOUT_TORCH),
    ]
    with runners(contenders) as made:
        results = {label: runner.run(images)[1] for label, runner in made.items()}
        seconds = in_turns(made, images, rounds)
        for label, runner in made.items():
            if label == "onnx" and runner.about["torch_imported"]:
                raise RuntimeError("torch was imported in the process that must not have it")
            difference = max(float(np.abs(a - b).max()) for a, b in zip(results[label], results["eager"], strict=True))
            speedup = median(e / s for e, s in zip(seconds["eager"], seconds[label], strict=True))
            table.add_row(
                model,
                f"{runner.about['backend']} on {runner.about['device']}",
                " ".join(str(list(output.shape)) for output in results[label]),
                "reference" if label == "eager" else f"{difference:.1e}",
                f"{1000 * median(seconds[label]) / len(images):.1f}",
                f"{speedup:.2f}x",
            )
    return results["onnx"]


def _table() -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("MODEL", "BACKEND", "SHAPE", "MAX DIFF TO EAGER", "MS PER IMAGE", "SPEED-UP"):
        table.add_column(header, no_wrap=True)
    return table


def draw(picture: Image.Image, maps: NDArray[np.float32], folder: Path) -> Path:
    """Write the picture beside its feature map's first three principal components as RGB; return the file."""
    colours = Image.fromarray(principal_components(maps)).resize(picture.size, Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (2 * picture.width + 16, picture.height), "white")
    sheet.paste(picture, (0, 0))
    sheet.paste(colours, (picture.width + 16, 0))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "feature_maps.png"
    sheet.save(path)
    return path


def principal_components(maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3] for the maps [tiles, C, h, w] of a grid of tiles."""
    _, channels, height, width = maps.shape
    grid = maps.reshape(GRID, GRID, channels, height, width).transpose(0, 3, 1, 4, 2)
    tokens = grid.reshape(-1, channels).astype(np.float64)
    tokens -= tokens.mean(0)
    components = tokens @ np.linalg.svd(tokens, full_matrices=False)[2][:3].T
    low, high = np.percentile(components, (2, 98), axis=0)
    scaled = np.clip((components - low) / (high - low), 0, 1)
    colours: NDArray[np.uint8] = (255 * scaled).astype(np.uint8)
    return colours.reshape(GRID * height, GRID * width, 3)


if __name__ == "__main__":
    sys.exit(main())
