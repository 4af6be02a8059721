"""Attention that stayed written out in a graph, as products and a softmax, and the backbones that must have none."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

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
    nodes = list(model.graph.all_nodes())
    products = [node for node in nodes if node.op_type == "MatMul"]
    scores = _reached((value for node in products for value in node.outputs), _scores_of)
    weights = _reached((value for node in products for value in node.inputs if value is not None), _shaped_from)
    softmaxes = (node for node in nodes if node.op_type == "Softmax")
    return sum(node.inputs[0] in scores and node.outputs[0] in weights for node in softmaxes)


def _reached(starts: Iterable[ir.Value], step: Callable[[ir.Value], Iterable[ir.Value]]) -> set[ir.Value]:
    """Return the values that steps lead to, each looked at once: branches that meet again must not double the work."""
    reached = set(starts)
    waiting = list(reached)
    while waiting:
        new = set(step(waiting.pop())) - reached
        reached |= new
        waiting += new
    return reached


def _scores_of(value: ir.Value) -> list[ir.Value]:
    return [output for use in value.uses() if use.node.op_type in _SCORES for output in use.node.outputs]


def _shaped_from(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    if node is None or node.op_type not in _SHAPES:
        return []
    return [given for given in node.inputs if given is not None]


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
