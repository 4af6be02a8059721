"""What Triton is told about an artifact: a `ModelConfig` of its own schema. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import __version__
from runtime.errors import DeviceError, OptionError
from runtime.manifest import Artifact, TensorInfo
from runtime.request import Request
from runtime.selection import RUNS
from runtime.tensorrt import engine_options

# Of a version: the folder that Triton takes for an ONNX model of several files, and the graph in it.
MODEL = "model.onnx"
# Parameters that name the model a folder holds; the backend ignores what it does not know.
PREFIX = "backbone."
KEY = f"{PREFIX}key"
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}


@dataclass(frozen=True)
class GraphFacts:
    """What a graph is made of.

    Attributes:
        needs: What an onnxruntime must know to run it, such as `ONNX IR 10, opset 18, com.microsoft 1`.
        own_operators: Those that are onnxruntime's own, which TensorRT leaves to CUDA.
    """

    needs: str
    own_operators: tuple[str, ...] = ()


@dataclass(frozen=True)
class Serving:
    """How Triton is to run a model.

    Attributes:
        target: `cuda` or `cpu`: the kind of its instances.
        instances: How many, on each GPU or on the CPU.
        gpus: Which GPUs; all of them when empty.
        max_batch_size: Images in the largest batch that Triton makes.
        preferred_batch_sizes: Sizes at which a batch goes out without waiting any longer.
        queue_delay_us: How long an image may wait for others, in microseconds.
        engine_cache: Folder on the server for TensorRT's engines; `None` for CUDA without TensorRT.
    """

    target: str = "cuda"
    instances: int = 1
    gpus: tuple[int, ...] = ()
    max_batch_size: int = 32
    preferred_batch_sizes: tuple[int, ...] = ()
    queue_delay_us: int = 0
    engine_cache: str | None = None

    def __post_init__(self) -> None:
        if self.target == "cpu" and (self.gpus or self.engine_cache is not None):
            which = "--gpus" if self.gpus else "--tensorrt"
            raise OptionError(
                f"{which} is for instances on GPUs, and --target cpu asks for none. Leave one of them out."
            )
        if large := [size for size in self.preferred_batch_sizes if size > self.max_batch_size]:
            raise OptionError(
                f"--preferred-batch-size={','.join(map(str, large))} is more than --max-batch-size="
                f"{self.max_batch_size}: such a batch is never made."
            )

    def check_precision(self, precision: str) -> None:
        """Raise unless the onnxruntime of Triton can run `precision` on these instances.

        Raises:
            DeviceError: It cannot; with what it can.
        """
        runs = RUNS["onnx", self.target]
        if precision not in runs:
            other = "cuda" if self.target == "cpu" else "cpu"
            elsewhere = f" --target {other} runs {precision}." if precision in RUNS["onnx", other] else ""
            raise DeviceError(
                f"--precision {precision} --target {self.target}: Triton's onnxruntime backend cannot run that; on "
                f"{_kind(self.target)} instances it runs {', '.join(runs)}.{elsewhere}"
            )


def config_of(name: str, request: Request, artifact: Artifact, serving: Serving, graph: GraphFacts) -> Any:
    """Return the `ModelConfig` of an artifact.

    Args:
        name: Of the model in the repository.
        request: What the artifact answers.
        artifact: From the manifest.
        serving: How it is to run.
        graph: What its graph is made of.
    """
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    config = ModelConfig(
        name=name,
        backend="onnxruntime",
        max_batch_size=serving.max_batch_size,
        input=[_tensor(tensor) for tensor in artifact.inputs],
        output=[_tensor(tensor) for tensor in artifact.outputs],
        instance_group=[_instances(serving)],
        parameters={key: {"string_value": text} for key, text in provenance(request, artifact, graph).items()},
    )
    config.dynamic_batching.preferred_batch_size.extend(serving.preferred_batch_sizes)
    config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay_us
    if serving.target == "cuda":
        _accelerate(config, artifact, serving, graph)
        _warm_up(config, request, artifact.inputs[0])
    return config


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    """Return name, type and shape as Triton takes them: without the batch, -1 for what varies."""
    dims = [-1 if isinstance(side, str) else side for side in tensor.shape[1:]]
    return {"name": tensor.name, "data_type": _TYPES[tensor.dtype], "dims": dims}


def _instances(serving: Serving) -> dict[str, Any]:
    return {"kind": _kind(serving.target), "count": serving.instances, "gpus": serving.gpus}


def _kind(target: str) -> str:
    return "KIND_GPU" if target == "cuda" else "KIND_CPU"


def _accelerate(config: Any, artifact: Artifact, serving: Serving, graph: GraphFacts) -> None:
    """Ask for TensorRT where it is wanted, before CUDA, which takes what TensorRT leaves."""
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if serving.engine_cache is not None:
        accelerators.add(name="tensorrt", parameters=tensorrt_parameters(config.name, artifact, serving, graph))
    # As load_model does: onnxruntime multiplies in TF32 by default, torch does not. Triton sets cudnn_conv_algo_search,
    # gpu_mem_limit and arena_extend_strategy anew from the model's own parameters, so these would be lost here.
    accelerators.add(name="cuda", parameters={"use_tf32": "0"})


def tensorrt_parameters(name: str, artifact: Artifact, serving: Serving, graph: GraphFacts) -> dict[str, str]:
    """Return the parameters of Triton's TensorRT accelerator, which refuses a model with one that it does not know."""
    tensor = artifact.inputs[0]
    # onnxruntime makes this folder itself, but not its parent.
    folder = Path(str(serving.engine_cache)) / f"{name}-{artifact.graph.sha256[:12]}"
    options = engine_options(folder, 0, tensor.name, (), None)
    # A graph that TensorRT takes in pieces needs profiles for the inputs of every piece; onnxruntime refuses it with
    # less. Without any, the largest batch of the warm-up decides how far the engines reach.
    if not graph.own_operators:
        options |= _profiles(tensor, serving)
    del options["device_id"]  # Triton knows on which GPU an instance runs
    spelled = {key: "1" if value is True else str(value) for key, value in options.items()}
    return {"precision_mode": artifact.key.precision.upper(), **spelled}


def _profiles(tensor: TensorInfo, serving: Serving) -> dict[str, str]:
    """Return the batches that one engine serves; without them, one is built whenever a larger batch comes."""
    if any(isinstance(side, str) for side in tensor.shape[1:]):
        return {}  # of any size: engines follow the images that come
    most = serving.max_batch_size
    batches = {"min": 1, "opt": max(serving.preferred_batch_sizes, default=most), "max": most}
    image = "x".join(map(str, tensor.shape[1:]))
    return {f"trt_profile_{which}_shapes": f"{tensor.name}:{batch}x{image}" for which, batch in batches.items()}


def _warm_up(config: Any, request: Request, tensor: TensorInfo) -> None:
    """Have the smallest and the largest batch run before the model counts as ready: the first run on a GPU is slow."""
    side, patch = request.spec.preprocessing.size, request.spec.patch_size
    dims = [side - side % patch if isinstance(length, str) else length for length in tensor.shape[1:]]
    zeros = {"data_type": _TYPES[tensor.dtype], "dims": dims, "zero_data": True}
    for size in sorted({1, config.max_batch_size}):
        config.model_warmup.add(name=f"batch_{size}", batch_size=size, inputs={tensor.name: zeros})


def provenance(request: Request, artifact: Artifact, graph: GraphFacts) -> dict[str, str]:
    """Return what a client may want to know: which model this is, whose, and how pictures become its input."""
    source: Mapping[str, Any] = artifact.facts.get("source", {})
    known = {
        "model": request.spec.name,
        "artifact": artifact.key.describe(),
        "key": json.dumps(artifact.key.to_json(), sort_keys=True),
        "graph_sha256": artifact.graph.sha256,
        "weights": artifact.key.weights,
        "source": source.get("id"),
        "revision": source.get("revision"),
        "licence": source.get("licence"),
        "gated": json.dumps(bool(source.get("gated"))),
        "input": artifact.key.input,
        "preprocessing": json.dumps(artifact.facts.get("preprocessing"), sort_keys=True),
        "needs": graph.needs,
        "written_by": f"backbone-runtime {__version__}",
    }
    return {PREFIX + name: str(value) for name, value in known.items() if value is not None}
