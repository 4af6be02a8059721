"""Random weights in which every parameter matters.

A library's initialisation hides mistakes: LayerScale starts at 1e-5, so whole blocks vanish; biases are zero; position
embeddings are tiny; batch statistics are trivial. Here every floating-point parameter and buffer is drawn so that
changing it moves the output, while activations keep a sane range. Each tensor depends on the seed and its own name
alone: a model that lost its last blocks keeps the weights of the others. Batch statistics can then be brought to the
scale of what passes through them (`settle`): in a deep convolutional net the images would drown in the biases.
"""

import hashlib
import math

import torch
from torch import Tensor, nn


def draw_loud(model: nn.Module, seed: int) -> None:
    """Overwrite every floating-point parameter and batch statistic of `model` in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw_parameter(name, parameter, _generator(seed, name))
        for name, buffer in model.named_buffers():
            _draw_statistic(name, buffer, _generator(seed, name))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _draw_parameter(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    leaf = name.rsplit(".", 1)[-1]
    if not tensor.numel():  # a layer of no width, as some small variants of timm have
        return
    if tensor.ndim >= 2 and leaf.startswith("weight"):
        bound = math.sqrt(3 / (tensor.numel() / tensor.shape[0]))  # keeps the variance of a linear map's input
        tensor.uniform_(-bound, bound, generator=generator)
    elif leaf.startswith("bias"):
        tensor.uniform_(-0.5, 0.5, generator=generator)
    elif leaf == "weight":  # of a norm
        tensor.uniform_(0.5, 1.5, generator=generator)
    elif tensor.ndim <= 1:  # LayerScale
        tensor.uniform_(0.2, 0.6, generator=generator)
    else:  # position embedding, CLS and register tokens
        tensor.uniform_(-1.0, 1.0, generator=generator)


def _draw_statistic(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    # Other buffers (rotary tables, index maps) are structure, not weights.
    if name.endswith("running_mean"):
        tensor.uniform_(-0.5, 0.5, generator=generator)
    elif name.endswith("running_var"):
        tensor.uniform_(0.5, 1.5, generator=generator)


def settle(model: nn.Module, images: Tensor) -> None:
    """Scale drawn batch statistics so that each batch normalisation passes `images` on with a variance near 1.

    Real batch statistics do that; drawn ones let the images fade from layer to layer (by 1e-7 in LCNet) or grow. Each
    layer's are scaled by one power of two, so that the last digits of the activations decide nothing.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(_scale_statistics) for norm in norms if norm.running_var is not None]
    if not hooks:
        return
    training = model.training
    with torch.no_grad():
        model.eval()(images)
    model.train(training)
    for hook in hooks:
        hook.remove()


def _scale_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    values = inputs[0].transpose(0, 1).flatten(1)
    averaged = inputs[0].ndim > 2 and values.shape[1] == len(inputs[0])
    # Of maps that were averaged, images alike leave values alike: their variance would blow up all other images.
    spread = values.square().mean(1) if averaged else values.var(1)
    variance = spread.mean().item()
    if math.isfinite(variance) and variance > 0:
        octaves = round(math.log2(variance))
        norm.running_var.mul_(2.0**octaves)  # type: ignore[operator]
        norm.running_mean.mul_(2.0 ** (octaves / 2))  # type: ignore[operator]
