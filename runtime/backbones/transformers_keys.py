"""Published state dicts of transformers models, under the names that the installed release of transformers uses.

Three layouts exist in published files: transformers 4's (`encoder.layer.0.attention.attention.query.weight`; what hubs
hold, also when transformers 5 saved it), that of DINOv2's own code (`blocks.0.attn.qkv.weight`), and the names of the
class itself. transformers 5 renamed its modules and split the first matrix of SwiGLU in two.
"""

import re
from collections.abc import Callable
from typing import Any

Tensors = dict[str, Any]
Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# For training, or for a head that embeddings do not use.
_UNUSED = ("embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")

_FROM_DINOV2: Renames = (
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.w12\.", ".mlp.weights_in."),
    (r"\.mlp\.w3\.", ".mlp.weights_out."),
)
_DINOV2_TO_5: Renames = (
    (r"\.attention\.attention\.(query|key|value)\.", lambda found: f".attention.{found[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.weights_out\.", ".mlp.down_proj."),
)
_VIT_TO_5: Renames = (
    (r"^encoder\.layer\.", "layers."),
    *_DINOV2_TO_5[:2],
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)


def to_transformers(tensors: Tensors, model: Any) -> Tensors:
    """Return the tensors under the keys of `model`; one that is not recognised keeps its name, to be reported."""
    own = model.state_dict().keys()
    prefix = f"{model.base_model_prefix}."
    bare = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    if "pos_embed" in bare:
        bare = _from_dinov2(bare)
    renames = _VIT_TO_5 if prefix == "vit." else _DINOV2_TO_5
    adapted: Tensors = {}
    for key, tensor in bare.items():
        if key in own:
            adapted[key] = tensor
        elif key not in _UNUSED:
            adapted |= _split_swiglu(_renamed(key, renames), tensor)
    return adapted


def _from_dinov2(tensors: Tensors) -> Tensors:
    adapted: Tensors = {}
    for key, tensor in tensors.items():
        name = _renamed(key, _FROM_DINOV2)
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                adapted[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            adapted[name] = tensor
    return adapted


def _split_swiglu(key: str, tensor: Any) -> Tensors:
    if ".mlp.weights_in." not in key:
        return {key: tensor}
    gate, up = tensor.chunk(2)
    return {key.replace("weights_in", "gate_proj"): gate, key.replace("weights_in", "up_proj"): up}


def _renamed(key: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key
