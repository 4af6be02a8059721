"""The registry: which names exist, who may add one, and what a wrong name is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime import BackboneModelRegistry, list_models, register_model
from runtime.errors import RegistrationError, UnknownModelError
from runtime.registry import find

NAMES = [
    "pathology/bioptimus_h0_mini",
    "pathology/bioptimus_h_optimus_0",
    "pathology/bioptimus_h_optimus_1",
    "pathology/histai_hibou_b",
    "pathology/histai_hibou_l",
    "pathology/hkust_gpfm",
    "pathology/hkust_mstar",
    "pathology/hms_chief",
    "pathology/kaiko_midnight_12k",
    "pathology/kaiko_vitb16",
    "pathology/kaiko_vitb8",
    "pathology/kaiko_vitl14",
    "pathology/kaiko_vits16",
    "pathology/kaiko_vits8",
    "pathology/lunit_resnet50_bt",
    "pathology/lunit_resnet50_mocov2",
    "pathology/lunit_resnet50_swav",
    "pathology/lunit_vits16",
    "pathology/lunit_vits8",
    "pathology/mahmood_conch_v1",
    "pathology/mahmood_uni",
    "pathology/mahmood_uni2_h",
    "pathology/nirschl_isight",
    "pathology/owkin_phikon",
    "pathology/owkin_phikon_v2",
    "pathology/paige_virchow",
    "pathology/paige_virchow2",
    "pathology/prov_gigapath",
    "pathology/resnet50",
    "pathology/sichuan_ctranspath",
    "pathology/sjtu_keep",
    "pathology/sophont_openmidnight",
    "pathology/stanford_musk",
    "pathology/vinid_plip",
    "radiology/segresnet_encoder",
    "radiology/suprem_segresnet",
    "radiology/suprem_swin_unetr",
    "radiology/swin_unetr_encoder",
    "radiology/universal_swinunetr",
    "radiology/voco_b",
    "radiology/voco_h",
    "radiology/voco_l",
    "universal/dinov2_vitb14",
    "universal/dinov2_vitb14_reg",
    "universal/dinov2_vitg14",
    "universal/dinov2_vitg14_reg",
    "universal/dinov2_vitl14",
    "universal/dinov2_vitl14_reg",
    "universal/dinov2_vits14",
    "universal/dinov2_vits14_reg",
    "universal/vit_base_patch16_224_dino_1chan",
    "universal/vit_small_patch16_224_dino",
    "universal/vit_small_patch16_224_dino_1chan",
    "universal/vit_small_patch16_224_random",
    "universal/vit_tiny_patch16_224_random",
]
# Every name that a backbone listed above had in some state of kaiko eva.
FORMER_NAMES = {
    "paige/virchow2": "pathology/paige_virchow2",
    "segresnet_encoder": "radiology/segresnet_encoder",
    "universal/vit_small_patch16_224_imagenet": "universal/vit_small_patch16_224_dino",
    "vits16_imagenet": "universal/vit_small_patch16_224_dino",
    "vits16_random": "universal/vit_small_patch16_224_random",
    **{f"kaiko_{v}": f"pathology/kaiko_{v}" for v in ("vits16", "vits8", "vitb16", "vitb8", "vitl14")},
    **{
        f"torchhub/kaiko-ai/towards_large_pathology_fms:{v}": f"pathology/kaiko_{v}"
        for v in ("vits16", "vits8", "vitb16", "vitb8", "vitl14")
    },
}


def builder() -> None:
    """Stands for a registered function; never called."""


def in_a_fresh_interpreter(code: str, *paths: Path) -> object:
    """Run `code`, which prints JSON, in a new process and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_exactly_the_expected_names_are_listed_where_no_heavy_package_can_be_imported() -> None:
    code = """
import json, sys
sys.modules.update(dict.fromkeys(["torch", "timm", "transformers", "onnx", "onnxruntime", "numpy", "PIL"]))
import runtime
print(json.dumps(runtime.list_models()))
"""

    assert in_a_fresh_interpreter(code) == NAMES


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("universal/*", [name for name in NAMES if name.startswith("universal/")]),
        ("*kaiko_vit*", [f"pathology/kaiko_{v}" for v in ("vitb16", "vitb8", "vitl14", "vits16", "vits8")]),
        ("pathology/kaiko_vit?16", ["pathology/kaiko_vitb16", "pathology/kaiko_vits16"]),
        (
            ("universal/*_random", "pathology/lunit_v*", "*lunit_vits8"),
            [
                "pathology/lunit_vits16",
                "pathology/lunit_vits8",
                "universal/vit_small_patch16_224_random",
                "universal/vit_tiny_patch16_224_random",
            ],
        ),
        ("pathology/mahmood_uni", ["pathology/mahmood_uni"]),
        ("PATHOLOGY/*", []),
        ((), []),
    ],
)
def test_a_glob_or_several_pick_names_in_sorted_order(pattern: str | tuple[str, ...], expected: list[str]) -> None:
    assert list_models(pattern) == expected
    assert BackboneModelRegistry.list_models(pattern) == expected


@pytest.mark.parametrize("former", FORMER_NAMES)
def test_a_former_name_leads_to_the_backbone_but_is_not_listed(former: str) -> None:
    assert find(former) is find(FORMER_NAMES[former])
    assert list_models(former) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pathology/kaiko_vits61", "Nearest: pathology/kaiko_vits16, pathology/kaiko_vits8, pathology/kaiko_"),
        ("kaiko_vits61", "Nearest: pathology/kaiko_vits16, pathology/kaiko_vits8, pathology/kaiko_"),
        ("virchow2", "Nearest: pathology/paige_virchow2, pathology/paige_virchow. See list_models('*virchow2*') or "),
        ("gigapath", "Nearest: pathology/prov_gigapath. See list_models('*gigapath*') or list_models()."),
        ("qqq/zzzz", "See list_models('*zzzz*') or list_models()."),
        (None, "See list_models("),
    ],
)
def test_an_unknown_name_is_told_the_nearest_ones(name: str, hint: str) -> None:
    with pytest.raises(UnknownModelError) as error:
        runtime.load_model(name)

    assert str(error.value).startswith(f"No backbone is registered as {name!r}. {hint}")


@pytest.mark.parametrize("register", [register_model, BackboneModelRegistry.register])
def test_the_decorated_function_is_returned_and_kept_untouched(register: object) -> None:
    name = f"test/registry_{register.__name__}"

    returned = register(name, licence="MIT", gated=True, aliases=(f"{name}_alias",))(builder)  # type: ignore[operator]

    assert returned is builder
    assert BackboneModelRegistry.get(name) is builder
    assert (find(f"{name}_alias").name, find(name).licence, find(name).gated) == (name, "MIT", True)
    assert name in list_models("test/*")


@pytest.mark.parametrize(
    ("name", "aliases", "taken"),
    [
        ("test/tiny_vit", (), "test/tiny_vit"),
        ("paige/virchow2", (), "paige/virchow2"),
        ("test/registry_new", ("test/tiny_vit",), "test/tiny_vit"),
        ("test/registry_new", ("test/registry_new_too", "paige/virchow2"), "paige/virchow2"),
    ],
)
def test_a_name_can_be_registered_only_once(name: str, aliases: tuple[str, ...], taken: str) -> None:
    owner = find(taken).build

    with pytest.raises(RegistrationError, match=rf"^A backbone is already registered as '{taken}' \(by .*\.\w+\)"):
        register_model(name, aliases=aliases)(builder)

    assert find(taken).build is owner
    assert list_models("test/registry_new*") == []
    with pytest.raises(UnknownModelError):
        find("test/registry_new_too")


def test_an_unknown_fact_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RegistrationError) as error:
        register_model("test/registry_facts", license="MIT", depth=3, channels=1)

    assert str(error.value) == (
        "register_model('test/registry_facts') got channels, license. Declared facts are: "
        "aliases, preprocessing, source, licence, gated, depth, patch_size, extra."
    )


@pytest.mark.parametrize(
    "name",
    [builder, None, "", "/", "..", "../mine", "/mine", "my/../../mine", "my//mine", "my/", "my\\..", ".locks/mine"],
)
def test_a_name_that_is_none_or_leads_out_of_the_store_is_refused(name: object) -> None:
    with pytest.raises(RegistrationError) as error:
        register_model(name)  # type: ignore[arg-type]

    assert str(error.value) == f"{name!r} is no name for a backbone. Write @register_model('my/name')."


def test_one_alias_written_as_a_plain_string_is_refused() -> None:
    with pytest.raises(RegistrationError, match=r"aliases='xyz' must be a tuple"):
        register_model("test/registry_alias", aliases="xyz")


def install(site: Path, package: str, code: str) -> None:
    """Put a package with an entry point in the group `backbones` where an installer would."""
    (site / f"{package}.py").write_text(code)
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[backbones]\nof_{package} = {package}\n")


def test_an_installed_plugin_adds_its_backbones_and_a_broken_one_is_named_in_a_warning(tmp_path: Path) -> None:
    registers = "from runtime import register_model\n@register_model({!r})\ndef build(): return 'mine'\n"
    install(tmp_path, "good_plugin", registers.format("plugin/good"))
    install(tmp_path, "broken_plugin", "import not_there_at_all\n")
    install(tmp_path, "greedy_plugin", registers.format("pathology/mahmood_uni"))
    code = """
import json, warnings
import runtime
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = runtime.list_models()
    again = runtime.list_models()
assert names == again
built = runtime.BackboneModelRegistry.get("plugin/good")()
uni = runtime.BackboneModelRegistry.get("pathology/mahmood_uni").__module__
print(json.dumps([names, built, uni, sorted(f"{w.category.__name__}: {w.message}" for w in caught)]))
"""

    names, built, uni, warned = in_a_fresh_interpreter(code, tmp_path)

    assert names == sorted([*NAMES, "plugin/good"])
    assert built == "mine"
    assert uni == "runtime.backbones.mahmood"
    assert warned == [
        "PluginWarning: Backbones of the installed plugin 'of_broken_plugin' (broken_plugin) are not available: "
        "ModuleNotFoundError: No module named 'not_there_at_all'",
        "PluginWarning: Backbones of the installed plugin 'of_greedy_plugin' (greedy_plugin) are not available: "
        "RegistrationError: A backbone is already registered as 'pathology/mahmood_uni' "
        "(by runtime.backbones.mahmood.mahmood_uni). Choose another name.",
    ]


def test_a_plugins_backbone_is_found_by_name_without_listing_first(tmp_path: Path) -> None:
    install(tmp_path, "good_plugin", "import runtime\nruntime.register_model('plugin/good')(lambda: 'mine')\n")
    code = "import json; from runtime.registry import find; print(json.dumps(find('plugin/good').build()))"

    assert in_a_fresh_interpreter(code, tmp_path) == "mine"


def test_the_public_names_are_these() -> None:
    assert runtime.__all__ == [
        "Backbone",
        "BackboneModelRegistry",
        "HubFile",
        "LibraryInit",
        "LocalFile",
        "ModelFromRegistry",
        "Preprocessing",
        "Url",
        "embed",
        "errors",
        "list_models",
        "load_model",
        "pull",
        "register_model",
        "wrappers",
    ]
    assert dir(runtime) == runtime.__all__
    assert all(getattr(runtime, name).__name__.rpartition(".")[2] == name for name in runtime.__all__)
    with pytest.raises(AttributeError, match="module 'runtime' has no attribute 'load_modle'"):
        runtime.load_modle  # type: ignore[attr-defined]  # noqa: B018
