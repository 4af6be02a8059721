"""Which weights may be made public."""

from dataclasses import replace

import pytest
from environments import ROOT

from exporters.redistribution import Terms, obstacles, require_permission, restricted, terms_of
from runtime import list_models, registry
from runtime.errors import RedistributionError
from runtime.facts import LibraryInit
from runtime.manifest import Artifact, ArtifactKey, Manifest, StoredFile

KEY = ArtifactKey(None, "onnx", "cpu", "fp32", (224, 224), (), "pretrained")
ARTIFACT = Artifact(KEY, (StoredFile("graph.onnx", 1, ""),), (), ())


def of(model: str, weights: str = "pretrained", **source: object) -> Manifest:
    facts = {"source": source} if source else {}
    return Manifest(model, (replace(ARTIFACT, key=replace(KEY, weights=weights), facts=facts),))


@pytest.mark.parametrize(
    ("licence", "gated", "weights", "reasons"),
    [
        ("Apache-2.0", False, "pretrained", []),
        ("apache-2.0", False, "pretrained", []),
        ("MIT", False, "pretrained", []),
        ("CC-BY-NC-4.0", False, "pretrained", []),
        ("Apache-2.0", True, "pretrained", ["gated"]),
        ("Apache-2.0, with conditions", False, "pretrained", ["is not one that is known to permit it"]),
        ("CC-BY-NC-ND-4.0", False, "pretrained", ["CC-BY-NC-ND-4.0 forbids sharing what was adapted"]),
        ("CC-BY-NC-ND-4.0", True, "pretrained", ["gated", "CC-BY-NC-ND-4.0 forbids"]),
        ("Owkin non-commercial licence", False, "pretrained", ["'Owkin non-commercial licence' is not one"]),
        (None, False, "pretrained", ["no licence is stated"]),
        ("MIT", False, "checkpoint:0123456789ab", ["built from a local checkpoint"]),
        ("CC-BY-NC-ND-4.0", True, "random:0", []),
        (None, False, "initial:3", []),
    ],
)
def test_what_forbids_it_is_told(licence: str | None, gated: bool, weights: str, reasons: list[str]) -> None:
    found = obstacles(Terms(licence, gated, weights))

    assert len(found) == len(reasons)
    assert all(reason in line for reason, line in zip(reasons, found, strict=True)), found


def test_the_registry_states_the_terms_whatever_a_manifest_says() -> None:
    (artifact,) = of("pathology/mahmood_uni", licence="MIT", gated=False).artifacts

    assert terms_of("pathology/mahmood_uni", artifact) == Terms("CC-BY-NC-ND-4.0", True, "pretrained")


def test_the_manifest_states_the_terms_of_a_backbone_that_is_not_registered_here() -> None:
    (artifact,) = of("their/own", licence="MIT", gated=True).artifacts

    assert terms_of("their/own", artifact) == Terms("MIT", True, "pretrained")


def test_a_refusal_names_each_backbone_and_what_forbids_it() -> None:
    manifests = [of("pathology/mahmood_uni"), of("universal/vit_small_patch16_224_dino"), of("their/own")]

    with pytest.raises(RedistributionError) as caught:
        require_permission(manifests, "our-lab/backbones")

    assert str(caught.value) == (
        "our-lab/backbones is public, and what would be pushed is not free to be:\n"
        "  pathology/mahmood_uni: gated, its publisher gives it only to those who accept the terms; its licence "
        "CC-BY-NC-ND-4.0 forbids sharing what was adapted (ND)\n"
        "  their/own: no licence is stated, so nobody has permission\n"
        "Nothing was pushed. Push to a private repository (--private makes one), name other models, or add "
        "--redistribution-allowed if the publisher has given you permission."
    )


def test_random_weights_of_any_backbone_may_be_shared() -> None:
    assert restricted([of(name, "random:0") for name in list_models()]) == []


def test_every_gated_backbone_of_the_registry_is_held_back() -> None:
    gated = [name for name in list_models() if registry.find(name).gated]

    assert len(gated) >= 14
    assert len(restricted([of(name) for name in gated])) == len(gated)


def test_of_the_registry_only_backbones_with_a_permitting_licence_pass() -> None:
    passing = [name for name in list_models() if not restricted([of(name)])]

    licences = {registry.find(n).licence for n in passing if not isinstance(registry.find(n).source, LibraryInit)}
    assert licences == {"Apache-2.0", "MIT", "BSD-3-Clause", "AGPL-3.0", "GPL-3.0"}


def test_the_documentation_shows_the_refusal_as_it_is() -> None:
    with pytest.raises(RedistributionError) as caught:
        require_permission([of("pathology/mahmood_uni")], "our-lab/backbones")

    assert f"error: {caught.value}\n" in (ROOT / "docs" / "sharing.md").read_text()
