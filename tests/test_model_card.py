"""The card of a repository of artifacts."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from exporters.model_card import MARK, write_card
from runtime.manifest import Artifact, ArtifactKey, Manifest, StoredFile

FILES = (StoredFile("embedding.cpu.fp32.a.onnx", 1_200_000, ""), StoredFile("weights.b.data", 86_700_000, ""))
KEY = ArtifactKey(None, "onnx", "cpu", "fp32", (224, 224), (), "pretrained")
FACTS: dict[str, Any] = {
    "source": {"id": "hf://owkin/phikon@main", "revision": "0123abc", "licence": "MIT", "gated": False},
    "parity": {"served_by": "onnx CPUExecutionProvider", "outputs": [{"min_cosine": 0.9999999}, {"min_cosine": 1.0}]},
    "also_served_by": {"openvino": []},
}
ARTIFACT = Artifact(KEY, FILES, (), (), FACTS)
RANDOM = replace(ARTIFACT, key=replace(KEY, weights="random:0"))

GOLDEN = f"""---
library_name: backbone-runtime
pipeline_tag: image-feature-extraction
license: mit
base_model:
- "owkin/phikon"
tags:
- backbone-runtime
- onnx
---

{MARK}

# our-lab/backbones

Vision backbones as verified artifacts: each gives the numbers of its eager PyTorch original, and is served without \
PyTorch. Built, verified and pushed with `backbone-runtime`, which compares every file with the SHA-256 of its manifest.

```python
from runtime import load_model

model = load_model('their/own', artifacts="hf://our-lab/backbones")
```

```console
$ python -m runtime.pull our-lab/backbones
```

Append `@` and a commit to the repository's name to get the same files for ever.

## their/own

- `pretrained`: hf://owkin/phikon@main at `0123abc`; licence: MIT

| Artifact | Size | Smallest cosine to eager | Verified by |
| --- | --- | --- | --- |
| embedding, onnx for cpu, fp32, 224x224, pretrained weights | 1.2 MB + 86.7 MB of shared weights | 0.9999999 | \
onnx CPUExecutionProvider, openvino |
"""


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def of(model: str, *artifacts: Artifact) -> Manifest:
    return Manifest(model, artifacts)


def test_the_card_says_what_it_is_where_it_comes_from_and_how_to_use_it() -> None:
    assert write_card("our-lab/backbones", [of("their/own", ARTIFACT)]) == GOLDEN


def test_the_card_depends_on_nothing_but_the_manifests() -> None:
    several = [of("their/own", ARTIFACT), of("test/a", RANDOM)]

    assert write_card("a/b", several) == write_card("a/b", several[::-1])


def test_random_weights_are_loud() -> None:
    card = write_card("a/b", [of("test/a", RANDOM)])

    assert "**RANDOM WEIGHTS: its outputs mean nothing." in card
    assert "load_model('test/a', weights=\"random\", artifacts=" in card
    assert "random-weights" in front_matter(card)["tags"]
    assert "license" not in front_matter(card)
    assert "base_model" not in front_matter(card)


@pytest.mark.parametrize(
    ("weights", "keywords"),
    [("random:3", ', weights="random", seed=3'), ("initial:0", ""), ("checkpoint:0a", ", weights='checkpoint:0a'")],
)
def test_the_call_asks_for_the_weights_that_are_there(weights: str, keywords: str) -> None:
    card = write_card("a/b", [of("test/a", replace(ARTIFACT, key=replace(KEY, weights=weights)))])

    assert f"load_model('test/a'{keywords}, artifacts=" in card


def test_several_licences_are_other() -> None:
    apache = replace(ARTIFACT, facts=FACTS | {"source": FACTS["source"] | {"licence": "Apache-2.0"}})

    facts = front_matter(write_card("a/b", [of("their/own", ARTIFACT), of("their/other", apache)]))

    assert (facts["license"], facts["license_name"]) == ("other", "see-each-model")


def test_a_licence_of_the_publishers_own_is_other() -> None:
    own = replace(ARTIFACT, facts=FACTS | {"source": FACTS["source"] | {"licence": "Owkin non-commercial licence"}})

    assert front_matter(write_card("a/b", [of("their/own", own)]))["license"] == "other"


def test_gated_weights_say_that_terms_have_to_be_accepted() -> None:
    card = write_card("a/b", [of("pathology/mahmood_uni", ARTIFACT)])

    assert "licence: CC-BY-NC-ND-4.0; gated: accept the publisher's terms before you use it" in card
    assert front_matter(card)["license"] == "cc-by-nc-nd-4.0"


def test_what_somebody_else_wrote_cannot_break_out_of_the_card() -> None:
    evil = {"id": "hf://a/b\nlicense: mit|`<script>", "licence": "MIT | yours\n---\n# Evil", "revision": "`x`"}
    card = write_card("a/b", [of("their/own", replace(ARTIFACT, facts=FACTS | {"source": evil}))])

    assert "<script>" not in card
    assert "\n# Evil" not in card
    assert card.count("\n---\n") == 1
    assert front_matter(card)["license"] == "other"


def test_facts_that_are_missing_are_said_to_be() -> None:
    card = write_card("a/b", [of("their/own", replace(ARTIFACT, facts={}))])

    assert "the registered function; licence: not stated" in card
    assert "| not recorded | not recorded |" in card


def test_of_a_model_that_cannot_be_read_no_licence_is_told() -> None:
    card = write_card("a/b", [of("their/own", ARTIFACT)], ["their/lost", "their/z"])

    assert front_matter(card)["license"] == "other"
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        "## their/lost",
        "## their/own",
        "## their/z",
    ]
