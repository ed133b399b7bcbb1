"""The losses that learn from pasted outliers: known answers, and who may move or be moved.

What every loss must survive is in test_losses.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import planted
import pytest
import torch
from omegaconf import OmegaConf
from planted import ORDER, ORDER_WITH_OUTLIER, POINTS, total
from torch import Tensor

from eomt_exp.build import build_all
from eomt_exp.contracts import VOID, MaskOutput, Target
from eomt_exp.losses.anomaly_head import AnomalyHeadLoss
from eomt_exp.losses.cell_shares import share_on_anomalies
from eomt_exp.losses.entropy_maximisation import EntropyMaximisation
from eomt_exp.losses.isotropy_penalty import IsotropyPenalty, excess_confidence
from eomt_exp.losses.outlier_margin import OutlierMargin
from eomt_exp.scorers.entropy import Entropy
from eomt_exp.scorers.rba import RbA

STEP = planted.SIZE // planted.GRID  # pixels of a cell
CONF = Path(__file__).parents[1] / "conf" / "loss"
HEADLESS = planted.random_output()._replace(anomaly_logits=None)


def states_learnt(targets: list[Target], output: MaskOutput) -> Tensor:
    """The state each query is pressed towards: where the loss's gradient is negative."""
    logits = torch.zeros(planted.B, planted.Q, 3, requires_grad=True)
    output = output._replace(anomaly_logits=logits)
    total(AnomalyHeadLoss(num_points=POINTS), output, targets).backward()
    return logits.grad.argmin(dim=-1)


@pytest.mark.parametrize("label_outlier", [False, True])
def test_queries_are_taught_the_state_of_the_mask_they_show(label_outlier: bool):
    with_outlier = planted.two_targets(label_outlier=True)
    output = planted.saying(with_outlier, ORDER_WITH_OUTLIER, num_outputs=planted.K + 2)
    states = states_learnt(planted.two_targets(label_outlier=label_outlier), output)
    assert states.tolist() == [[0, 2, 0, 1, 0, 2], [2, 0, 2, 2, 2, 0]]


def test_void_pixels_never_move_the_anomaly_heads_loss():
    void = planted.boxes((2, 2, 6, 6))[0]
    kept = [t._replace(anomaly=t.anomaly.masked_fill(void, VOID)) for t in planted.two_targets()]
    changed = [target._replace(masks=target.masks ^ void) for target in kept]
    loss = AnomalyHeadLoss(num_points=POINTS)
    for seed in range(10):
        one = total(loss, planted.random_output(seed), kept)
        assert torch.equal(one, total(loss, planted.random_output(seed), changed))


def test_the_anomaly_heads_loss_trains_nothing_but_the_anomaly_logits():
    output = planted.random_output()
    total(AnomalyHeadLoss(num_points=POINTS), output, planted.two_targets()).backward()
    assert output.anomaly_logits.grad.abs().sum() > 0
    assert output.class_logits.grad is output.mask_logits.grad is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: total(AnomalyHeadLoss(), HEADLESS, planted.two_targets()), "=query_only"),
        (lambda: AnomalyHeadLoss(no_object_weight=0.0), "must be above 0"),
        (lambda: OutlierMargin(scorer=RbA(), low=0.0, high=-1.0), "got low=0.0, high=-1.0"),
    ],
)
def test_what_a_loss_cannot_do_is_refused(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_penalty_is_the_guides_formula(temperature: float):
    logits = torch.randn(2, 6, 5, dtype=torch.float64)
    powers = (logits / temperature).exp()
    guide = -(powers.sum(-1) / (5 * powers.amax(-1))).log()
    torch.testing.assert_close(excess_confidence(logits, temperature), guide)
    min_entropy = -(logits / temperature).softmax(-1).amax(-1).log()
    torch.testing.assert_close(guide, math.log(5) - min_entropy)
    for scale in (0.0, 1.0, 1e4):
        excess = excess_confidence(scale * torch.randn(4, 6, 5), temperature)
        assert -1e-6 <= excess.min() <= excess.max() <= math.log(5) + 1e-6


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
    output = planted.saying(targets, ORDER_WITH_OUTLIER, num_outputs=planted.K + 2)
    shares = share_on_anomalies(output.mask_logits, targets)
    assert shares[0, 3] > 0.99
    assert shares[0, [0, 2, 4]].max() < 0.01
    assert shares[1].max() == 0
    leaf = output.class_logits.requires_grad_()
    total(IsotropyPenalty(queries="outlier"), output, targets).backward()
    assert leaf.grad[0, 3].abs().sum() > 100 * leaf.grad[0, 0].abs().sum()


def test_the_penalty_is_zero_with_gradient_where_nothing_was_pasted():
    output = planted.random_output()
    targets = [planted.two_targets()[1]] * 2
    loss = total(IsotropyPenalty(queries="outlier"), output, targets)
    loss.backward()
    assert loss == 0
    assert output.class_logits.grad.abs().sum() == 0


def test_the_margin_equals_the_mean_over_pixels_of_the_repeated_score():
    torch.manual_seed(0)
    targets = planted.two_targets()
    targets[0].anomaly[7:9, 3:6] = VOID
    targets[1].anomaly[0, 0] = 1  # one pixel, far smaller than a cell
    score = torch.randn(planted.B, planted.GRID, planted.GRID)
    loss = OutlierMargin(scorer=lambda _: score, low=-0.6, high=-0.1, weight=2.0)
    pixels = score.repeat_interleave(STEP, dim=1).repeat_interleave(STEP, dim=2)
    anomaly = torch.stack([target.anomaly for target in targets])
    expected = (-0.1 - pixels[anomaly == 1]).relu().square().mean()
    expected = expected + (pixels[anomaly == 0] + 0.6).relu().square().mean()
    ours = loss(planted.random_output(), targets)["outlier_margin"]
    torch.testing.assert_close(ours, 2.0 * expected)


def test_the_margin_lowers_the_classes_on_pasted_pixels_and_lifts_them_elsewhere():
    targets = planted.two_targets()
    output = planted.random_output()
    pasted = (targets[0].anomaly == 1)[::STEP, ::STEP]
    before = output.semantic_scores().detach().sum(dim=1)[0]
    optimizer = torch.optim.SGD([output.mask_logits, output.class_logits], lr=20.0)
    losses = []
    margin = OutlierMargin(scorer=RbA(), low=-0.6, high=-0.1)
    for _ in range(60):
        losses.append(loss := total(margin, output, targets))
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
    score = torch.nn.functional.avg_pool2d(anomaly, STEP) - 0.8
    loss = OutlierMargin(scorer=lambda _: score, low=-0.6, high=0.1)
    assert loss(planted.random_output(), targets)["outlier_margin"] == 0


MARGINS = [
    path.stem for path in sorted(CONF.glob("*.yaml")) if ".OutlierMargin" in path.read_text()
]


def margin_of(name: str) -> OutlierMargin:
    return build_all(OmegaConf.load(CONF / f"{name}.yaml"), "loss")[name]


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("num_classes", [4, 19, 150])
def test_the_configured_margins_can_be_reached_and_point_the_right_way(name: str, num_classes: int):
    left = torch.full((planted.GRID, planted.GRID), -planted.SURE)
    left[:, : planted.GRID // 2] = planted.SURE
    mask_logits = torch.stack([left, -left])[None]
    class_logits = torch.zeros(1, 2, num_classes + 2)
    # The left half is of class 0, the right one of the class for outliers.
    class_logits[0, 0, 0] = class_logits[0, 1, num_classes] = 2 * planted.SURE
    output = MaskOutput(mask_logits, class_logits, torch.zeros(1, 2, planted.D), None, num_classes)
    right = planted.boxes((0, planted.GRID // 2, planted.GRID, planted.GRID))[0]
    empty, loss = planted.empty_target(), margin_of(name)
    assert total(loss, output, [empty._replace(anomaly=right.to(torch.uint8))]) < 1e-4
    assert total(loss, output, [empty._replace(anomaly=(~right).to(torch.uint8))]) > 0.1


def test_several_margins_of_a_run_have_the_names_of_their_keys():
    output = planted.random_output(outlier_class=True)
    terms = [margin_of(name)(output, planted.two_targets()) for name in MARGINS]
    assert [name for term in terms for name in term] == MARGINS
    assert {"outlier_margin", "energy_margin", "max_logit_margin"} <= set(MARGINS)


def of_pixels(semantic_scores: Tensor) -> MaskOutput:
    """A mask model's output whose L are these (B, K, h, w): one query each, which is sure of it."""
    count = semantic_scores.shape[1]
    class_logits = 100.0 * torch.eye(count, count + 1).expand(len(semantic_scores), -1, -1)
    queries = torch.zeros(len(semantic_scores), count, planted.D)
    return MaskOutput(semantic_scores.logit(), class_logits, queries, None, count)


def test_entropy_maximisation_is_the_cross_entropy_to_uniform_on_pasted_pixels():
    scores = torch.full((planted.B, 4, planted.GRID, planted.GRID), 0.5)
    scores[0, :, :4, :2] = torch.tensor([0.5, 0.25, 0.125, 0.125])[:, None, None]
    targets = [planted.target_of(planted.boxes((0, 0, 4, 4)), [0], planted.boxes((0, 0, 4, 4))[0])]
    targets.append(planted.empty_target())
    # p = L / sum L: half of the pasted pixels are uniform, the others at 1/2, 1/4, 1/8, 1/8.
    of_a_pixel = [math.log(4), (1 + 2 + 3 + 3) * math.log(2) / 4]
    expected = 2.0 * sum(of_a_pixel) / 2
    ours = EntropyMaximisation(weight=2.0)(of_pixels(scores), targets)["entropy_maximisation"]
    assert ours.item() == pytest.approx(expected, rel=1e-5)
    scaled = EntropyMaximisation(weight=2.0)(of_pixels(0.5 * scores), targets)
    torch.testing.assert_close(scaled["entropy_maximisation"], ours)


def test_entropy_maximisation_moves_a_query_that_is_sure_of_a_pasted_object():
    targets = planted.two_targets()
    output = planted.saying(
        planted.two_targets(label_outlier=True), ORDER_WITH_OUTLIER, num_outputs=planted.K + 2
    )
    output.class_logits[0, 3] = output.class_logits[0, 4]  # it calls the object class 2
    output.class_logits.requires_grad_()
    output.mask_logits.requires_grad_()
    total(EntropyMaximisation(), output, targets).backward()
    gradient = output.class_logits.grad[0, 3]
    assert gradient[2] > 0.4  # by softmax(L) it would be under 1e-5
    assert gradient[[0, 1, 3]].max() < 0
    pasted = torch.stack([target.anomaly == 1 for target in targets])
    assert output.mask_logits.grad.abs().sum(dim=1)[~pasted].max() == 0


def test_entropy_maximisation_raises_the_entropy_on_pasted_pixels_alone():
    targets = planted.two_targets()
    pasted = (targets[0].anomaly == 1)[::STEP, ::STEP]
    output = planted.random_output(scale=3.0)
    score = Entropy(normalise="sum")
    before = score(output)[0].detach()
    optimizer = torch.optim.SGD([output.mask_logits], lr=1.0)
    for _ in range(30):
        loss = total(EntropyMaximisation(), output, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = score(output)[0].detach()
    assert (after > before)[pasted].all()
    assert torch.equal(after[~pasted], before[~pasted])
