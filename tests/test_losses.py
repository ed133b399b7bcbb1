"""The losses: known answers, what may and may not move them, and batches in which little is there.

The segmentation loss is compared with mask_loss_by_hand.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
import yaml
from mask_loss_by_hand import mask_loss_by_hand
from planted import ORDER, ORDER_WITH_OUTLIER, POINTS, total
from torch import distributed

from eomt_exp.contracts import VOID, MaskOutput, Target
from eomt_exp.losses.anomaly_head import AnomalyHeadLoss
from eomt_exp.losses.entropy_maximisation import EntropyMaximisation
from eomt_exp.losses.isotropy_penalty import IsotropyPenalty
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.losses.mean_over_processes import mean_over_processes
from eomt_exp.losses.outlier_margin import OutlierMargin
from eomt_exp.losses.relative_margin import RelativeMargin
from eomt_exp.scorers.max_logit import MaxLogit
from eomt_exp.scorers.rba import RbA

FOLDER = Path(__file__).parents[1] / "conf" / "loss"

EVERY_LOSS: list[Callable[[], Any]] = [
    lambda: MaskClassification(num_points=POINTS),
    lambda: AnomalyHeadLoss(num_points=POINTS),
    lambda: IsotropyPenalty(),
    lambda: IsotropyPenalty(queries="unmatched", num_points=POINTS),
    lambda: IsotropyPenalty(queries="outlier"),
    lambda: OutlierMargin(scorer=RbA(), low=-0.6, high=-0.1),
    lambda: EntropyMaximisation(),
    lambda: RelativeMargin(scorer=MaxLogit(), margin=0.5, copy_margin=0.4, tolerance=0.1),
]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configured_loss_gives_scalars_with_gradient(path: Path):
    config = yaml.safe_load(path.read_text())
    output = planted.random_output(outlier_class=True, num_aux=1)
    terms = planted.part_of(config[path.stem])(output, planted.two_targets(label_outlier=True))
    for term in terms.values():
        assert (term.shape, bool(term.isfinite()), term.requires_grad) == ((), True, True)


def hard_targets() -> dict[str, list[Target]]:
    one, two = planted.two_targets()
    nothing, everywhere = planted.empty_target(), torch.ones(planted.SIZE, planted.SIZE) > 0
    void = torch.full_like(one.anomaly, VOID)
    return {
        "one image shows nothing": [nothing, one],
        "no image shows anything": [nothing, nothing],
        "void alone": [t._replace(anomaly=void, ignore=everywhere) for t in (one, two)],
        "extreme logits": [one, two],
    }


@pytest.mark.parametrize("make", EVERY_LOSS)
@pytest.mark.parametrize("case", hard_targets())
def test_a_loss_stays_finite(make: Callable[[], Any], case: str):
    output = planted.random_output(scale=1e4 if case == "extreme logits" else 1.0)
    loss = total(make(), output, hard_targets()[case])
    loss.backward()
    assert loss.isfinite()
    for leaf in (output.mask_logits, output.class_logits, output.anomaly_logits):
        assert leaf.grad is None or leaf.grad.isfinite().all()


@pytest.mark.parametrize("make", EVERY_LOSS)
def test_a_loss_takes_half_precision_in_and_gives_float32_out(make: Callable[[], Any]):
    output = planted.random_output()
    names = ("mask_logits", "class_logits", "anomaly_logits")
    half = output._replace(**{name: getattr(output, name).bfloat16() for name in names})
    loss = total(make(), half, planted.two_targets())
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def targets_with(*counts: int) -> list[Target]:
    """Images with these numbers of masks, where the model has Q = 6 queries."""
    corners = [(row, column, row + 2, column + 2) for row in (0, 3, 6) for column in (0, 3, 6)]
    crowd = planted.target_of(planted.boxes(*corners), [0, 1, 2, 3, 0, 1, 2, 3, 0])
    by_count = {len(t.masks): t for t in (crowd, *planted.two_targets(), planted.empty_target())}
    return [by_count[count] for count in counts]


@pytest.mark.parametrize("counts", [(3, 2), (0, 3), (9, 2), (9, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("num_aux", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_segmentation_loss_has_the_bits_of_the_literal_formula(
    seed: int, num_aux: int, counts: tuple[int, int]
):
    targets = targets_with(*counts)
    output = planted.random_output(seed, scale=3.0, num_aux=num_aux)
    torch.manual_seed(seed)
    ours = MaskClassification(num_points=POINTS)(output, targets)
    after = torch.rand(1)
    torch.manual_seed(seed)
    theirs = mask_loss_by_hand(output, targets, POINTS)
    assert torch.equal(torch.rand(1), after)  # as many random numbers, too
    for name, term in theirs.items():
        assert torch.equal(ours[name], term), name


@pytest.mark.parametrize("counts", [(3, 2), (9, 0)], ids=str)
def test_the_segmentation_loss_has_the_literal_gradient_and_no_other(counts: tuple[int, int]):
    targets = targets_with(*counts)
    gradients = []
    by_hand = partial(mask_loss_by_hand, num_points=POINTS)
    for loss in (MaskClassification(num_points=POINTS), by_hand):
        output = planted.random_output(1, num_aux=2)
        total(loss, output, targets).backward()
        every = (*output.aux, output)
        gradients.append([one.mask_logits.grad for one in every])
        gradients[-1] += [one.class_logits.grad for one in every]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    for ours in gradients[0][:3]:  # of the matched queries, and of them alone
        moved = ours.flatten(2).abs().amax(dim=2) > 0
        assert moved.sum(dim=1).tolist() == [min(len(t.masks), planted.Q) for t in targets]


def test_a_batch_without_masks_still_reaches_every_mask_with_a_zero():
    # Else distributed training would wait for a gradient that never comes.
    output = planted.random_output(num_aux=1)
    terms = MaskClassification(num_points=POINTS)(output, targets_with(0, 0))
    assert terms["mask"] == terms["dice"] == 0
    (terms["mask"] + terms["dice"]).backward()
    for one in (*output.aux, output):
        assert torch.equal(one.mask_logits.grad, torch.zeros_like(one.mask_logits))


def without_edges(target: Target) -> Target:
    """Leave out the pixels beside an edge, where a bilinear sample is soft even for the truth."""
    padded = torch.nn.functional.pad(target.masks.float(), (1, 1, 1, 1), value=-1.0)
    highest = torch.nn.functional.max_pool2d(padded, 3, stride=1)
    lowest = -torch.nn.functional.max_pool2d(-padded, 3, stride=1)
    return target._replace(ignore=(highest != lowest).any(dim=0))


@pytest.mark.parametrize("outlier_class", [False, True])
def test_saying_the_truth_costs_nothing_and_swapping_masks_much(outlier_class: bool):
    targets = planted.two_targets(label_outlier=outlier_class)
    order = ORDER_WITH_OUTLIER if outlier_class else ORDER
    output = planted.saying(targets, order, num_outputs=planted.K + 1 + outlier_class)
    loss = MaskClassification(num_points=1024)
    assert total(loss, output, targets) < 2.0  # of some 40; the edges are soft
    assert total(loss, output, [without_edges(target) for target in targets]) < 0.01
    swapped = planted.saying(targets, [one[::-1] for one in order], num_outputs=planted.K + 2)
    swapped = swapped._replace(class_logits=output.class_logits)
    assert total(loss, swapped, targets) > 10


def test_ignored_pixels_have_no_influence_and_get_no_gradient_but_others_do():
    ignore = planted.boxes((2, 2, 6, 6))[0]
    kept = [target._replace(ignore=ignore) for target in planted.two_targets()]
    output, loss = planted.random_output(), MaskClassification(num_points=POINTS)
    reference = total(loss, output, kept)
    for where in (ignore, ~ignore):
        changed = [target._replace(masks=target.masks ^ where) for target in kept]
        unmoved = torch.equal(reference, total(loss, planted.random_output(), changed))
        assert unmoved == (where is ignore)
    reference.backward()
    inside = output.mask_logits.grad[..., 3:5, 3:5]
    assert inside.abs().sum() == 0
    assert output.mask_logits.grad.abs().sum() > 0


def test_a_mask_of_an_unknown_class_and_a_no_object_weight_of_zero_are_refused():
    targets = planted.two_targets(label_outlier=True)
    with pytest.raises(ValueError, match=r"class 4, but the class head knows 0 to 3.*outlier_"):
        MaskClassification(num_points=POINTS)(planted.random_output(), targets)
    with pytest.raises(ValueError, match="no_object_weight must be above 0, got 0"):
        MaskClassification(no_object_weight=0.0)


def test_a_count_is_the_mean_over_all_processes(monkeypatch: pytest.MonkeyPatch):
    five, none = torch.tensor(5), torch.tensor(0)
    assert mean_over_processes(five) == 5
    assert mean_over_processes(none) == 1
    # Another process has 9 masks, this one 5: both divide by the mean, 7.
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count.add_(9))
    assert mean_over_processes(five) == 7
    assert five == 5
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count)
    assert mean_over_processes(none) == 0.5  # at least 1 in all, as one process has it


def test_batches_of_a_step_add_up_to_the_larger_batch(monkeypatch: pytest.MonkeyPatch):
    planted.fix_points(monkeypatch)
    output, targets = planted.random_output(num_aux=1), planted.two_targets()
    assert len({len(target.labels) for target in targets}) == 2
    loss = MaskClassification(num_points=256, class_weights={"b": 3.0})
    loss.weigh_classes(["a", "b", "c", "d"], [])
    together = loss(output, targets)
    loss.begin_step([targets[:1], targets[1:]])
    parts = [loss(one_image(output, index), targets[index : index + 1]) for index in range(2)]
    for name, term in together.items():
        assert torch.allclose(term, (parts[0][name] + parts[1][name]) / 2, rtol=1e-6)


def one_image(output: MaskOutput, index: int) -> MaskOutput:
    one = slice(index, index + 1)
    aux = tuple(one_image(each, index) for each in output.aux)
    return output._replace(
        mask_logits=output.mask_logits[one], class_logits=output.class_logits[one], aux=aux
    )
