"""Shared by all tests: the tiny backbones, a store built once, and where hardware tests are skipped."""

import os
from pathlib import Path

import pytest
import tiny_backbones  # noqa: F401  (registers test/*)

from exporters import pipeline
from exporters.plan import Job
from runtime import registry
from runtime.machine import nvidia_driver, onnxruntime_distributions
from runtime.manifest import Form
from runtime.request import Request, make_request

# Child processes that builds start import the tiny backbones, too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
# No test may reach a hub by accident.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("BACKBONE_ARTIFACTS", None)
os.environ.pop("BACKBONE_ON_FALLBACK", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU, visibly, where there is none."""
    if nvidia_driver() and "onnxruntime-gpu" in onnxruntime_distributions():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA driver or no onnxruntime-gpu"))


# What a build makes by default, but for the graphs made for CUDA.
FORMATS = ("onnx", "torchscript")
FORMS = tuple(map(Form, FORMATS))


def request_for(name: str, **options: object) -> Request:
    """Return the request that load_model(name, **options) would make."""
    return make_request(registry.find(name), None, options)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds test/tiny_vit (loud random weights): the embedding and the last two maps, in both formats."""
    root = tmp_path_factory.mktemp("built")
    for out_indices in (None, 2):
        options = {"weights": "random", "artifacts": str(root)}
        if out_indices is not None:
            options["out_indices"] = out_indices
        job = Job(request_for("test/tiny_vit", **options), FORMS)
        outcomes = pipeline.build(job)
        assert [o.status for o in outcomes] == ["built", "built"], outcomes
    return root
