"""The arguments of `python -m runtime.embed`, and what each may be."""

import argparse

from runtime.arguments import DEFAULT_ARTIFACTS, above_zero, count, image_size, option, out_indices, parser_of, positive
from runtime.embedding.cluster import ENGINES
from runtime.embedding.sources import TILE_SIZE
from runtime.embedding.table import DTYPES
from runtime.manifest import INPUTS, PRECISIONS
from runtime.request import BACKENDS, ON_FALLBACK

EPILOG = """examples:
  python -m runtime.embed pathology/kaiko_vits16 tiles/ --out embeddings/
  python -m runtime.embed pathology/kaiko_vits16 tiles/ --out embeddings/ --resume     # begin, or go on
  python -m runtime.embed pathology/mahmood_uni "shards/train-{000..099}.tar" --out uni/ --precision fp16
  python -m runtime.embed pathology/kaiko_vitb16 slides/ --mpp 0.5 --out slides-vitb16/
  python -m runtime.embed pathology/kaiko_vits16 tiles/ --out maps/ --out-indices 4    # feature maps, as Zarr
  python -m runtime.embed pathology/kaiko_vitb16 /data/tiles --out /data/vitb16 --engine ray --address 10.0.0.5:6379

exit status: 0 every tile is embedded, 1 tiles could not be read (the others are embedded, these are listed in
DIR/_unreadable) or something failed, 2 wrong usage or a missing package, 130 interrupted (go on with --resume)."""


def parser_of_embed() -> argparse.ArgumentParser:
    """Return the parser of `python -m runtime.embed`."""
    parser = parser_of(
        "python -m runtime.embed",
        "Embed images with a registered backbone: a Parquet dataset of ids and embeddings.",
        EPILOG,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a registered backbone, such as pathology/kaiko_vits16")
    add("images", metavar="INPUT", help="a folder or glob of images, Parquet, tar files, an .npy array, whole slides")
    _add_output(parser.add_argument_group("output"))
    _add_input(parser.add_argument_group("input"))
    _add_model(parser.add_argument_group("model"))
    _add_cluster(parser.add_argument_group("cluster"))
    add("--batch-size", type=positive, metavar="N", help="images at once (default: 32, on GPUs 128)")
    add("--workers", type=positive, metavar="N", help="threads that decode (default: one per CPU, at most 16)")
    add("--json", action="store_true", help="print the summary as one JSON object on standard output")
    return parser


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--out", required=True, metavar="DIR", help="folder of the Parquet dataset")
    add("--resume", action="store_true", help="go on where an earlier run ended; begins where none has")
    add("--overwrite", action="store_true", help="discard what DIR holds")
    add("--dtype", choices=DTYPES, default="float32", help="of the numbers in DIR (default: float32)")
    add("--part-tiles", type=positive, metavar="N", help="tiles of a Parquet file (default: 8192); a crash costs one")
    add(
        "--allow-unreadable",
        type=count,
        default=0,
        metavar="N",
        help="exit status 0 with up to N unreadable tiles in DIR (default: 0)",
    )


def _add_input(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--image-column", metavar="NAME", help="Parquet: column of images or paths; tar: extension of the images")
    add("--id-column", metavar="NAME", help="Parquet: column of ids, none to number the rows")
    add("--tile-size", type=positive, metavar="N", help=f"slides: side of a tile in pixels (default: {TILE_SIZE})")
    add("--mpp", type=above_zero, metavar="X", help="slides: microns per pixel of a tile")
    add(
        "--slide-mpp", type=above_zero, metavar="X", help="slides that do not say: microns per pixel at full resolution"
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--backend", choices=BACKENDS, help="default: auto, the fastest that can serve")
    add("--precision", choices=PRECISIONS, help="default: fp32")
    add("--device", metavar="D", help="cpu, cuda, cuda:1 (default: cuda where it starts)")
    add("--out-indices", type=out_indices, default=(None,), metavar="WHICH", help="feature maps: 2 the last two; -2,-4")
    add("--input", choices=INPUTS, help="uint8: normalise inside the graph, where it was built for that")
    add("--artifacts", metavar="DIR", help=f"built artifacts ({DEFAULT_ARTIFACTS})")
    add("--on-fallback", choices=ON_FALLBACK, help="when there is no artifact: warn and use eager torch, or error")
    add("--weights", metavar="W", help="pretrained (default), random, checkpoint:<digits>")
    add("--seed", type=int, metavar="N", help="of random weights")
    add("--checkpoint-path", metavar="FILE", help="published weights from a local file")
    add("--image-size", type=image_size, metavar="N|HxW", help="pixels; default: the publisher's size")
    add("--threads", type=positive, metavar="N", help="CPU threads of inference (default: every CPU)")
    add(
        "--option",
        action="append",
        default=[],
        type=option,
        metavar="NAME=VALUE",
        help="any other keyword of load_model, or of the backbone itself (repeatable; VALUE as JSON)",
    )
    add("--import", action="append", default=[], dest="imports", metavar="MODULE", help="registers further backbones")


def _add_cluster(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--engine", choices=ENGINES, help="local (default), or ray: actors that all see INPUT and DIR at these paths")
    add("--address", metavar="HOST:PORT", help="of the Ray cluster's head (default: the one running here, else none)")
    add("--actors", type=positive, metavar="N", help="how many (default: what fits: one per GPU, or per 8 CPUs)")
    add("--cpus-per-actor", type=positive, metavar="N", help="threads of an actor's session (default: share of a node)")
