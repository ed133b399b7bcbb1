"""The losses: known answers, what may and may not move them, and batches in which little is there.

Run: pytest tests/test_losses.py. The segmentation loss is compared with mask_loss_by_hand.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
import yaml
from mask_loss_by_hand import mask_loss_by_hand
from torch import Tensor, distributed

from eomt_exp.contracts import VOID, MaskOutput, Target
from eomt_exp.losses.anomaly_head import AnomalyHeadLoss
from eomt_exp.losses.isotropy_penalty import IsotropyPenalty
from eomt_exp.losses.mask_classification import MaskClassification, masks_per_process
from eomt_exp.losses.outlier_margin import OutlierMargin
from eomt_exp.scorers.rba import RbA

FOLDER = Path(__file__).parents[1] / "conf" / "loss"
POINTS = 256
ORDER = [[4, 0, 2], [5, 1]]  # the query that says each mask


def margin() -> OutlierMargin:
    return OutlierMargin(scorer=RbA(), low=-0.6, high=-0.1)


EVERY_LOSS: list[Callable[[], Any]] = [
    lambda: MaskClassification(num_points=POINTS),
    lambda: AnomalyHeadLoss(num_points=POINTS),
    lambda: IsotropyPenalty(),
    lambda: IsotropyPenalty(queries="unmatched", num_points=POINTS),
    lambda: IsotropyPenalty(queries="outlier"),
    margin,
]


def total(loss: Any, output: MaskOutput, targets: list[Target], seed: int = 7) -> Tensor:
    """The sum of the terms, its random points drawn from this seed."""
    torch.manual_seed(seed)
    return torch.stack(list(loss(output, targets).values())).sum()


def leaves(output: MaskOutput) -> list[Tensor]:
    return [output.mask_logits, output.class_logits, output.anomaly_logits]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configured_loss_gives_scalars_with_gradient(path: Path):
    config = yaml.safe_load(path.read_text())
    output = planted.random_output(outlier_class=True, num_aux=1)
    terms = planted.part_of(config[path.stem])(output, planted.two_targets(label_outlier=True))
    for term in terms.values():
        assert term.shape == ()
        assert term.isfinite()
        assert term.requires_grad


@pytest.mark.parametrize("make", EVERY_LOSS)
@pytest.mark.parametrize("num_empty", [1, 2])
def test_a_loss_survives_images_that_show_nothing(make: Callable[[], Any], num_empty: int):
    output = planted.random_output()
    targets = [planted.empty_target() for _ in range(num_empty)]
    targets += planted.two_targets()[: planted.B - num_empty]
    loss = total(make(), output, targets)
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves(output))


@pytest.mark.parametrize("make", EVERY_LOSS)
def test_a_loss_survives_an_image_of_void_alone(make: Callable[[], Any]):
    everywhere = torch.ones(planted.SIZE, planted.SIZE, dtype=torch.bool)
    targets = [
        target._replace(anomaly=torch.full_like(target.anomaly, VOID), ignore=everywhere)
        for target in planted.two_targets()
    ]
    output = planted.random_output()
    loss = total(make(), output, targets)
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves(output))


@pytest.mark.parametrize("make", EVERY_LOSS)
def test_a_loss_stays_finite_at_extreme_logits(make: Callable[[], Any]):
    output = planted.random_output(scale=1e4)
    loss = total(make(), output, planted.two_targets())
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves(output))


@pytest.mark.parametrize("make", EVERY_LOSS)
def test_a_loss_takes_half_precision_in_and_gives_float32_out(make: Callable[[], Any]):
    output = planted.random_output()
    half = output._replace(
        mask_logits=output.mask_logits.bfloat16(),
        class_logits=output.class_logits.bfloat16(),
        anomaly_logits=output.anomaly_logits.bfloat16(),
    )
    loss = total(make(), half, planted.two_targets())
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def some_targets(name: str) -> list[Target]:
    """Two images with these numbers of masks, where the model has Q = 6 queries."""
    corners = [(row, column, row + 2, column + 2) for row in (0, 3, 6) for column in (0, 3, 6)]
    crowd = planted.target_of(planted.boxes(*corners), [0, 1, 2, 3, 0, 1, 2, 3, 0])
    three, two = planted.two_targets()
    none = planted.empty_target()
    return {
        "3 and 2": [three, two],
        "0 and 3": [none, three],
        "9 and 2": [crowd, two],
        "9 and 0": [crowd, none],
        "0 and 0": [none, none],
    }[name]


@pytest.mark.parametrize("counts", ["3 and 2", "0 and 3", "9 and 2", "9 and 0", "0 and 0"])
@pytest.mark.parametrize("num_aux", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_segmentation_loss_has_the_bits_of_the_literal_formula(
    seed: int, num_aux: int, counts: str
):
    targets = some_targets(counts)
    output = planted.random_output(seed, scale=3.0, num_aux=num_aux)
    torch.manual_seed(seed)
    ours = MaskClassification(num_points=POINTS)(output, targets)
    after = torch.rand(1)
    torch.manual_seed(seed)
    theirs = mask_loss_by_hand(output, targets, POINTS)
    assert torch.equal(torch.rand(1), after)  # as many random numbers, too
    for name, term in theirs.items():
        assert torch.equal(ours[name], term), name


@pytest.mark.parametrize("counts", ["3 and 2", "9 and 0"])
def test_the_segmentation_loss_has_the_literal_gradient_and_no_other(counts: str):
    targets = some_targets(counts)
    gradients = []
    for loss in (MaskClassification(num_points=POINTS), None):
        output = planted.random_output(1, num_aux=2)
        torch.manual_seed(3)
        terms = loss(output, targets) if loss else mask_loss_by_hand(output, targets, POINTS)
        torch.stack(list(terms.values())).sum().backward()
        every = (*output.aux, output)
        gradients.append([one.mask_logits.grad for one in every])
        gradients[-1] += [one.class_logits.grad for one in every]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for ours in gradients[0][:3]:  # of the matched queries, and of them alone
        moved = ours.flatten(2).abs().amax(dim=2) > 0
        assert moved.sum(dim=1).tolist() == [min(len(t.masks), planted.Q) for t in targets]


def test_a_batch_without_masks_still_reaches_every_mask_with_a_zero():
    # Else distributed training would wait for a gradient that never comes.
    output = planted.random_output(num_aux=1)
    terms = MaskClassification(num_points=POINTS)(output, some_targets("0 and 0"))
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
    order = [[4, 0, 2, 3], [5, 1]] if outlier_class else ORDER
    output = planted.saying(targets, order, num_outputs=planted.K + 1 + outlier_class)
    loss = MaskClassification(num_points=1024)
    assert total(loss, output, targets) < 2.0  # of some 40; the edges are soft
    assert total(loss, output, [without_edges(target) for target in targets]) < 0.01
    swapped = planted.saying(targets, [one[::-1] for one in order], num_outputs=planted.K + 2)
    swapped = swapped._replace(class_logits=output.class_logits)
    assert total(loss, swapped, targets) > 10


def test_ignored_pixels_have_no_influence_and_others_do():
    ignore = planted.boxes((2, 2, 6, 6))[0]
    kept, changed, elsewhere = [], [], []
    for target in planted.two_targets():
        target = target._replace(ignore=ignore)
        kept.append(target)
        changed.append(target._replace(masks=target.masks ^ ignore))
        elsewhere.append(target._replace(masks=target.masks ^ ~ignore))
    loss = MaskClassification(num_points=POINTS)
    reference = total(loss, planted.random_output(), kept)
    assert torch.equal(reference, total(loss, planted.random_output(), changed))
    assert not torch.equal(reference, total(loss, planted.random_output(), elsewhere))


def test_ignored_pixels_send_no_gradient_to_the_masks():
    ignore = planted.boxes((2, 2, 6, 6))[0]
    targets = [target._replace(ignore=ignore) for target in planted.two_targets()]
    output = planted.random_output()
    total(MaskClassification(num_points=POINTS), output, targets).backward()
    inside = output.mask_logits.grad[..., 3:5, 3:5]
    assert inside.abs().sum() == 0
    assert output.mask_logits.grad.abs().sum() > 0


def test_a_mask_whose_class_cannot_be_said_is_refused():
    targets = planted.two_targets(label_outlier=True)
    with pytest.raises(
        ValueError, match=r"class 4, but the class head knows 0 to 3.*outlier_class"
    ):
        MaskClassification(num_points=POINTS)(planted.random_output(), targets)


def test_a_no_object_weight_of_zero_is_refused():
    with pytest.raises(ValueError, match="no_object_weight must be above 0, got 0"):
        MaskClassification(no_object_weight=0.0)


def test_every_mask_weighs_the_same_over_all_processes(monkeypatch: pytest.MonkeyPatch):
    # Another process has 9 masks, this one 5: both divide by the mean, 7.
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count.add_(9))
    assert masks_per_process(5, torch.device("cpu")) == 7
    monkeypatch.undo()
    assert masks_per_process(5, torch.device("cpu")) == 5
    assert masks_per_process(0, torch.device("cpu")) == 1
