"""The relative margin is the loop over all pairs of pixels, with copies and without."""

from __future__ import annotations

import planted
import pytest
import torch
from planted import total
from torch import Tensor

from eomt_exp.contracts import VOID, Target
from eomt_exp.losses.relative_margin import RelativeMargin
from eomt_exp.scorers.max_logit import MaxLogit

STEP = planted.SIZE // planted.GRID  # pixels of a cell
MARGIN, COPY_MARGIN, TOLERANCE = 0.5, 0.25, 0.125


def terms_of(score: Tensor, targets: list[Target], weight: float = 1.0) -> list[Tensor]:
    loss = RelativeMargin(
        scorer=lambda _: score,
        margin=MARGIN,
        copy_margin=COPY_MARGIN,
        tolerance=TOLERANCE,
        weight=weight,
    )
    terms = loss(planted.random_output(), targets)
    assert list(terms) == ["relative_margin", "relative_margin_copy", "relative_margin_shift"]
    return list(terms.values())


def gradient_of(term: Tensor, score: Tensor) -> Tensor:
    return torch.autograd.grad(term, score, retain_graph=True)[0]


def scene_and_copy() -> list[Target]:
    """Image 0 has a pasted object and a void corner; image 1 is its copy, and void elsewhere."""
    outlier = planted.boxes((5, 2, 8, 4))[0]
    outlier[0, 9] = True  # one pixel, far smaller than a cell
    scene = planted.target_of(planted.boxes((0, 0, 4, 4)), [0], outlier)
    scene.anomaly[:5, :5] = VOID
    copy = planted.target_of(planted.boxes((0, 0, 4, 4)), [0])._replace(copy_of=0)
    copy.anomaly[20:, 28:] = VOID
    return [scene, copy]


def pair_by_pair(score: Tensor, targets: list[Target]) -> list[Tensor]:
    """The definition, over all pairs of pixels with the score of their cell."""
    pixels = score.repeat_interleave(STEP, dim=1).repeat_interleave(STEP, dim=2)
    scene, copy = (target.anomaly for target in targets)
    outlier, normal, copied = pixels[0][scene == 1], pixels[0][scene == 0], pixels[1][copy == 0]
    both = (scene == 0) & (copy == 0)
    return [
        (MARGIN - (outlier[:, None] - normal[None])).relu().mean(),
        (COPY_MARGIN - (outlier[:, None] - copied[None])).relu().mean(),
        (pixels[1][both] - pixels[0][both] - TOLERANCE).relu().mean(),
    ]


@pytest.mark.parametrize("grain", [0.0, 0.125], ids=["all_differ", "many_ties"])
def test_the_terms_and_their_gradients_are_those_of_all_pairs_of_pixels(grain: float):
    torch.manual_seed(0)
    score = torch.randn(planted.B, planted.GRID, planted.GRID)
    if grain:  # steps of which the margins are multiples, so that many pairs stand on the edge
        score = (score / grain).round() * grain
    score.requires_grad_()
    targets = scene_and_copy()
    ours, expected = terms_of(score, targets, weight=2.0), pair_by_pair(score, targets)
    for our, one in zip(ours, expected, strict=True):
        torch.testing.assert_close(our, 2.0 * one)
        gradients = (gradient_of(term, score) for term in (our, 2.0 * one))
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_closed_margins_cost_nothing_and_turned_ones_their_full_width():
    targets = scene_and_copy()
    anomaly = torch.stack([target.anomaly for target in targets])
    cells = torch.nn.functional.max_pool2d((anomaly == 1).float(), STEP)
    targets[0].anomaly[:4, 8:12] = VOID  # the cell that is partly an anomaly cannot be both
    assert [term.item() for term in terms_of(cells, targets)] == [0.0, 0.0, 0.0]
    first, second, _ = terms_of(-cells, targets)
    assert first.item() == pytest.approx(1 + MARGIN)
    assert second.item() == pytest.approx(1 + COPY_MARGIN)
    cells[1] += 1.0  # the copy alone scores higher
    assert terms_of(cells, targets)[2].item() == pytest.approx(1 - TOLERANCE)


def test_a_lifted_copy_is_pressed_down_and_an_outlier_is_lifted_over_it():
    score = torch.zeros(planted.B, planted.GRID, planted.GRID)
    score[1] = 0.5
    score.requires_grad_()
    targets = scene_and_copy()
    first, second, third = (gradient_of(term, score) for term in terms_of(score, targets))
    outlier, normal, copy = (0, 6, 2), (0, 6, 6), (1, 2, 2)
    assert first[outlier] < 0 < first[normal]
    assert first[copy] == second[normal] == third[outlier] == 0
    assert second[outlier] < 0 < second[copy]
    assert third[normal] < 0 < third[copy]


def test_without_copies_or_outliers_what_lacks_a_side_is_zero_with_gradient():
    score = torch.randn(planted.B, planted.GRID, planted.GRID, requires_grad=True)
    first, *others = terms_of(score, planted.two_targets())
    assert first > 0
    assert [term.item() for term in others] == [0.0, 0.0]
    copied = [planted.two_targets()[1], planted.two_targets()[1]._replace(copy_of=0)]
    *pairs, shift = terms_of(score, copied)
    assert [term.item() for term in pairs] == [0.0, 0.0]
    assert shift > 0
    torch.stack([*others, *pairs]).sum().backward()
    assert torch.equal(score.grad, torch.zeros_like(score))


def test_training_on_it_ranks_the_pasted_pixels_first():
    targets = planted.two_targets()
    output = planted.random_output()
    pasted = torch.stack([target.anomaly == 1 for target in targets])[:, ::STEP, ::STEP]
    loss = RelativeMargin(scorer=MaxLogit(), margin=0.5, copy_margin=0.4, tolerance=0.1)
    optimizer = torch.optim.SGD([output.mask_logits, output.class_logits], lr=20.0)
    for _ in range(60):
        optimizer.zero_grad()
        total(loss, output, targets).backward()
        optimizer.step()
    score = MaxLogit()(output)
    assert score[pasted].min() > score[~pasted].quantile(0.95)
