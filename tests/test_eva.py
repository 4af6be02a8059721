"""ModelFromRegistry inside eva: the documented configurations, run by the real package on small generated data."""

from pathlib import Path

import builds
import eva_data
import pytest
import torch
from eva_environment import ROOT, Run, evaluate, install, own_configurations, start, tell
from test_eva_pages import FRAGMENTS

CONFIGURATIONS = ROOT / "docs" / "eva"
WIDTH = 192  # channels of a map, and numbers in an embedding, of the smallest ViT
# A real architecture with weights that matter, each of them; pictures of 224 pixels, as eva makes them.
MODEL = {
    "MODEL_NAME": "timm/vit_tiny_patch16_224",
    "MODEL_EXTRA_KWARGS": "{weights: random}",
    "N_DATA_WORKERS": "2",
    "N_RUNS": "1",
    "TQDM_REFRESH_RATE": "0",
}
# Fewer steps, and eva finds no best checkpoint: it looks at the metric once an epoch.
CLASSIFICATION = MODEL | {"IN_FEATURES": str(WIDTH), "MAX_STEPS": "40", "LR_VALUE": "0.02"}
SEGMENTATION = MODEL | {"IN_FEATURES": str(2 * WIDTH), "OUT_INDICES": "2", "MAX_STEPS": "40", "BATCH_SIZE": "8"}
# eva's own configurations have ImageNet's by default, which are not this model's either.
NORMALISED = {"NORMALIZE_MEAN": "[0.5,0.5,0.5]", "NORMALIZE_STD": "[0.5,0.5,0.5]"}
# Its optimizer is another, which needs fewer steps; each epoch starts its workers anew.
FEW_EPOCHS = {"MAX_STEPS": "12", "LR_VALUE": "0.01", "N_DATA_WORKERS": "1"}
# The decoder of maps alone is thrown off by steps ten times as large, into one class for all pixels.
OF_MAPS, OF_MAPS_AND_IMAGE = {"LR_VALUE": "0.0001"}, {"LR_VALUE": "0.001"}
# Relative RMS between what eager torch and the artifact give for one picture: ten times the error either one has.
PARITY = 1e-5

# A decoder trained on both maps and pixels makes more of the last digit: between one thread and two, eager torch's own
# scores move by 1.6e-4 (micro Dice of the second run, 0.26622 and 0.26638).
AS_EAGER_WITH_ANOTHER_THREAD = 5e-4

SHOWN = dict(FRAGMENTS)["consep_online.yaml"]

# A run is half a minute of processor time, most of it eva's own start.
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of eva's environment."""
    return install()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The artifacts of MODEL: its embedding and its last two maps."""
    root = tmp_path_factory.mktemp("store")
    variants = ("--out-indices", "none", "--out-indices", "2", "--format", "onnx", "--target", "cpu")
    ran = builds.run_command(MODEL["MODEL_NAME"], "--weights", "random", *variants, "--artifacts", root)
    assert ran.status == 0, ran.err
    return str(root)


@pytest.fixture(scope="module")
def bach(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(eva_data.write_bach(tmp_path_factory.mktemp("bach")))


@pytest.fixture(scope="module")
def consep(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(eva_data.write_consep(tmp_path_factory.mktemp("consep")))


@pytest.fixture(scope="module")
def own(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """eva's own configurations, with the one line changed."""
    return own_configurations(tmp_path_factory.mktemp("own"))


def both(python: Path, folder: Path, stage: str, configuration: Path, **variables: str) -> tuple[Run, Run]:
    """Return what eva finds with eager torch and with the artifact."""
    eager, onnx = (
        evaluate(python, folder / backend, stage, configuration, **variables | naming(backend, configuration))
        for backend in ("eager", "onnx")
    )
    return eager, onnx


def naming(backend: str, configuration: Path) -> dict[str, str]:
    """Return the variables that name a backend: ours have one for it, in eva's own it is one of the keywords."""
    if configuration.parent == CONFIGURATIONS:
        return {"BACKEND": backend}
    return {"MODEL_EXTRA_KWARGS": f"{{weights: random, backend: {backend}, on_fallback: error}}"}


def written(run: Run) -> dict[str, list[torch.Tensor]]:
    """Return what eva stored for each picture: a list of tensors."""
    files = sorted(path for path in run.embeddings.rglob("*.pt") if not path.stem.endswith("-mask"))
    return {str(path.relative_to(run.embeddings)): torch.load(path) for path in files}


def assert_same_numbers_from_different_backends(eager: Run, onnx: Run, shape: tuple[int, ...], pictures: int) -> None:
    expected, found = written(eager), written(onnx)
    assert list(expected) == list(found)
    assert len(found) == pictures
    assert all(isinstance(tensors, list) for tensors in found.values())
    assert {tuple(torch.stack(tensors).shape) for tensors in found.values()} == {shape}
    pairs = [(torch.stack(expected[name]), torch.stack(found[name])) for name in found]
    assert max(float((a - b).norm() / a.norm()) for a, b in pairs) < PARITY
    assert not all(torch.equal(a, b) for a, b in pairs)  # the same to the last bit would be the same backend twice


def test_a_classification_has_the_same_metrics_with_eager_torch_and_with_the_artifact(
    python: Path, store: str, bach: str, tmp_path: Path
) -> None:
    variables = CLASSIFICATION | {"DATA_ROOT": bach, "BACKBONE_ARTIFACTS": store}

    eager, onnx = both(python, tmp_path, "predict_fit", CONFIGURATIONS / "bach.yaml", **variables)

    assert_classified_alike(eager, onnx)


def test_evas_own_classification_with_one_line_changed_has_the_same_metrics(
    python: Path, own: Path, store: str, bach: str, tmp_path: Path
) -> None:
    variables = CLASSIFICATION | NORMALISED | {"DATA_ROOT": bach, "BACKBONE_ARTIFACTS": store} | FEW_EPOCHS

    eager, onnx = both(python, tmp_path, "predict_fit", own / "bach.yaml", **variables)

    assert_classified_alike(eager, onnx)


def assert_classified_alike(eager: Run, onnx: Run) -> None:
    assert_same_numbers_from_different_backends(eager, onnx, (1, WIDTH), pictures=400)
    loss, area = "AverageLoss", "MulticlassAUROC"
    counted = {name: values for name, values in eager.metrics.items() if name not in (loss, area)}
    assert {name: onnx.metrics[name] for name in counted} == counted
    assert onnx.metrics[loss] == pytest.approx(eager.metrics[loss], rel=PARITY)
    assert onnx.metrics[area] == pytest.approx(eager.metrics[area], rel=PARITY)
    (accuracy,) = counted["MulticlassAccuracy"]
    assert 0.4 < accuracy < 0.98  # something was learned (chance is 0.25), and not everything: a metric that can differ


def test_a_segmentation_has_the_same_metrics_and_every_map_comes_through_as_a_list(
    python: Path, store: str, consep: str, tmp_path: Path
) -> None:
    variables = SEGMENTATION | OF_MAPS | {"DATA_ROOT": consep, "BACKBONE_ARTIFACTS": store}

    eager, onnx = both(python, tmp_path, "predict_fit", CONFIGURATIONS / "consep.yaml", **variables)

    assert_same_numbers_from_different_backends(eager, onnx, (2, WIDTH, 14, 14), pictures=41)
    assert_segmented_alike(eager, onnx)


def test_evas_own_segmentation_with_one_line_changed_has_the_same_metrics(
    python: Path, own: Path, store: str, consep: str, tmp_path: Path
) -> None:
    variables = SEGMENTATION | OF_MAPS | NORMALISED | {"DATA_ROOT": consep, "BACKBONE_ARTIFACTS": store}

    eager, onnx = both(python, tmp_path, "predict_fit", own / "consep.yaml", **variables)

    assert_same_numbers_from_different_backends(eager, onnx, (2, WIDTH, 14, 14), pictures=41)
    assert_segmented_alike(eager, onnx)


def test_a_backbone_inside_the_model_is_copied_for_each_run_and_gives_the_same_metrics(
    python: Path, store: str, consep: str, tmp_path: Path
) -> None:
    variables = SEGMENTATION | OF_MAPS_AND_IMAGE | {"DATA_ROOT": consep, "BACKBONE_ARTIFACTS": store, "N_RUNS": "2"}

    eager, onnx = both(python, tmp_path, "fit", CONFIGURATIONS / "consep_online.yaml", **variables)

    assert_segmented_alike(eager, onnx, within=AS_EAGER_WITH_ANOTHER_THREAD)
    assert len(onnx.metrics["MonaiDiceScore"]) == 2


def assert_segmented_alike(eager: Run, onnx: Run, within: float = 1e-4) -> None:
    # Of 700,000 pixels some lie where two classes are equal to six digits: the score may move by as much.
    assert onnx.metrics.keys() == eager.metrics.keys() > {"AverageLoss", "MonaiDiceScore"}
    for name, values in eager.metrics.items():
        assert onnx.metrics[name] == pytest.approx(values, abs=within), name
    assert all(0.1 < score < 0.98 for score in onnx.metrics["MonaiDiceScore"])


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OUT_INDICES": "4"}, "Built: 2, onnx for cpu, fp32, 224x224, random:0 weights; embedding, onnx for cpu"),
        ({"OUT_INDICES": "(-4, -2)"}, "In YAML and in environment variables a list is written [-4, -2]."),
        ({"MODEL_NAME": "pathology/kaiko_vits61"}, "Nearest: pathology/kaiko_vits16"),
        ({"MODEL_EXTRA_KWARGS": "{weights: random, dynamic_img_size: true}"}, "unknown keyword: dynamic_img_size"),
    ],
)
def test_what_cannot_be_had_ends_eva_with_the_reason(
    variables: dict[str, str], said: str, python: Path, store: str, consep: str, tmp_path: Path
) -> None:
    given = SEGMENTATION | {"DATA_ROOT": consep, "BACKBONE_ARTIFACTS": store, "OUTPUT_ROOT": str(tmp_path)} | variables

    done = start(python, python.parent / "eva", "predict_fit", "--config", CONFIGURATIONS / "consep.yaml", **given)

    assert done.returncode != 0
    assert said in done.stdout
    assert list(tmp_path.rglob("results.json")) == []


def test_out_indices_come_from_the_environment_as_eva_reads_it(python: Path) -> None:
    code = f"""
import json, os
import torch
from jsonargparse import ArgumentParser
from torch import nn

parser = ArgumentParser(parser_mode="omegaconf")
parser.add_argument("--encoder", type=nn.Module)
told = []
for value in (None, "2", "[-4, -2]"):
    if value is not None:
        os.environ["OUT_INDICES"] = value
    model = parser.instantiate_classes(parser.parse_string({SHOWN!r})).encoder
    told.append([list(one_map.shape) for one_map in model(torch.zeros(1, 3, 224, 224))])
print(json.dumps([model.backbone.info["out_indices"], told]))
"""
    one_map = [1, WIDTH, 14, 14]

    out_indices, told = tell(python, code, BACKEND="eager", **MODEL)

    assert told == [[one_map], [one_map] * 2, [one_map] * 2]
    assert out_indices == [-4, -2]


def test_every_backbone_of_eva_is_registered_here_under_its_name(python: Path) -> None:
    code = """
import json
from eva.vision.models.networks.backbones import backbone_registry
from runtime import registry
from runtime.errors import UnknownModelError

def known(name):
    try:
        return bool(registry.find(name))
    except UnknownModelError:
        return False

names = backbone_registry.entries()
print(json.dumps([len(names), [name for name in names if not known(name)], known("pathology/nothing")]))
"""

    count, unknown, nothing = tell(python, code)

    assert count > 1000
    assert unknown == []
    assert not nothing


def test_this_environment_has_the_onnxruntime_that_eva_brings(python: Path) -> None:
    code = """
import json
from runtime.machine import onnxruntime_distributions
print(json.dumps(onnxruntime_distributions()))
"""

    assert tell(python, code) == ["onnxruntime"]
