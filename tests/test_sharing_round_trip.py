"""What was built, pushed and pulled, whatever its weights are: the real client against a hub on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import request_for
from hub_server import Hub
from loopback import serving
from sharing_client import Client, client

from exporters import pipeline
from exporters.plan import Job
from runtime import load_model
from runtime.artifacts import Store
from runtime.manifest import Form

REPO = "our-lab/backbones"
INITIAL, NEGATIVE = "test/tiny_initial", "test/tiny_vit"
OPTIONS: dict[str, dict[str, Any]] = {INITIAL: {}, NEGATIVE: {"weights": "random", "seed": -1}}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose weights are a library's own initialisation, and loud ones of a negative seed."""
    root = tmp_path_factory.mktemp("pushed")
    for name, options in OPTIONS.items():
        outcomes = pipeline.build(Job(request_for(name, artifacts=str(root), **options), (Form("onnx"),)))
        assert [o.status for o in outcomes] == ["built"], outcomes
    return root


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, pushed: Path) -> Iterator[Client]:
    """Somebody whose hub holds what that store does."""
    with serving(Hub) as hub, client(tmp_path_factory.mktemp("user"), hub.url) as running:
        ended = running.run("push", REPO, "--artifacts", pushed)
        assert ended.status == 0, ended.err
        yield running


def test_the_weights_are_those_that_only_some_backbones_have(pushed: Path) -> None:
    keys = {name: [a.key.weights for a in Store(pushed).read(name).artifacts] for name in OPTIONS}

    assert keys == {INITIAL: ["initial:3"], NEGATIVE: ["random:-1"]}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_was_pushed_is_pulled_and_serves_the_same_numbers(
    name: str, user: Client, pushed: Path, tmp_path: Path
) -> None:
    ended = user.run("pull", REPO, name, "--artifacts", tmp_path)

    assert ended.status == 0, ended.err
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    options: dict[str, Any] = {"backend": "onnx", "device": "cpu", "on_fallback": "error", **OPTIONS[name]}
    pulled, original = (load_model(name, artifacts=root, **options)(images) for root in (tmp_path, pushed))
    np.testing.assert_array_equal(pulled, original)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_was_pushed_is_served_straight_from_the_repository(name: str, user: Client) -> None:
    options = {"backend": "onnx", "device": "cpu", "on_fallback": "error", "artifacts": f"hf://{REPO}"}

    ended = user.run("load", name, options | OPTIONS[name])

    assert ended.status == 0, ended.err
    assert ended.lines[0]["backend"] == "onnx"


def test_the_repository_takes_a_further_push(user: Client, pushed: Path) -> None:
    assert user.run("push", REPO, "--artifacts", pushed).out == f"hf://{REPO} is up to date.\n"
