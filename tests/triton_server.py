"""A small server on this machine that reads a model repository and speaks the protocol of Triton's own client.

It is not Triton, which has no package to install: it finds files where Triton's documentation says that it looks,
holds the configuration against the graph as Triton does, and answers through onnxruntime.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

TYPES = {"TYPE_FP32": ("tensor(float)", np.float32), "TYPE_UINT8": ("tensor(uint8)", np.uint8)}
# What Triton's onnxruntime backend knows of its TensorRT accelerator (its README): another key stops the model.
TENSORRT = {
    *("precision_mode", "max_workspace_size_bytes", "trt_max_partition_iterations", "trt_min_subgraph_size"),
    *("trt_engine_cache_enable", "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_timing_cache_enable"),
    *("trt_timing_cache_path", "trt_profile_min_shapes", "trt_profile_max_shapes", "trt_profile_opt_shapes"),
}


def read_config(folder: Path) -> Any:
    """Return the configuration, as strictly as Triton parses it: an unknown field is an error."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def versions(folder: Path) -> list[int]:
    """Return the versions of a model; other folders are passed over."""
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal() and p.name[0] != "0")


def graph_of(folder: Path, version: int) -> Path:
    """Return where the graph of a version lies: model.onnx, or in a folder of that name when there are more files."""
    path = folder / str(version) / "model.onnx"
    return path / "model.onnx" if path.is_dir() else path


@dataclass(frozen=True)
class Model:
    config: Any
    version: int
    session: Any


def load(folder: Path) -> Model:
    """Return the newest version of a model, if configuration and graph say the same."""
    config, version = read_config(folder), versions(folder)[-1]
    assert config.name == folder.name
    assert config.backend == "onnxruntime"
    session = onnxruntime.InferenceSession(str(graph_of(folder, version)), providers=["CPUExecutionProvider"])
    for declared, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in declared] == [tensor.name for tensor in real]
        for tensor, node in zip(declared, real, strict=True):
            type_ = TYPES[model_config_pb2.DataType.Name(tensor.data_type)][0]
            dims = [-1 if not isinstance(side, int) else side for side in node.shape]
            assert (type_, [-1, *tensor.dims]) == (node.type, dims)
    return Model(config, version, session)


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Every model of a repository."""

    def __init__(self, repository: Path) -> None:
        self.models = {folder.name: load(folder) for folder in repository.iterdir() if folder.is_dir()}
        self.batches: list[int] = []

    def ModelReady(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in self.models)

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelConfigResponse(config=self.model(request.name, context).config)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self.model(request.model_name, context)
        given = {tensor.name: tensor for tensor in request.inputs}
        images = {}
        for declared, raw in zip(model.config.input, request.raw_input_contents, strict=True):
            name = model_config_pb2.DataType.Name(declared.data_type)
            tensor = given[declared.name]
            if problem := wrong(model.config, declared, tensor, name):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
            images[declared.name] = np.frombuffer(raw, TYPES[name][1]).reshape(tensor.shape)
        self.batches.append(len(next(iter(images.values()))))
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=str(model.version))
        for declared, array in zip(model.config.output, model.session.run(None, images), strict=True):
            answer.outputs.add(name=declared.name, datatype="FP32", shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer

    def model(self, name: str, context: Any) -> Model:
        if name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        return self.models[name]


def wrong(config: Any, declared: Any, tensor: Any, type_name: str) -> str | None:
    """Return why Triton would refuse an input, or `None`."""
    batch, *dims = tensor.shape
    if batch > config.max_batch_size:
        return f"inference request batch-size must be <= {config.max_batch_size}"
    if tensor.datatype != type_name.removeprefix("TYPE_"):
        return f"inference input '{tensor.name}' data-type is '{tensor.datatype}'"
    if len(dims) != len(declared.dims) or any(d not in (-1, s) for d, s in zip(declared.dims, dims, strict=True)):
        return f"unexpected shape for input '{tensor.name}': {list(tensor.shape)}"
    return None


@contextmanager
def serving(repository: Path) -> Iterator[tuple[str, Server]]:
    """Serve a repository on a free port of this machine; give its address."""
    server = grpc.server(ThreadPoolExecutor(4))
    models = Server(repository)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(models, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", models
    finally:
        server.stop(None).wait()
