"""Further pathology encoders: facts of their publishers, sources, artifacts of small ones."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FORMS
from encoder_layouts import SMALL_SWIN, SMALL_VIT, shrink
from test_backbones import IMAGENET, LUNIT, OnMeta, shape_of

from exporters import pipeline
from exporters.plan import Job
from runtime import eager, registry
from runtime.errors import OptionError, OutIndicesError, UnknownModelError, WeightsError
from runtime.facts import CLIP_MEAN, CLIP_STD, HALF
from runtime.request import make_request

CLIP, HALVES = (CLIP_MEAN, CLIP_STD), (HALF, HALF)
STEM_AND_STAGES = [(64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)]
SWIN_STAGES = [(96, 56), (192, 28), (384, 14), (768, 7)]
# As published: parameters; embedding; image size; maps of all blocks (channels, side); mean and std; gated.
FACTS = {
    "pathology/hkust_mstar": (303350784, 1024, 224, [(1024, 14)] * 24, IMAGENET, True),
    "pathology/hms_chief": (27520038, 768, 224, SWIN_STAGES, IMAGENET, False),
    "pathology/lunit_resnet50_bt": (23508032, 2048, 224, STEM_AND_STAGES, LUNIT, False),
    "pathology/lunit_resnet50_mocov2": (23508032, 2048, 224, STEM_AND_STAGES, LUNIT, False),
    "pathology/lunit_resnet50_swav": (23508032, 2048, 224, STEM_AND_STAGES, LUNIT, False),
    # The catalogue counts the contrastive projection (512 x 512), too.
    "pathology/mahmood_conch_v1": (87829248 - 512 * 512, 512, 448, [(768, 28)] * 12, CLIP, True),
    "pathology/nirschl_isight": (304555008, 1024, 336, [(1024, 24)] * 24, CLIP, False),
    "pathology/resnet50": (8543296, 1024, 224, STEM_AND_STAGES[:4], IMAGENET, False),
    "pathology/sichuan_ctranspath": (27520038, 768, 224, SWIN_STAGES, IMAGENET, False),
    "pathology/sjtu_keep": (304728576, 768, 224, [(1024, 14)] * 24, IMAGENET, False),
    "pathology/sophont_openmidnight": (1134774272, 1536, 224, [(1536, 16)] * 40, IMAGENET, True),
    "pathology/stanford_musk": (303936512, 1024, 384, [(1024, 24)] * 24, HALVES, True),
    "pathology/vinid_plip": (87849216, 512, 224, [(768, 7)] * 12, CLIP, False),
}


@pytest.mark.parametrize("name", FACTS)
def test_a_further_encoder_is_what_its_publisher_says(name: str) -> None:
    parameters, dim, size, maps, normalisation, gated = FACTS[name]
    spec, weights = registry.find(name), OnMeta()
    images = torch.empty(2, 3, size, size, device="meta")

    embedding = spec.build(weights=weights).eval()

    assert sum(p.numel() for p in embedding.parameters()) == parameters
    assert shape_of(embedding(images)) == (2, dim)
    assert (spec.preprocessing.mean, spec.preprocessing.std) == normalisation
    assert (spec.preprocessing.size, spec.depth, spec.gated) == (size, len(maps), gated)
    assert (spec.licence is None) == (name == "pathology/nirschl_isight")
    chosen = sorted({0, len(maps) // 2, len(maps) - 1})
    # Last, for it removes what lies behind the last map.
    module = spec.build(weights=OnMeta(), out_indices=[i - len(maps) for i in chosen]).eval()
    assert module.indices == chosen
    assert shape_of(module(images)) == [(2, maps[i][0], maps[i][1], maps[i][1]) for i in chosen]


def test_conch_with_its_projection_has_the_parameters_of_the_catalogue() -> None:
    model = registry.find("conch_v1").build(weights=OnMeta(), contrastive_projection=True)

    assert sum(p.numel() for p in model.parameters()) == 87829248


def test_conchs_projection_and_feature_maps_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="leave out contrastive_projection or out_indices"):
        registry.find("conch_v1").build(weights=OnMeta(), contrastive_projection=True, out_indices=1)


@pytest.mark.parametrize(("name", "stages"), [("pathology/resnet50", 4), ("ctranspath", 4), ("lunit_resnet50_bt", 5)])
def test_stages_that_do_not_exist_are_refused(name: str, stages: int) -> None:
    with pytest.raises(OutIndicesError, match=f"1 to {stages}"):
        registry.find(name).build(weights=OnMeta(), out_indices=stages + 1)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("ctranspath", "https://github.com/Xiyue-Wang/TransPath (ctranspath.pth)"),
        ("chief", "https://github.com/hms-dbmi/CHIEF (CHIEF_CTransPath.pth)"),
    ],
)
def test_weights_that_no_program_can_fetch_say_where_a_person_finds_them(name: str, where: str) -> None:
    with pytest.raises(WeightsError) as raised:
        eager.build(make_request(registry.find(name), None, {}))

    assert str(raised.value) == (
        f"{registry.find(name).name}: no program can fetch its weights. Get the file from the Google Drive link of "
        f"{where}, then load it with checkpoint_path=FILE, or build with --weights random."
    )


# The embedding where a head, a stem or windows are new; maps where they come from stages.
@pytest.mark.parametrize(
    ("name", "sizes", "options"),
    [
        ("pathology/mahmood_conch_v1", SMALL_VIT, {"image_size": 64, "contrastive_projection": True}),
        ("pathology/sjtu_keep", SMALL_VIT, {"image_size": 64}),
        ("pathology/stanford_musk", SMALL_VIT, {"image_size": 64, "out_indices": 2}),
        ("pathology/vinid_plip", SMALL_VIT, {"image_size": 64}),
        ("pathology/nirschl_isight", SMALL_VIT, {"image_size": 56}),
        ("pathology/sichuan_ctranspath", SMALL_SWIN, {}),
        ("pathology/hms_chief", SMALL_SWIN, {"out_indices": 4}),
        ("pathology/resnet50", {"layers": (1, 1, 1, 1)}, {}),
    ],
)
def test_a_small_further_encoder_is_exported_and_passes_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sizes: dict[str, Any], options: dict[str, Any]
) -> None:
    shrink(monkeypatch, **sizes)
    request = make_request(registry.find(name), None, {"weights": "random", "artifacts": str(tmp_path), **options})

    outcomes = pipeline.build(Job(request, FORMS))

    assert [outcome.status for outcome in outcomes] == ["built", "built"], outcomes


LEFT_OUT = Path(__file__).parent.parent / "docs" / "left_out.md"


def test_what_the_docs_list_as_left_out_is_not_registered() -> None:
    names = re.findall(r"^\| `([^`]+)`", LEFT_OUT.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert len(names) > 10
    for name in names:
        with pytest.raises(UnknownModelError):
            registry.find(name)
