"""Every score: anomalous pixels outrank known ones, and the formulas are what they say.

Run: pytest tests/test_scorers.py. A new file in conf/scorer is tested unasked.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
import yaml

from eomt_exp.contracts import MaskOutput, PixelOutput
from eomt_exp.scorers.anomaly_head import AnomalyHeadScore
from eomt_exp.scorers.energy import Energy
from eomt_exp.scorers.entropy import Entropy
from eomt_exp.scorers.max_logit import MaxLogit
from eomt_exp.scorers.msp import MSP
from eomt_exp.scorers.outlier_class import OutlierClass
from eomt_exp.scorers.rba import RbA
from eomt_exp.scorers.uno import UNO

FOLDER = Path(__file__).parents[1] / "conf" / "scorer"


def configured() -> list[Any]:
    """Every scorer of conf/scorer that needs nothing fitted (`???`)."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        if "???" in path.read_text():
            continue
        for key, node in (yaml.safe_load(path.read_text()) or {}).items():
            if isinstance(node, dict) and "_target_" in node:
                found.append(pytest.param(key, node, id=f"{path.stem}-{key}"))
    return found


SCORERS = configured()


def test_every_scorer_of_the_suite_is_configured():
    names = {param.values[0] for param in SCORERS}
    assert names >= {"msp", "max_logit", "entropy", "energy", "rba"}
    assert names >= {"anomaly_head", "outlier_class", "uno"}


@pytest.mark.parametrize(("name", "node"), SCORERS)
def test_a_scorer_file_wraps_its_own_name(name: str, node: dict):
    assert (FOLDER / f"{name}.yaml").exists()
    assert planted.part_of(node).level in ("semantic", "query")


@pytest.mark.parametrize(("name", "node"), SCORERS)
def test_the_planted_outlier_outranks_the_known_half(name: str, node: dict):
    output = planted.planted_output(outlier_class=True, with_head=True)
    score = planted.part_of(node)(output)
    assert score.shape == (planted.B, planted.GRID, planted.GRID)
    left, right = planted.halves(score)
    assert right.min() > left.max()


@pytest.mark.parametrize(("name", "node"), SCORERS)
def test_a_region_of_no_class_outranks_the_known_half(name: str, node: dict):
    scorer = planted.part_of(node)
    if scorer.level != "semantic":
        pytest.skip("needs a class or a head of its own")
    for output in (
        planted.planted_output(outlier_class=False, with_head=False),
        planted.planted_output(outlier_class=False, with_head=False).with_semantic(),
        planted.planted_pixels(),
    ):
        left, right = planted.halves(scorer(output))
        assert right.min() > left.max()


@pytest.mark.parametrize(("name", "node"), SCORERS)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_scores_stay_finite_at_extreme_logits(name: str, node: dict, scale: float):
    output = planted.random_output(3, outlier_class=True, scale=scale)
    assert planted.part_of(node)(output).isfinite().all()


@pytest.mark.parametrize("scorer", [MSP(temperature=1e-4), Entropy(temperature=1e-4)])
def test_scores_stay_finite_at_extreme_temperatures(scorer: MSP | Entropy):
    pixels = PixelOutput(1e4 * torch.randn(1, planted.K, 8, 8))
    assert scorer(pixels).isfinite().all()
    assert Energy(temperature=1e-4)(pixels).isfinite().all()


@pytest.mark.parametrize(("name", "node"), SCORERS)
def test_a_score_can_be_trained_on(name: str, node: dict):
    output = planted.random_output(1, outlier_class=True)
    planted.part_of(node)(output).sum().backward()
    gradient = output.mask_logits.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def constant_pixels(*evidence: float) -> PixelOutput:
    """One pixel with this evidence for each class."""
    return PixelOutput(torch.tensor(evidence).reshape(1, -1, 1, 1))


def test_closed_forms_on_one_pixel():
    one = constant_pixels(0.0, math.log(3.0))
    assert MSP()(one).item() == pytest.approx(0.25)
    assert MaxLogit()(one).item() == pytest.approx(-math.log(3.0))
    assert Energy()(one).item() == pytest.approx(-math.log(4.0))
    assert RbA()(one).item() == pytest.approx(-math.tanh(math.log(3.0)))
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert Entropy()(one).item() == pytest.approx(expected)


def test_temperature_divides_the_evidence():
    one, twice = constant_pixels(0.2, 1.4, -0.5), constant_pixels(0.4, 2.8, -1.0)
    for cold, plain in ((MSP(temperature=0.5), MSP()), (Entropy(temperature=0.5), Entropy())):
        torch.testing.assert_close(cold(one), plain(twice))
    torch.testing.assert_close(Energy(temperature=0.5)(one), 0.5 * Energy()(twice))


def test_rba_lies_between_minus_k_and_zero():
    score = RbA()(planted.random_output(0, scale=5.0))
    assert score.max() <= 0
    assert score.min() >= -planted.K


def test_semantic_scores_agree_with_a_per_pixel_model_of_the_same_evidence():
    output = planted.random_output(2)
    pixels = PixelOutput(output.semantic_scores())
    for scorer in (MSP(), MaxLogit(), Entropy(), Energy(), RbA()):
        torch.testing.assert_close(scorer(output), scorer(pixels))


def test_entropy_by_sum_ignores_how_much_evidence_there_is():
    output = planted.random_output(2)
    scorer = Entropy(normalise="sum")
    halved = output._replace(semantic=0.5 * output.semantic_scores())
    torch.testing.assert_close(scorer(output), scorer(halved))
    nothing = output._replace(semantic=torch.zeros(planted.B, planted.K, 8, 8))
    torch.testing.assert_close(scorer(nothing).amin(), torch.tensor(math.log(planted.K)))
    with pytest.raises(ValueError, match="use normalise=softmax"):
        scorer(planted.planted_pixels())


def test_query_scores_follow_their_formulas():
    output = planted.random_output(5, outlier_class=True)
    probs = output.class_logits.softmax(-1)
    states = output.anomaly_logits.softmax(-1)
    expected = {"head": 0.0, "class": 0.0, "uno": 0.0}
    for q in range(planted.Q):  # the definitions, query by query
        mask = output.mask_logits[:, q].sigmoid()
        outlier = probs[:, q, planted.K, None, None]
        known = probs[:, q, : planted.K].max(dim=-1).values[:, None, None]
        expected["head"] += mask * states[:, q, 1, None, None]
        expected["class"] += mask * outlier
        expected["uno"] += mask * (outlier - known)
    torch.testing.assert_close(AnomalyHeadScore()(output), expected["head"])
    torch.testing.assert_close(OutlierClass()(output), expected["class"])
    torch.testing.assert_close(UNO()(output), expected["uno"])


@pytest.mark.parametrize(
    ("scorer", "override"),
    [
        (AnomalyHeadScore(), "anomaly_head=query_only"),
        (OutlierClass(), "outlier_exposure.target=outlier_class"),
        (UNO(), "outlier_exposure.target=outlier_class"),
    ],
)
def test_a_score_without_its_part_says_what_to_add(scorer: Any, override: str):
    bare: MaskOutput = planted.planted_output(outlier_class=False, with_head=False)
    with pytest.raises(ValueError, match=override):
        scorer(bare)
    with pytest.raises(ValueError, match="needs queries"):
        scorer(planted.planted_pixels())


@pytest.mark.parametrize("scorer", [MSP, Entropy, Energy])
def test_a_temperature_must_be_above_zero(scorer: type):
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        scorer(temperature=0.0)
