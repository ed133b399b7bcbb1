"""The losses that learn from pasted outliers: known answers, and who may move or be moved.

Run: pytest tests/test_outlier_losses.py. What every loss must survive is in test_losses.py.
"""

from __future__ import annotations

import math
from typing import Any

import planted
import pytest
import torch
from torch import Tensor

from eomt_exp.contracts import VOID, MaskOutput, Target
from eomt_exp.losses.anomaly_head import AnomalyHeadLoss
from eomt_exp.losses.isotropy_penalty import IsotropyPenalty, excess_confidence, share_on_outliers
from eomt_exp.losses.outlier_margin import OutlierMargin
from eomt_exp.scorers.rba import RbA

POINTS = 256
ORDER = [[4, 0, 2], [5, 1]]  # the query that says each mask


def margin() -> OutlierMargin:
    return OutlierMargin(scorer=RbA(), low=-0.6, high=-0.1)


def total(loss: Any, output: MaskOutput, targets: list[Target], seed: int = 7) -> Tensor:
    """The sum of the terms, its random points drawn from this seed."""
    torch.manual_seed(seed)
    return torch.stack(list(loss(output, targets).values())).sum()


def states_learnt(targets: list[Target], output: MaskOutput) -> Tensor:
    """The state each query is pressed towards: where the loss's gradient is negative."""
    logits = torch.zeros(planted.B, planted.Q, 3, requires_grad=True)
    total(
        AnomalyHeadLoss(num_points=POINTS), output._replace(anomaly_logits=logits), targets
    ).backward()
    return logits.grad.argmin(dim=-1)


@pytest.mark.parametrize("label_outlier", [False, True])
def test_queries_are_taught_the_state_of_the_mask_they_show(label_outlier: bool):
    with_outlier = planted.two_targets(label_outlier=True)
    output = planted.saying(with_outlier, [[4, 0, 2, 3], [5, 1]], num_outputs=planted.K + 2)
    states = states_learnt(planted.two_targets(label_outlier=label_outlier), output)
    assert states.tolist() == [[0, 2, 0, 1, 0, 2], [2, 0, 2, 2, 2, 0]]


def test_void_pixels_never_move_the_anomaly_heads_loss():
    void = planted.boxes((2, 2, 6, 6))[0]
    kept, changed = [], []
    for target in planted.two_targets():
        anomaly = target.anomaly.clone()
        anomaly[void] = VOID
        kept.append(target._replace(anomaly=anomaly))
        changed.append(kept[-1]._replace(masks=target.masks ^ void))
    loss = AnomalyHeadLoss(num_points=POINTS)
    for seed in range(10):
        one = total(loss, planted.random_output(seed), kept)
        assert torch.equal(one, total(loss, planted.random_output(seed), changed))


def test_the_anomaly_heads_loss_trains_nothing_but_the_anomaly_logits():
    output = planted.random_output()
    total(AnomalyHeadLoss(num_points=POINTS), output, planted.two_targets()).backward()
    assert output.anomaly_logits.grad.abs().sum() > 0
    assert output.class_logits.grad is None
    assert output.mask_logits.grad is None


def test_the_anomaly_heads_loss_without_a_head_says_what_to_add():
    output = planted.random_output()._replace(anomaly_logits=None)
    with pytest.raises(ValueError, match="anomaly_head=query_only"):
        AnomalyHeadLoss()(output, planted.two_targets())
    with pytest.raises(ValueError, match="must be above 0"):
        AnomalyHeadLoss(no_object_weight=0.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_penalty_is_the_guides_formula(temperature: float):
    logits = torch.randn(2, 6, 5, dtype=torch.float64)
    powers = (logits / temperature).exp()
    guide = -(powers.sum(-1) / (5 * powers.amax(-1))).log()
    torch.testing.assert_close(excess_confidence(logits, temperature), guide)
    min_entropy = -(logits / temperature).softmax(-1).amax(-1).log()
    torch.testing.assert_close(guide, math.log(5) - min_entropy)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_the_penalty_lies_between_zero_and_log_c(scale: float):
    excess = excess_confidence(scale * torch.randn(4, 6, 5), 1.0)
    assert excess.min() >= -1e-6
    assert excess.max() <= math.log(5) + 1e-6


def test_the_penalty_counts_every_query_or_those_without_a_mask():
    targets = planted.two_targets()
    output = planted.saying(targets, ORDER, num_outputs=planted.K + 1)
    output.class_logits[0, 1] = 0.0  # no mask is matched to it, and it is undecided
    excess = excess_confidence(output.class_logits, 1.0)
    every = IsotropyPenalty(weight=1.0)(output, targets)["isotropy_penalty"]
    torch.testing.assert_close(every, excess.mean())
    left = IsotropyPenalty(weight=1.0, queries="unmatched", num_points=POINTS)(output, targets)
    free = torch.cat([excess[0, [1, 3, 5]], excess[1, [0, 2, 3, 4]]])
    torch.testing.assert_close(left["isotropy_penalty"], free.mean())


def test_the_penalty_finds_the_query_on_the_pasted_pixels():
    targets = planted.two_targets(label_outlier=True)
    output = planted.saying(targets, [[4, 0, 2, 3], [5, 1]], num_outputs=planted.K + 2)
    shares = share_on_outliers(output.mask_logits, targets)
    assert shares[0, 3] > 0.99
    assert shares[0, [0, 2, 4]].max() < 0.01
    assert shares[1].max() == 0
    leaf = output.class_logits.requires_grad_()
    torch.stack(list(IsotropyPenalty(queries="outlier")(output, targets).values())).backward()
    assert leaf.grad[0, 3].abs().sum() > 100 * leaf.grad[0, 0].abs().sum()


def test_the_penalty_is_zero_with_gradient_where_nothing_was_pasted():
    output = planted.random_output()
    targets = [planted.two_targets()[1]] * 2
    loss = total(IsotropyPenalty(queries="outlier"), output, targets)
    loss.backward()
    assert loss == 0
    assert output.class_logits.grad.abs().sum() == 0


def test_an_unknown_choice_of_queries_is_refused():
    with pytest.raises(ValueError, match="got 'matched'"):
        IsotropyPenalty(queries="matched")


class Fixed:
    """A scorer that says what it was told."""

    level = "semantic"

    def __init__(self, score: Tensor) -> None:
        self.score = score

    def __call__(self, output: MaskOutput) -> Tensor:
        return self.score


def test_the_margin_equals_the_mean_over_pixels_of_the_repeated_score():
    torch.manual_seed(0)
    targets = planted.two_targets()
    targets[0].anomaly[7:9, 3:6] = VOID
    targets[1].anomaly[0, 0] = 1  # one pixel, far smaller than a cell
    score = torch.randn(planted.B, planted.GRID, planted.GRID)
    loss = OutlierMargin(scorer=Fixed(score), low=-0.6, high=-0.1, weight=2.0)
    step = planted.SIZE // planted.GRID
    pixels = score.repeat_interleave(step, dim=1).repeat_interleave(step, dim=2)
    anomaly = torch.stack([target.anomaly for target in targets])
    expected = (-0.1 - pixels[anomaly == 1]).relu().square().mean()
    expected = expected + (pixels[anomaly == 0] + 0.6).relu().square().mean()
    ours = loss(planted.random_output(), targets)["outlier_margin"]
    torch.testing.assert_close(ours, 2.0 * expected)


def test_the_margin_lowers_the_classes_on_pasted_pixels_and_lifts_them_elsewhere():
    targets = planted.two_targets()
    output = planted.random_output()
    pasted = (targets[0].anomaly == 1)[
        :: planted.SIZE // planted.GRID, :: planted.SIZE // planted.GRID
    ]
    before = output.semantic_scores().detach().sum(dim=1)[0]
    optimizer = torch.optim.SGD([output.mask_logits, output.class_logits], lr=20.0)
    losses = []
    for _ in range(60):
        loss = total(margin(), output, targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = output.semantic_scores().detach().sum(dim=1)[0]
    assert losses[-1] < 0.5 * losses[0]
    assert (after < before)[pasted].all()
    score = RbA()(output)[0]
    assert score[pasted].min() > score[~pasted].median()


def test_a_closed_margin_costs_nothing():
    targets = planted.two_targets()
    anomaly = torch.stack([target.anomaly for target in targets]).float()
    score = torch.nn.functional.avg_pool2d(anomaly, planted.SIZE // planted.GRID) - 0.8
    loss = OutlierMargin(scorer=Fixed(score), low=-0.6, high=0.1)
    assert loss(planted.random_output(), targets)["outlier_margin"] == 0


def test_margins_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"low must be under high, got low=0.0, high=-1.0"):
        OutlierMargin(scorer=RbA(), low=0.0, high=-1.0)
