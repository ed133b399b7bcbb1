"""Every score: anomalous pixels outrank known ones, and the formulas are what they say.

A new file in conf/scorer is tested unasked.
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
from eomt_exp.scorers.class_margin import ClassMargin
from eomt_exp.scorers.eam import EAM
from eomt_exp.scorers.energy import Energy
from eomt_exp.scorers.entropy import Entropy
from eomt_exp.scorers.max_logit import MaxLogit
from eomt_exp.scorers.min_distance import MinDistance
from eomt_exp.scorers.msp import MSP
from eomt_exp.scorers.outlier_class import OutlierClass
from eomt_exp.scorers.rba import RbA
from eomt_exp.scorers.uno import UNO

FOLDER = Path(__file__).parents[1] / "conf" / "scorer"


def configured() -> list[Any]:
    """Every scorer of conf/scorer that needs nothing fitted (`???`)."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        for key, node in (yaml.safe_load(path.read_text()) or {}).items():
            if isinstance(node, dict) and "_target_" in node and "???" not in path.read_text():
                found.append(pytest.param(node, id=f"{path.stem}-{key}"))
    return found


each_scorer = pytest.mark.parametrize("node", configured())


@each_scorer
def test_the_planted_outlier_outranks_the_known_half(node: dict):
    output = planted.planted_output(outlier_class=True, with_head=True)
    score = planted.part_of(node)(output)
    assert score.shape == (planted.B, planted.GRID, planted.GRID)
    left, right = planted.halves(score)
    assert right.min() > left.max()


@each_scorer
def test_a_region_of_no_class_outranks_the_known_half(node: dict):
    scorer = planted.part_of(node)
    assert scorer.level in ("semantic", "query")
    bare = planted.planted_output(outlier_class=False, with_head=False)
    outputs = (bare, planted.planted_pixels())
    for output in outputs if scorer.level == "semantic" else ():  # the others need more
        left, right = planted.halves(scorer(output))
        assert right.min() > left.max()


@each_scorer
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_scores_stay_finite_at_extreme_logits(node: dict, scale: float):
    output = planted.random_output(3, outlier_class=True, scale=scale)
    assert planted.part_of(node)(output).isfinite().all()


@pytest.mark.parametrize("scorer", [MSP, Entropy, Energy])
def test_scores_stay_finite_at_extreme_temperatures(scorer: type):
    pixels = PixelOutput(1e4 * torch.randn(1, planted.K, 8, 8))
    assert scorer(temperature=1e-4)(pixels).isfinite().all()


@each_scorer
def test_a_score_can_be_trained_on(node: dict):
    output = planted.random_output(1, outlier_class=True)
    planted.part_of(node)(output).sum().backward()
    gradient = output.mask_logits.grad
    assert gradient is not None
    assert 0 < gradient.abs().sum() < math.inf


def constant_pixels(*evidence: float) -> PixelOutput:
    """One pixel with this evidence for each class."""
    return PixelOutput(torch.tensor(evidence).reshape(1, -1, 1, 1))


def test_closed_forms_on_one_pixel():
    one = constant_pixels(0.0, math.log(3.0))
    for scorer, expected in (
        (MSP(), 0.25),
        (MaxLogit(), -math.log(3.0)),
        (Energy(), -math.log(4.0)),
        (RbA(), -math.tanh(math.log(3.0))),
        (Entropy(), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))),
    ):
        assert scorer(one).item() == pytest.approx(expected)


def test_temperature_divides_the_evidence():
    one, twice = constant_pixels(0.2, 1.4, -0.5), constant_pixels(0.4, 2.8, -1.0)
    for cold, plain in ((MSP(temperature=0.5), MSP()), (Entropy(temperature=0.5), Entropy())):
        torch.testing.assert_close(cold(one), plain(twice))
    torch.testing.assert_close(Energy(temperature=0.5)(one), 0.5 * Energy()(twice))


def test_semantic_scores_agree_with_a_per_pixel_model_of_the_same_evidence():
    output = planted.random_output(2)
    pixels = PixelOutput(output.semantic_scores())
    for scorer in (MSP(), MaxLogit(), Entropy(), Energy(), RbA()):
        torch.testing.assert_close(scorer(output), scorer(pixels))


def test_entropy_by_sum_ignores_how_much_evidence_there_is():
    output = planted.random_output(2)
    scorer = Entropy(normalise="sum")
    halved = PixelOutput(0.5 * output.semantic_scores())  # as a detector hands it over
    torch.testing.assert_close(scorer(output), scorer(halved))
    nothing = PixelOutput(torch.zeros(planted.B, planted.K, 8, 8))
    torch.testing.assert_close(scorer(nothing).amin(), torch.tensor(math.log(planted.K)))
    with pytest.raises(ValueError, match=r"got -1\.0 of a .*; use normalise=softmax"):
        scorer(constant_pixels(0.5, -1.0))


def test_query_scores_follow_their_formulas():
    output = planted.random_output(5, outlier_class=True)
    masks, probs = output.mask_logits.sigmoid(), output.class_logits.softmax(-1)
    outlier, known = probs[..., planted.K], probs[..., : planted.K].amax(dim=-1)
    for scorer, weights in (
        (AnomalyHeadScore(), output.anomaly_logits.softmax(-1)[..., 1]),
        (OutlierClass(), outlier),
        (UNO(), outlier - known),
    ):  # the definition, query by query
        expected = sum(masks[:, q] * weights[:, q, None, None] for q in range(planted.Q))
        torch.testing.assert_close(scorer(output), expected)


def test_a_pixel_that_two_known_classes_share_keeps_its_class_margin():
    output = planted.planted_output(outlier_class=True, with_head=False)
    left, right = planted.halves(ClassMargin()(output))
    torch.testing.assert_close(left, torch.full_like(left, -1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(right, torch.ones_like(right), atol=1e-3, rtol=0)
    twice = output._replace(
        mask_logits=torch.cat([output.mask_logits, output.mask_logits[:, :1]], dim=1),
        class_logits=torch.cat(
            [output.class_logits, output.class_logits[:, :1].roll(1, dims=-1)], dim=1
        ),
    )  # the known half is claimed by another known class too
    assert twice.class_logits[:, -1].argmax(-1).max() < planted.K
    torch.testing.assert_close(ClassMargin()(twice), ClassMargin()(output), atol=1e-3, rtol=0)
    left, _ = planted.halves(UNO()(twice))
    torch.testing.assert_close(left, torch.full_like(left, -2.0), atol=1e-3, rtol=0)


def test_eam_is_what_the_best_known_classes_of_all_masks_leave_over():
    output = planted.planted_output(outlier_class=False, with_head=False)
    left, right = planted.halves(EAM()(output))
    torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-3, rtol=0)
    torch.testing.assert_close(right, torch.ones_like(right), atol=1e-3, rtol=0)
    twice = output._replace(mask_logits=output.mask_logits.clone())
    twice.mask_logits[:, 1] = twice.mask_logits[:, 0]  # no-object claims nothing
    torch.testing.assert_close(EAM()(twice), EAM()(output), atol=1e-3, rtol=0)
    twice.class_logits[:, 1] = twice.class_logits[:, 0].roll(1, dims=-1)  # another known class
    left, right = planted.halves(EAM()(twice))
    torch.testing.assert_close(left, torch.full_like(left, -1.0), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="score eam needs queries"):
        EAM()(planted.planted_pixels())


def test_a_score_without_its_part_says_what_to_add():
    bare: MaskOutput = planted.planted_output(outlier_class=False, with_head=False)
    for scorer, override in (
        (AnomalyHeadScore(), "anomaly_head=query_only"),
        (OutlierClass(), "outlier_exposure.target=outlier_class"),
        (UNO(), "outlier_exposure.target=outlier_class"),
        (ClassMargin(), "outlier_exposure.target=outlier_class"),
        (MinDistance(), "class_head=isomax_plus"),
    ):
        with pytest.raises(ValueError, match=override):
            scorer(bare)
        with pytest.raises(ValueError, match="needs queries"):
            scorer(planted.planted_pixels())
