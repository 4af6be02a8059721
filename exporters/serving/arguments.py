"""The arguments of `python -m exporters.triton`, and what each may be."""

import argparse

from runtime.arguments import DEFAULT_ARTIFACTS, count, image_size, option, out_indices, parser_of, positive
from runtime.manifest import INPUTS, PRECISIONS, TARGETS

ENGINES = "/tmp"

EPILOG = """examples:
  python -m exporters.triton pathology/kaiko_vits16 --repository models --precision fp16
  python -m exporters.triton pathology/kaiko_vits16 --repository models --out-indices 4 --target cpu
  python -m exporters.triton pathology/kaiko_vitb8 --repository models --gpus 0,1 --instances 2 --tensorrt /engines
  tritonserver --model-repository=$PWD/models

exit status: 0 the model is in the repository, 1 it is not (not built, or the folder holds another model), 2 wrong
usage or a missing package, 130 interrupted. Models that share weight data share it on disk, too."""


def parser_of_triton() -> argparse.ArgumentParser:
    """Return the parser of `python -m exporters.triton`."""
    parser = parser_of(
        "python -m exporters.triton",
        "Write a built ONNX artifact into a model repository of Triton Inference Server.",
        EPILOG,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a registered backbone, such as pathology/kaiko_vits16")
    add("--repository", required=True, metavar="DIR", help="the model repository; made if it is not there")
    _add_artifact(parser)
    _add_serving(parser)
    add("--name", help="of the model in Triton; default: made of MODEL and what differs from its defaults")
    add("--version", type=positive, default=1, metavar="N", help="default: 1; Triton serves the newest")
    add("--overwrite", action="store_true", help="replace what the model's folder holds")
    add("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _add_artifact(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("which artifact").add_argument
    add(
        "--out-indices",
        type=out_indices,
        default=(None,),
        metavar="WHICH",
        help="none (the embedding, the default), 2 (the last two maps), -2,-4 (those blocks)",
    )
    add("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    add("--input", choices=INPUTS, default="float32", help="default: float32; uint8 takes pictures as they are")
    add("--weights", default="pretrained", metavar="W", help="pretrained (the default), random, checkpoint:<digits>")
    add("--seed", type=int, default=0, help="of random weights (default: 0)")
    add("--image-size", type=image_size, metavar="N|HxW|dynamic", help="default: the publisher's size")
    add("--option", action="append", default=[], type=option, metavar="NAME=VALUE", help="the backbone's own option")
    add("--artifacts", metavar="DIR", help=f"where it was built ({DEFAULT_ARTIFACTS})")
    add("--import", action="append", default=[], dest="imports", metavar="MODULE", help="registers further backbones")


def _add_serving(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how Triton runs it").add_argument
    add("--target", choices=TARGETS, default="cuda", help="instances on GPUs or on CPUs; default: cuda")
    add("--gpus", type=_gpus, default=(), metavar="0,1", help="default: every GPU of the server")
    add("--instances", type=positive, default=1, metavar="N", help="on each GPU, or on the CPU; default: 1")
    add("--max-batch-size", type=positive, default=32, metavar="N", help="of dynamic batching; default: 32")
    add("--preferred-batch-size", type=_sizes, default=(), metavar="N,N", help="sizes that do not wait for more images")
    add("--queue-delay-us", type=count, default=0, metavar="N", help="microseconds an image may wait; default: 0")
    add(
        "--tensorrt",
        nargs="?",
        const=ENGINES,
        metavar="FOLDER",
        help=f"compute in TensorRT, engines kept under this folder of the server (default: {ENGINES})",
    )


def _gpus(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(count(part) for part in text.split(",")))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part) for part in text.split(",")}))
