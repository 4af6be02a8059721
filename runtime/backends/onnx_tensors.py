"""Running an onnxruntime session on tensors of its own device: nothing passes through the host, nothing is copied."""

from typing import Any

from onnxruntime import OrtValue
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from runtime.backends.onnx_memory import OutputMemory, names_of
from runtime.backends.torch_streams import on_device, wait_for_caller


def run_tensors(session: Any, images: Tensor, memory: OutputMemory) -> list[Tensor]:
    """Return the outputs for `images` as tensors on the device of both.

    onnxruntime works on a stream of its own. What the caller's stream has queued is awaited before, so that no input is
    read and no memory overwritten too early; onnxruntime returns when its own work is done.
    """
    with on_device(images.device):
        return _run(session, plain(images), memory)


def _run(session: Any, images: Tensor, memory: OutputMemory) -> list[Tensor]:
    device = images.device
    name, names = names_of(session)
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, OrtValue.from_dlpack(images))
    tensors = memory.take(images)
    for position, output in enumerate(names):
        if tensors is None:
            binding.bind_output(output, device.type, device.index or 0)
        else:
            binding.bind_ortvalue_output(output, OrtValue.from_dlpack(tensors[position]))
    wait_for_caller(device)
    session.run_with_iobinding(binding)
    if tensors is None:
        # Memory of onnxruntime's own, which it would hand out again while a stream of torch still reads it.
        tensors = [from_dlpack(output).clone() for output in binding.get_outputs()]
        wait_for_caller(device)
        memory.learn(images, tensors)
    return tensors


def plain(images: Tensor) -> Tensor:
    """Return a tensor as onnxruntime takes it: no gradient, no subclass, rows one after the other."""
    return images.detach().as_subclass(Tensor).contiguous()
