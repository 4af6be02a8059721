"""The arguments of `python -m exporters.build`, and what each may be."""

import argparse
from functools import partial

from exporters.plan import DEFAULT_FORMATS, FORMATS
from runtime.arguments import DEFAULT_ARTIFACTS, image_size, option, out_indices, parser_of, positive
from runtime.manifest import INPUTS, PRECISIONS, TARGETS

EPILOG = """examples:
  python -m exporters.build pathology/kaiko_vits16                    # the published weights
  python -m exporters.build "universal/*_random" --out-indices none --out-indices 2
  python -m exporters.build pathology/kaiko_vitb16 --precision fp32,fp16,bf16,int8 --input float32,uint8
  python -m exporters.build timm/convnext_tiny.in12k_ft_in1k          # any model of timm
  python -m exporters.build pathology/mahmood_uni --checkpoint-path pytorch_model.bin
  python -m exporters.build --all --weights random --exclude "*gigapath*" --dry-run

exit status: 0 everything asked for is published and verified, 1 something failed (the rest is published),
2 wrong usage, a missing package or a name that matches nothing, 130 interrupted (run it again to go on)."""


def parser_of_build() -> argparse.ArgumentParser:
    """Return the parser of `python -m exporters.build`."""
    parser = parser_of(
        "python -m exporters.build",
        "Export backbones, verify the artifacts against eager PyTorch, publish them.",
        EPILOG,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME|GLOB", help="registered backbones, such as pathology/kaiko_vits16")
    add("--all", action="store_true", help="every registered backbone")
    add("--exclude", action="append", default=[], metavar="GLOB", help="leave these out (repeatable)")
    add(
        "--out-indices",
        action="append",
        type=out_indices,
        metavar="WHICH",
        help="repeatable: none (the embedding), 2 (the last two maps), -2,-4 (those blocks); default: none, 1 and 4",
    )
    add(
        "--format",
        type=partial(_several, FORMATS),
        default=DEFAULT_FORMATS,
        metavar="F,F",
        help="onnx, torchscript and pt2 (compiled by AOTInductor); default: onnx,torchscript",
    )
    add(
        "--target",
        type=partial(_several, TARGETS),
        metavar="T,T",
        help="default: cpu,cuda (pt2 for cuda where there is a GPU to compile it on)",
    )
    add(
        "--precision",
        type=partial(_several, PRECISIONS),
        default=("fp32",),
        metavar="P,P",
        help="fp32, fp16 (for cuda), bf16, int8 (for cpu); what a target does not have is left out; default: fp32",
    )
    add(
        "--input",
        type=partial(_several, INPUTS),
        default=("float32",),
        metavar="I,I",
        help="float32 (normalised NCHW) and uint8 (images NHWC, normalised in the ONNX graph); default: float32",
    )
    add(
        "--calibration",
        metavar="FOLDER|none",
        help="images that int8 ranges are measured on, none for ranges of each batch; default: bundled tissue",
    )
    add("--weights", choices=("pretrained", "random"), default="pretrained", help="default: pretrained")
    add("--checkpoint-path", metavar="FILE", help="weights of the one backbone named: a local file, no network needed")
    add("--seed", type=int, default=0, help="of random weights (default: 0)")
    add(
        "--image-size",
        type=image_size,
        metavar="N|HxW|dynamic",
        help="pixels (DxHxW of a volume); default: the publisher's size",
    )
    add("--option", action="append", default=[], type=option, metavar="NAME=VALUE", help="the backbone's own option")
    add(
        "--artifacts",
        metavar="DIR",
        help=f"where to publish ({DEFAULT_ARTIFACTS})",
    )
    add("--import", action="append", default=[], dest="imports", metavar="MODULE", help="registers further backbones")
    add("--jobs", type=positive, default=1, metavar="N", help="models built at once (default: 1)")
    add("--timeout", type=positive, metavar="SECONDS", help="kill a variant that takes longer")
    add("--max-params", type=parameter_count, metavar="N", help="skip what has more parameters, such as 500M or 1.2B")
    add("--force", action="store_true", help="build what is up to date, too")
    add("--fail-fast", action="store_true", help="stop at the first failure")
    add("--dry-run", action="store_true", help="say what would be built, and why")
    add("--json", action="store_true", help="one JSON object per artifact on standard output")
    return parser


def _several(allowed: tuple[str, ...], text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(text.split(",")))
    if unknown := [value for value in chosen if value not in allowed]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)!r} is none of {', '.join(allowed)}")
    return chosen


def parameter_count(text: str) -> int:
    """Return the number that a user wrote as 500M or 1.2B."""
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper(), 1)
    try:
        count = round(float(text if factor == 1 else text[:-1]) * factor)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of parameters, such as 500M or 1.2B")
    return count
