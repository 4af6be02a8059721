"""Where TensorRT keeps its engines: never shared by what must not share them."""

from pathlib import Path
from typing import Any

import pytest
from conftest import request_for
from onnx import TensorProto, save
from onnx import helper as onnx_helper

from exporters.serving.graph import look_at
from runtime.backends import onnx
from runtime.machine import engine_machine, gpu_name, nvidia_driver
from runtime.providers import CUDA, Choice
from runtime.tensorrt import TENSORRT, engine_key, engine_options, takes_profiles

MACHINE = {"gpu": "NVIDIA H200", "driver": "13000", "tensorrt": "101301", "onnxruntime-gpu": "1.31.1"}


def test_engines_are_found_again_on_the_same_machine() -> None:
    assert engine_key("ab", MACHINE) == engine_key("ab", dict(reversed(MACHINE.items())))
    assert len(engine_key("ab", MACHINE)) == 16


@pytest.mark.parametrize("fact", MACHINE)
def test_another_gpu_or_version_has_engines_of_its_own(fact: str) -> None:
    assert engine_key("ab", MACHINE) != engine_key("ab", MACHINE | {fact: "other"})


def test_another_graph_has_engines_of_its_own() -> None:
    assert engine_key("ab", MACHINE) != engine_key("cd", MACHINE)


def test_with_batch_sizes_one_engine_serves_them_all() -> None:
    options = engine_options(Path("cache"), 1, "images", (3, 224, 224), (1, 8, 64))

    assert options["trt_profile_min_shapes"] == "images:1x3x224x224"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "images:64x3x224x224"
    assert (options["device_id"], options["trt_engine_cache_path"]) == (1, "cache")


def test_batch_sizes_in_any_order_give_one_range_of_shapes() -> None:
    assert request_for("test/tiny_vit", batch_sizes=(64, 1, 8, 8)).batch_sizes == (1, 8, 64)


@pytest.mark.parametrize(("name", "takes"), [("convolutions", True), ("attention of onnxruntime", False)])
def test_a_graph_with_operators_of_onnxruntime_gets_no_profiles(name: str, takes: bool, tmp_path: Path) -> None:
    domain = "" if takes else "com.microsoft"
    node = onnx_helper.make_node("Gelu", ["x"], ["y"], domain=domain)
    values = [onnx_helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch"]) for n in "xy"]
    opsets = [onnx_helper.make_opsetid("", 20), *([] if takes else [onnx_helper.make_opsetid(domain, 1)])]
    body = onnx_helper.make_graph([node], name, values[:1], values[1:])
    save(onnx_helper.make_model(body, opset_imports=opsets), tmp_path / "graph.onnx")

    assert takes_profiles(tmp_path / "graph.onnx") == takes
    assert (not look_at(tmp_path / "graph.onnx").own_operators) == takes, "Triton is told otherwise"


def test_without_batch_sizes_engines_follow_the_images() -> None:
    assert not [o for o in engine_options(Path("cache"), 0, "images", (3, 32, 32), None) if "profile" in o]


def test_tensorrt_is_asked_to_keep_engines_and_callers_may_say_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "user_cache", lambda: tmp_path / "cache")
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"graph")

    def asked(**options: Any) -> dict[str, Any]:
        given = {
            "backend": "onnx",
            "providers": [TENSORRT, CUDA],
            "gpu_mem_limit": 1 << 30,
            "batch_sizes": (1, 8),
            **options,
        }
        choice = Choice((TENSORRT, CUDA), TENSORRT, "")
        return dict(onnx._with_options(graph, request_for("test/tiny_vit", **given), choice))

    first = asked()[TENSORRT]
    assert Path(first["trt_engine_cache_path"]).parent == tmp_path / "cache" / "tensorrt"
    assert Path(first["trt_engine_cache_path"]).is_dir()
    assert first["trt_profile_max_shapes"] == "images:8x3x32x32"
    assert asked(input="uint8")[TENSORRT]["trt_profile_max_shapes"] == "images:8x32x32x3"
    assert asked()[CUDA] == {"device_id": 0, "use_tf32": 0, "gpu_mem_limit": 1 << 30}
    own = asked(provider_options=[{"trt_engine_cache_path": "mine"}])[TENSORRT]
    assert (own["trt_engine_cache_path"], own["trt_engine_cache_enable"]) == ("mine", True)
    graph.write_bytes(b"of com.microsoft")
    assert not [option for option in asked()[TENSORRT] if "profile" in option]
    assert asked()[TENSORRT]["trt_engine_cache_path"] != first["trt_engine_cache_path"]


@pytest.mark.skipif(nvidia_driver(), reason="there is a driver")
def test_a_machine_without_a_gpu_has_facts_about_none() -> None:
    assert gpu_name(0) is None
    assert engine_machine(0)["gpu"] is None
