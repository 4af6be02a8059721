"""Assembling timm's ResNet-50: weights, where it ends, outputs. torch is imported on call."""

from typing import TYPE_CHECKING, Any

from runtime.out_indices import canonical

if TYPE_CHECKING:
    from torch import nn

    from runtime.out_indices import OutIndices
    from runtime.weights import Weights

# The stem and four stages; the stem's map is half the image's size, each further one half of that but the first.
STAGES = 5


def resnet50(weights: "Weights", out_indices: "OutIndices", *, stages: int = STAGES) -> "nn.Module":
    """Return ResNet-50 with its global average as the embedding, or as feature maps when `out_indices` is given.

    Args:
        weights: Fills what is kept of the model.
        out_indices: Among `stages`; see `runtime.out_indices`.
        stages: How many are kept, the stem counted: with 4 the last one is removed, and the embedding has 1024
            dimensions instead of 2048.
    """
    from runtime.modules import Embedding, FeatureMaps

    indices = canonical(out_indices, stages)
    model = weights.construct(lambda: _create(stages), _keep_stages)
    if indices is None:
        return Embedding(model)
    return FeatureMaps(model, [index + stages for index in indices])


def _create(stages: int) -> "nn.Module":
    import timm

    model: Any = timm.create_model("resnet50", pretrained=False, num_classes=0)
    if stages < STAGES:
        model.prune_intermediate_layers([stages - 1])
        model.reset_classifier(0, "avg")
    module: nn.Module = model
    return module


def _keep_stages(tensors: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return the tensors without the classifier and the removed stages.

    Batch counters are not read in inference; some releases leave them out.
    """
    own = model.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    removed = {"fc", *(f"layer{i}" for i in range(1, STAGES))} - {key.partition(".")[0] for key in own}
    return counters | {key: value for key, value in tensors.items() if key.partition(".")[0] not in removed}
