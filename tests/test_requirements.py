"""What a backbone needs installed: said before anything is built, with the extra that brings it."""

import tomllib
from dataclasses import replace

import pytest
from conftest import request_for
from environments import ROOT

from runtime import eager, registry, requirements
from runtime.backends import onnx, openvino
from runtime.errors import DependencyError
from runtime.load import load_model


def built_in() -> registry.BackboneSpec:
    return registry.find("universal/vit_tiny_patch16_224_random")


@pytest.mark.parametrize(
    ("gone", "extra", "said"),
    [
        ((), None, None),
        ((), "radiology", None),
        (("torch", "timm"), None, "torch is not installed: pip install 'backbone-runtime[eager]'."),
        (("timm",), "radiology", "timm is not installed: pip install 'backbone-runtime[eager,radiology]'."),
        (("monai",), "radiology", "monai is not installed: pip install 'backbone-runtime[eager,radiology]'."),
        (
            ("monai", "einops"),
            "radiology",
            "monai and einops are not installed: pip install 'backbone-runtime[eager,radiology]'.",
        ),
        (("transformers",), "transformers", "transformers is not installed: pip install"),
        (("transformers",), None, None),
    ],
)
def test_what_is_missing_is_named_with_the_extra_that_brings_it(
    gone: tuple[str, ...], extra: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "installed", lambda package: package not in gone)
    hint = requirements.missing_for_eager(replace(built_in(), extra=extra))
    assert hint is None if said is None else hint is not None and hint.startswith(said)


def test_versions_that_are_too_old_are_those_that_the_package_does_not_allow() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra, oldest in (("gpu", onnx.OLDEST), ("cpu", onnx.OLDEST), ("openvino", openvino.OLDEST)):
        assert about[extra][0].endswith(f">={oldest}")


def test_a_users_own_function_does_not_need_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "installed", lambda package: package != "timm")
    assert requirements.missing_for_eager(registry.find("test/own")) is None


def test_eager_says_what_is_missing_before_it_calls_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> None:
        raise AssertionError("called")

    monkeypatch.setattr(requirements, "installed", lambda package: package != "monai")
    request = request_for("test/own")
    request = replace(request, spec=replace(request.spec, build=build, extra="radiology"))
    with pytest.raises(DependencyError, match=r"'test/own' as eager torch: monai is not installed: pip install"):
        eager.build(request)


def test_load_model_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "installed", lambda package: package != "timm")
    with pytest.raises(DependencyError, match="backend='eager': timm is not installed"):
        load_model("universal/vit_tiny_patch16_224_random", backend="eager")


def test_every_extra_that_a_backbone_names_is_one_of_the_package() -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in requirements.EXTRAS.items():
        wanted = " ".join(offered[extra])
        assert all(package in wanted for package in packages)
    named = {registry.find(name).extra for name in registry.list_models()} - {None}
    assert named <= set(requirements.EXTRAS)
