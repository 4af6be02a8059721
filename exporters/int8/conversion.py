"""An fp32 graph -> int8 for CPUs: weights with a scale for each output channel, activations in eight bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.in_memory import array_of, open_runner
from exporters.int8.layers import Group, find_groups
from exporters.int8.observation import observe
from exporters.int8.quantisation import NORMS, norm_of, quantise, quantise_dynamically
from exporters.int8.recipes import Recipe, find_recipe
from exporters.int8.sensitivity import measure_sensitivity, smallest_cosine
from runtime.errors import ExportError, VerificationError

Batch = NDArray[np.float32]

# What calibration images must keep, so that others keep the gate's 0.995.
COSINE = 0.9975
# A division that a normalisation takes in costs nothing; any other is one more operator and must halve the error.
GAIN_IN_NORM, GAIN_ALONE = 1.0, 4.0
# Sensitivity takes a run for each layer and image.
PROBES = 4


def to_int8(model: ir.Model, batches: Sequence[Batch] | None) -> dict[str, Any]:
    """Rewrite an optimised fp32 graph in place; tensors that it shares with other graphs are left as they are.

    Args:
        model: The graph, for target cpu.
        batches: Calibration images, float32 [B, C, H, W]: ranges become constants of the graph (QuantizeLinear and
            DequantizeLinear), and layers that lose too much on these images stay in fp32. With None ranges are taken
            from each batch as it comes (DynamicQuantizeLinear), unmeasured.

    Returns:
        Facts for the manifest: what became int8, what did not, and what was measured.

    Raises:
        ExportError: Nothing in the graph can be computed in int8.
        VerificationError: Calibration images are not finite, or the graph loses too much with half of it in fp32.
    """
    groups = [g for g in find_groups(model.graph) if batches is not None or not g.is_convolution]
    if not groups:
        what, hint = ("matrix", ", or int8 with calibration images") if batches is None else ("matrix or kernel", "")
        raise ExportError(
            f"Nothing in this graph can be computed in int8: behind its first layer it holds no product with a "
            f"constant float32 {what}. Build it in fp32{hint}."
        )
    facts = _quantise_dynamically(model, groups) if batches is None else _quantise(model, groups, _images(batches))
    RemoveUnusedNodesPass()(model)
    return facts


def _images(batches: Sequence[Batch]) -> list[Batch]:
    images = [batch[i : i + 1] for batch in batches for i in range(len(batch))]
    if not images:
        raise VerificationError("int8 was asked for with calibration images, but none were given.")
    if not all(np.isfinite(image).all() for image in images):
        raise VerificationError("Calibration images hold NaN or infinite values; no range can be taken from them.")
    return images


def _quantise(model: ir.Model, groups: list[Group], images: list[Batch]) -> dict[str, Any]:
    recipes = [
        find_recipe(
            group,
            seen,
            movable=not group.is_convolution,
            gain=GAIN_IN_NORM if norm_of(group) is not None else GAIN_ALONE,
        )
        for group, seen in zip(groups, observe(model, groups, images), strict=True)
    ]
    exact, cosine = _choose_exact(model, recipes, images)
    _apply(model.graph, recipes, exact)
    chosen = [recipe for i, recipe in enumerate(recipes) if i not in exact]
    return {
        "quantisation": "static",
        "calibration_images": len(images),
        "calibration_min_cosine": round(cosine, 6),
        "int8_layers": sum(len(group.layers) for i, group in enumerate(groups) if i not in exact),
        "fp32_layers": sorted(layer.name for i in exact for layer in groups[i].layers),
        "unsigned_inputs": sum(recipe.zero_point.dtype == np.uint8 for recipe in chosen),
        "divided_inputs": sum(recipe.divisors is not None for recipe in chosen),
    }


def _apply(graph: ir.Graph, recipes: Sequence[Recipe], exact: set[int]) -> None:
    for index, (group, recipe) in enumerate(zip(find_groups(graph), recipes, strict=True)):
        if index not in exact:
            quantise(graph, group, recipe)


def _choose_exact(model: ir.Model, recipes: Sequence[Recipe], images: list[Batch]) -> tuple[set[int], float]:
    """Return the groups that stay in fp32, as few as calibration images allow, and the smallest cosine reached."""
    runner = open_runner(model, list(model.graph.outputs))
    expected = [runner(image) for image in images]
    del runner

    def cosine_without(exact: set[int]) -> float:
        trial = model.clone()
        _apply(trial.graph, recipes, exact)
        RemoveUnusedNodesPass()(trial)
        runner = open_runner(trial, list(trial.graph.outputs))
        return smallest_cosine(expected, [runner(image) for image in images])

    cosine = cosine_without(set())
    if cosine >= COSINE:
        return set(), cosine
    order = np.argsort(measure_sensitivity(model, recipes, images[:PROBES]), kind="stable").tolist()
    most = (len(order) + 1) // 2
    reached = {0: cosine, most: cosine_without(set(order[:most]))}
    if not reached[most] >= COSINE:
        raise VerificationError(
            f"int8 keeps a cosine of {cosine:.4f} on calibration images, and {reached[most]:.4f} with the {most} most "
            f"sensitive of {len(order)} layers in fp32; {COSINE} is needed. Build this backbone in fp32 or bf16."
        )
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        reached[middle] = cosine_without(set(order[:middle]))
        low, high = (low, middle) if reached[middle] >= COSINE else (middle, high)
    return set(order[:high]), reached[high]


def _quantise_dynamically(model: ir.Model, groups: list[Group]) -> dict[str, Any]:
    for group in groups:
        quantise_dynamically(model.graph, group, _expected_divisors(group))
    return {"quantisation": "dynamic", "int8_layers": sum(len(group.layers) for group in groups), "fp32_layers": []}


def _expected_divisors(group: Group) -> NDArray[np.float32] | None:
    """Return divisors for channels that a normalisation makes large, without having seen any image."""
    norm = norm_of(group)
    if norm is None:
        return None
    constants = [norm.inputs[i] for i in NORMS[norm.op_type] if i < len(norm.inputs)]
    weight, *bias = [np.abs(array_of(v.const_value)) for v in constants if v is not None and v.const_value is not None]
    size = 3 * weight + sum(bias)
    # Only what stands out: the weights should keep their own scale otherwise.
    octaves = np.log2(np.maximum(size, 1e-30) / np.median(size)) / 2
    divisors: NDArray[np.float32] = np.exp2(np.maximum(np.rint(octaves), 0)).astype(np.float32)
    return divisors
