"""Massive activations, put into backbones with loud random weights: those have none, so fp16 would never overflow.

A trained ViT writes values of hundreds to thousands into a few fixed channels of its residual stream, in the middle
blocks, through one neuron of an MLP that is larger still, and takes them back in the last block. "Massive Activations
in Large Language Models" (arXiv:2402.17762) found them in ViTs, too, much alike for every image; "Vision Transformers
Need Registers" (arXiv:2309.16588) shows the tokens that carry them. Residual networks of convolutions get outlier
channels here likewise.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS = (3, 17)
NEURON = 5


def inject_outliers(module: nn.Module, stream: float, hidden: float) -> None:
    """Give `module` outliers of a trained network, in place.

    Args:
        module: A timm backbone of blocks with an MLP, or of residual blocks of convolutions with batch statistics.
        stream: How large two channels of the residual stream become between the middle block and the last.
        hidden: How large the neuron inside the MLP becomes that writes them.

    Raises:
        ValueError: It has no blocks of a known kind.
    """
    blocks = [m for m in module.modules() if hasattr(getattr(m, "mlp", None), "fc2")]
    norms = [m.bn2 for m in module.modules() if hasattr(m, "conv2") and hasattr(m, "bn2")]
    with torch.no_grad():
        if blocks:
            width = blocks[len(blocks) // 2].mlp.fc2.weight.shape[0]
            last = [b for b in blocks if b.mlp.fc2.weight.shape[0] == width][-1]
            _write_by_neuron(blocks[len(blocks) // 2], stream, hidden)
            _write(last, -stream)
        elif norms:
            norms[len(norms) // 2].bias[list(CHANNELS)] = torch.tensor([stream, 0.8 * stream])
        else:
            raise ValueError(f"{type(module).__name__} has neither blocks with an MLP nor with batch statistics")


def _write_by_neuron(block: Any, stream: float, hidden: float) -> None:
    first, second = block.mlp.fc1, block.mlp.fc2
    width = second.weight.shape[1]
    # A gated MLP multiplies two halves, or two layers.
    gated = first.weight.shape[0] == 2 * width or hasattr(block.mlp, "fc1_g")
    first.bias[NEURON] = math.sqrt(hidden) if gated else hidden
    if first.weight.shape[0] == 2 * width:
        first.bias[NEURON + width] = math.sqrt(hidden)
    elif gated:
        block.mlp.fc1_g.bias[NEURON] = math.sqrt(hidden)
    second.weight[list(CHANNELS), NEURON] = (_strengths(block) * stream / hidden).view(-1, *second.weight.shape[2:])


def _write(block: Any, stream: float) -> None:
    block.mlp.fc2.bias[list(CHANNELS)] += _strengths(block) * stream


def _strengths(block: Any) -> Tensor:
    """Return what the last layer of the MLP must give for 1 (and -0.8) in the stream, behind a LayerScale."""
    scale = getattr(getattr(block, "ls2", None), "gamma", getattr(block, "gamma", getattr(block, "gamma_2", None)))
    gains = torch.ones(len(CHANNELS)) if scale is None else scale.flatten()[list(CHANNELS)]
    return torch.tensor([1.0, -0.8]) / gains
