"""Attention that stayed written out in a graph, as products and a softmax, and the backbones that must have none."""

import contextlib
from collections.abc import Iterator

import onnx_ir as ir
from torch import nn

from exporters.attention import DOMAIN, MARKER
from runtime.errors import ExportError
from runtime.machine import installed

# What may stand between softmax and product of one attention: a change of shape; before, scale, bias and mask, too.
_SHAPES = frozenset(("Cast", "Expand", "Identity", "Reshape", "Transpose"))
_SCORES = _SHAPES | {"Add", "Div", "Mul", "Sub", "Where"}
_TIMM = frozenset(("timm.models.vision_transformer.VisionTransformer", "timm.models.eva.Eva", "timm.models.beit.Beit"))
_TRANSFORMERS = "transformers.modeling_utils.PreTrainedModel"


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Have timm build its modules with fused attention, whatever TIMM_FUSED_ATTN says: no graph may depend on it."""
    if not installed("timm"):
        yield
        return
    from timm import layers

    before, experimental = layers.use_fused_attn(), layers.use_fused_attn(experimental=True)
    layers.set_fused_attn(True)
    try:
        yield
    finally:
        layers.set_fused_attn(before, experimental)


def written_out(model: ir.Model) -> int:
    """Return how many times a graph multiplies a softmax of a product: attention that is not one operator."""
    softmaxes = [node for node in model.graph.all_nodes() if node.op_type == "Softmax"]
    return sum(_of_a_product(node.inputs[0]) and _multiplied(node.outputs[0]) for node in softmaxes)


def _of_a_product(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is None or node.op_type == "MatMul":
        return node is not None
    return node.op_type in _SCORES and any(_of_a_product(given) for given in node.inputs)


def _multiplied(value: ir.Value) -> bool:
    nodes = [use.node for use in value.uses()]
    return any(
        node.op_type == "MatMul" or (node.op_type in _SHAPES and any(map(_multiplied, node.outputs))) for node in nodes
    )


def ensure_fused(module: nn.Module, model: ir.Model, left: int) -> None:
    """Raise if a Vision Transformer's attention is written out, where each block's was to become one operator.

    Args:
        module: What was exported.
        model: Its graph, before the passes.
        left: Calls of attention that no marker could say; torch writes these out.

    Raises:
        ExportError: Attention is written out, and fewer calls became markers than there are blocks.
    """
    blocks = max(map(_blocks, module.modules()))  # the largest one: a model and its encoder count the same blocks
    marked = sum((node.domain, node.op_type) == (DOMAIN, MARKER) for node in model.graph.all_nodes())
    written = written_out(model) - left
    if written > 0 and marked < blocks:
        raise ExportError(
            f"Of the attention of {blocks} blocks only {marked} can become one operator; {written} times it is written "
            "out as products and a softmax, which is slower. Have the module call "
            "torch.nn.functional.scaled_dot_product_attention: in timm fused_attn=True on the attention, in "
            "transformers attn_implementation='sdpa'."
        )


def _blocks(module: nn.Module) -> int:
    """Return how many blocks a Vision Transformer has whose library can fuse each one's attention; 0 for all else."""
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
    if kinds & _TIMM:
        return len(getattr(module, "blocks", ()))
    if _TRANSFORMERS not in kinds or not getattr(module, "_supports_sdpa", False):
        return 0
    # Hierarchical ones (Swin, SegFormer) have `depths`, and attention that no marker says.
    return 0 if hasattr(module.config, "depths") else int(getattr(module.config, "num_hidden_layers", 0))
