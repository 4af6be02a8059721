"""How much a backbone computes, and the matrix products that most of it is."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

# Distinct shapes that are measured alone; a ViT has four of them.
MOST_PRODUCTS = 6

Product = tuple[int, int, int]


def work_of(module: Any, image_shape: Sequence[int]) -> dict[str, Any]:
    """Return the parameters, FLOPs per image and linear layers of a torch module.

    Returns:
        `parameters`; `flops` of one image, a multiplication and an addition counted as two; `products`, the distinct
        [rows per image, inner, outer] of its linear layers, the largest first.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    seen: Counter[Product] = Counter()

    def see(layer: Any, inputs: tuple[Any, ...], _: Any) -> None:
        rows = inputs[0].numel() // layer.in_features
        seen[rows, layer.in_features, layer.out_features] += 1

    hooks = [m.register_forward_hook(see) for m in module.modules() if isinstance(m, torch.nn.Linear)]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, *image_shape))
    finally:
        for hook in hooks:
            hook.remove()
    heaviest = sorted(seen, key=lambda product: -seen[product] * math.prod(product))
    # One row per image is a head's: a vector, not a matrix.
    products = [list(product) for product in heaviest if product[0] > 1][:MOST_PRODUCTS]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"parameters": parameters, "flops": counter.get_total_flops(), "products": products}


def flops_of_products(products: Sequence[Sequence[int]], batch: int) -> int:
    """Return the FLOPs of each of the products once, for a batch of images."""
    return sum(2 * batch * math.prod(product) for product in products)


def graph_of_products(products: Sequence[Sequence[int]], precision: str) -> tuple[bytes, Any]:
    """Return an ONNX graph that multiplies `rows_<i>` with a constant for each product, and the dtype of its inputs.

    Raises:
        ValueError: A precision other than fp32 and int8.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    if precision not in ("fp32", "int8"):
        raise ValueError(f"onnxruntime's CPU provider multiplies fp32 and int8, not {precision}")
    whole = precision == "int8"
    # What onnxruntime's own dynamic quantisation multiplies: unsigned activations, signed weights.
    kinds = (TensorProto.UINT8, TensorProto.INT32) if whole else (TensorProto.FLOAT, TensorProto.FLOAT)
    random = np.random.default_rng(0)
    nodes, inputs, outputs, weights = [], [], [], []
    for i, (_, inside, outside) in enumerate(products):
        values = random.integers(-100, 100, (inside, outside)) if whole else random.random((inside, outside))
        weights.append(numpy_helper.from_array(values.astype(np.int8 if whole else np.float32), f"weight_{i}"))
        inputs.append(helper.make_tensor_value_info(f"rows_{i}", kinds[0], ["rows", inside]))
        outputs.append(helper.make_tensor_value_info(f"product_{i}", kinds[1], None))
        operator = "MatMulInteger" if whole else "MatMul"
        nodes.append(helper.make_node(operator, [f"rows_{i}", f"weight_{i}"], [f"product_{i}"]))
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString(), np.uint8 if whole else np.float32
