"""The gate: what it measures, what it lets pass, and that a wrong graph does not get past it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import request_for

from exporters.float64 import run_in_float64
from exporters.gate import LIMITS, Limits, gate, gate_float64, require_finite
from exporters.inputs import of_pictures, verification_inputs
from exporters.parity import Parity, compare, relative_rms
from runtime import eager
from runtime.errors import VerificationError
from runtime.facts import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing

NAN, INF = float("nan"), float("inf")
GOOD = Parity("embedding", relative_rms=1e-6, min_cosine=1.0, min_token_cosine=1.0, max_abs=1e-5)
LIMIT = Limits(0.999999, 0.999999, relative_rms=1e-5, float64_ratio=2.0)


@pytest.mark.parametrize(
    ("field", "value", "passes"),
    [
        ("relative_rms", 0.0, True),
        ("relative_rms", 1e-5, True),
        ("relative_rms", 1.001e-5, False),
        ("relative_rms", INF, False),
        ("relative_rms", NAN, False),
        ("min_cosine", 0.999999, True),
        ("min_cosine", 0.9999989, False),
        ("min_cosine", -1.0, False),
        ("min_cosine", NAN, False),
        ("min_token_cosine", 0.999999, True),
        ("min_token_cosine", 0.9999989, False),
        ("min_token_cosine", NAN, False),
        ("max_abs", 1e6, True),  # told in the manifest, but it depends on the scale
    ],
)
def test_the_gate_keeps_each_limit(field: str, value: float, passes: bool) -> None:
    parities = [GOOD, replace(GOOD, **{"name": "map_1", field: value})]

    if passes:
        gate(parities, LIMIT)
    else:
        with pytest.raises(VerificationError, match=r"^map_1: "):
            gate(parities, LIMIT)


def test_the_gate_names_every_output_over_a_limit() -> None:
    with pytest.raises(VerificationError) as caught:
        gate([replace(GOOD, relative_rms=0.5), replace(GOOD, name="map_1", min_cosine=0.2)], LIMIT)

    assert str(caught.value) == "embedding: relative RMS 0.5 > 1e-05; map_1: min cosine per image 0.2000000 < 0.999999"


@pytest.mark.parametrize(
    ("own", "got", "passes"),
    [
        (4e-7, 4e-7, True),
        (4e-7, 8e-7, True),
        (4e-7, 8.1e-7, False),
        (4e-7, NAN, False),
        (NAN, 4e-7, False),
        (0.0, 2.3e-7, True),  # within float32's resolution: eager was merely lucky
        (0.0, 2.5e-7, False),
    ],
)
def test_the_error_against_float64_may_be_twice_eagers_own(own: float, got: float, passes: bool) -> None:
    errors = [(4e-7, 4e-7), (own, got)]

    if passes:
        gate_float64(errors, LIMIT)
    else:
        with pytest.raises(VerificationError, match="against float64"):
            gate_float64(errors, LIMIT)


def test_fp32_artifacts_have_tight_limits() -> None:
    assert Limits(0.999999, 0.999999, relative_rms=1e-5, float64_ratio=2.0) == LIMITS["fp32", 2]


def test_the_metrics_of_an_embedding_are_those_of_its_worst_image() -> None:
    expected, got = np.array([[3.0, 4.0], [1.0, 1.0]]), np.array([[3.0, 4.5], [1.0, 1.0]])

    [parity] = compare(["embedding"], [[expected], [expected]], [[expected], [got]])

    assert parity.name == "embedding"
    assert parity.relative_rms == pytest.approx(0.5 / 5)
    assert parity.max_abs == 0.5
    assert parity.min_cosine == pytest.approx((9 + 18) / (5 * math.sqrt(9 + 4.5**2)))
    assert parity.min_token_cosine == parity.min_cosine


@pytest.mark.parametrize("shape", [(1, 2, 1, 3), (1, 2, 1, 1, 3)])
def test_the_token_cosine_of_a_map_sees_one_wrong_token(shape: tuple[int, ...]) -> None:
    expected = np.array([[100, 50, 3], [50, 100, 4]], dtype=float)  # two channels of three tokens
    got = expected.copy()
    got[:, 2] = [4, 3]  # the last token, small beside the others, now points elsewhere

    [parity] = compare(["map_0"], [[expected.reshape(shape)]], [[got.reshape(shape)]])

    assert parity.min_token_cosine == pytest.approx(24 / 25)
    assert parity.min_cosine == pytest.approx(25024 / 25025)
    assert parity.relative_rms == pytest.approx(math.sqrt(2 / 25025))


@pytest.mark.parametrize(("value", "cosine", "relative"), [(0.0, 1.0, 0.0), (1e-3, 0.0, INF)])
def test_what_eager_gives_as_all_zeros_must_be_zero(value: float, cosine: float, relative: float) -> None:
    expected, got = np.zeros((1, 2)), np.full((1, 2), value)

    [parity] = compare(["embedding"], [[expected]], [[got]])

    assert (parity.min_cosine, parity.min_token_cosine, parity.relative_rms) == (cosine, cosine, relative)
    assert relative_rms(expected, got) == relative


@pytest.mark.parametrize("got", [[np.ones((2, 4))], [np.ones((2, 3)), np.ones((2, 3))], []])
def test_outputs_of_another_number_or_shape_are_refused(got: list) -> None:
    with pytest.raises(VerificationError, match=r"eager gives \[\(2, 3\)\]"):
        compare(["embedding"], [[np.ones((2, 3))]], [got])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_value_that_is_not_finite_is_refused(bad: float) -> None:
    good = np.ones((2, 3))

    with pytest.raises(VerificationError, match="map_1 of the artifact: 1 of 6 values are not finite"):
        require_finite("the artifact", ["map_0", "map_1"], [[good, good], [good, np.array([[1, 1, 1], [1, bad, 1]])]])


def test_relative_rms_is_over_the_reference() -> None:
    assert relative_rms(np.array([3.0, 4.0]), np.array([3.0, 5.0])) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    "facts",
    [
        Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        Preprocessing(),
        Preprocessing(channels=1),
        Preprocessing(channels=1, mean=HALF[:1], std=HALF[:1]),
    ],
)
def test_verification_inputs_are_tissue_noise_a_constant_and_extremes(facts: Preprocessing) -> None:
    single, few, many = verification_inputs(facts, [(64, 96)])

    assert [b.shape for b in (single, few, many)] == [(n, facts.channels, 64, 96) for n in (1, 3, 8)]
    assert all(b.dtype == np.float32 for b in (single, few, many))
    for tissue in (single[0], few[0], many[0], *many[4:]):
        assert 0.05 < tissue.std() < 2
        assert np.abs(tissue).max() < 4  # normalised as the publisher says
        assert _neighbours_agree(tissue) > 0.7  # a picture, not noise
    assert len({tissue.tobytes() for tissue in (many[0], *many[4:])}) == 5
    for noise in (few[1], many[1]):
        assert noise.std() == pytest.approx(1, abs=0.05)
        assert abs(_neighbours_agree(noise)) < 0.1
    for constant in (few[2], many[2]):
        assert np.ptp(constant) == 0
    assert set(np.unique(many[3])) == {-20, 20}


def _neighbours_agree(image: np.ndarray) -> float:
    return float(np.corrcoef(image[:, :, 1:].ravel(), image[:, :, :-1].ravel())[0, 1])


def test_every_image_size_is_verified_at_every_batch_size() -> None:
    batches = verification_inputs(Preprocessing(), [(32, 32), (16, 56)])

    assert [b.shape for b in batches] == [(n, 3, h, w) for h, w in [(32, 32), (16, 56)] for n in (1, 3, 8)]


@pytest.mark.parametrize("out_indices", [None, 2])
def test_running_in_float64_equals_a_float64_copy(out_indices: int | None) -> None:
    module = eager.build(request_for("test/tiny_vit", weights="random", out_indices=out_indices)).module
    images = torch.randn(2, 3, 32, 32)

    got = run_in_float64(module, images)

    assert {p.dtype for p in module.parameters()} == {torch.float32}
    with torch.no_grad():
        expected = module.double()(images.double())
    for e, g in zip([expected] if out_indices is None else expected, got, strict=True):
        assert g.dtype == torch.float64
        assert relative_rms(e.numpy(), g.numpy()) < 1e-12


def test_of_the_image_that_no_picture_can_be_int8_is_not_judged() -> None:
    outputs = [[np.arange(3.0)[:, None]], [np.arange(8.0)[:, None]]]

    kept = of_pictures(outputs)

    assert kept[0][0].ravel().tolist() == [0, 1, 2]
    assert kept[1][0].ravel().tolist() == [0, 1, 2, 4, 5, 6, 7]
