"""EoMT against transformers' own, with random weights: forward, masks, losses, gradients.

In float64 wherever masks are cut at a threshold: there a rounding error could flip a bit.
Run: pytest tests/test_parity.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from transformers_oracle import (
    CLASSES,
    SIZE,
    Heard,
    double_precision,
    errors,
    hear,
    random_eomt,
    relative_error,
    some_images,
    translated,
    twin,
)

from eomt_exp.contracts import MaskOutput, Target
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.models.eomt import EoMT

FORWARD_BOUND, GRADIENT_BOUND = 1e-9, 1e-8
NAME = "vit_small_patch14_reg4_dinov2"
HALF = [0.5, 0.5]


@pytest.fixture
def double() -> Iterator[None]:
    with double_precision():
        yield


def pair(probs: Sequence[float] = (1.0, 1.0), official_quirks: bool = False) -> tuple[Any, EoMT]:
    """A random model of transformers in training mode, and its twin."""
    oracle = random_eomt().train()
    oracle.attn_mask_probs.copy_(torch.tensor(probs))
    return oracle, twin(oracle, NAME, official_quirks=official_quirks)


def some_targets(*counts: int, seed: int = 0) -> list[Target]:
    """One target an image, with so many masks: overlapping rectangles and scattered pixels."""
    draw = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        masks = torch.rand(count, SIZE, SIZE, generator=draw) > 0.9
        for mask in masks:
            top, left = torch.randint(0, SIZE - 24, (2,), generator=draw).tolist()
            mask[top : top + 20, left : left + 24] = True
        labels = torch.randint(0, CLASSES, (count,), generator=draw)
        nothing = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        targets.append(Target(masks, labels, nothing.to(torch.uint8), nothing))
    return targets


@torch.no_grad()
def seeded_error(oracle: Any, model: EoMT, seed: int = 3) -> float:
    """Both on the same images, from the same state of the random generator."""
    torch.manual_seed(seed)
    theirs = hear(oracle, some_images())
    torch.manual_seed(seed)
    return errors(model(some_images()), theirs)


@pytest.mark.usefixtures("double")
def test_unmasked_forward() -> None:
    oracle, model = pair(probs=(0.0, 0.0))
    model.masked_attention = False
    with torch.no_grad():
        theirs = hear(oracle.eval(), some_images())
        ours = model.eval()(some_images())
    assert len(theirs.masks) == 1
    assert errors(ours, theirs) <= FORWARD_BOUND


@pytest.mark.usefixtures("double")
def test_masked_forward_in_every_supervised_block() -> None:
    oracle, model = pair()
    with torch.no_grad():
        theirs = hear(oracle, some_images())
        masked = model(some_images())
        model.set_mask_probs([0.0, 0.0])
        opened = model(some_images())
    assert len(theirs.masks) == len(masked.aux) + 1 == 3
    assert all(0.2 < float((masks > 0).double().mean()) < 0.8 for masks in theirs.masks)
    assert errors(masked, theirs) <= FORWARD_BOUND
    assert errors(opened, theirs) > 1e-3  # the masks do matter here


@pytest.mark.usefixtures("double")
def test_masked_forward_in_evaluation() -> None:
    oracle, model = pair()
    with torch.no_grad():
        theirs = hear(oracle.eval(), some_images())
        ours = model.eval()(some_images())
    assert relative_error([ours.mask_logits], theirs.masks[-1:]) <= FORWARD_BOUND
    assert relative_error([ours.class_logits], theirs.classes[-1:]) <= FORWARD_BOUND


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("quirks", [False, True])
def test_half_annealed_masks_open_for_the_same_queries_under_the_same_seed(quirks: bool) -> None:
    oracle, model = pair(HALF, official_quirks=quirks)
    for seed in range(3):
        assert seeded_error(oracle, model, seed) <= FORWARD_BOUND
    with torch.no_grad():
        torch.manual_seed(3)
        theirs = hear(oracle, some_images())
        torch.manual_seed(4)
        assert errors(model(some_images()), theirs) > 1e-3  # the draw does matter here


@pytest.mark.usefixtures("double")
def test_quirk_of_drawing_for_masks_that_are_all_open() -> None:
    oracle, model = pair((0.0, 0.5), official_quirks=True)
    assert seeded_error(oracle, model) <= FORWARD_BOUND
    assert seeded_error(oracle, twin(oracle, NAME)) > 1e-3  # ours draws later, so otherwise


@pytest.mark.usefixtures("double")
def test_quirk_of_random_masks_in_evaluation() -> None:
    oracle, model = pair(HALF, official_quirks=True)
    oracle.eval()
    model.eval()
    with torch.no_grad():
        torch.manual_seed(3)
        theirs = hear(oracle, some_images())
        torch.manual_seed(3)
        ours = model(some_images())
    assert relative_error([ours.mask_logits], theirs.masks[-1:]) <= FORWARD_BOUND


@pytest.mark.usefixtures("double")
def test_no_weight_is_idle() -> None:
    """The comparison can fail: each tensor, moved in one place, breaks the bound by far."""
    oracle, model = pair()
    with torch.no_grad():
        theirs = hear(oracle, some_images())
        for name, parameter in model.named_parameters():
            value = parameter.view(-1)[0].clone()
            parameter.view(-1)[0] += 1e-3
            assert errors(model(some_images()), theirs) > 100 * FORWARD_BOUND, name
            parameter.view(-1)[0] = value
        assert errors(model(some_images()), theirs) <= FORWARD_BOUND


def test_forward_agrees_in_single_precision_with_the_oracle_as_it_is() -> None:
    oracle, model = pair()
    with torch.no_grad():
        assert errors(model(some_images()), hear(oracle, some_images())) <= 1e-5


def heard_loss(counts: Sequence[int], points: int, seed: int) -> tuple[Heard, list[Target]]:
    """A training forward of the oracle, float32, whose loss draws from a seed."""
    oracle, targets = random_eomt(train_num_points=points).train(), some_targets(*counts, seed=seed)
    torch.manual_seed(seed)  # probabilities are 1: the forward pass draws nothing
    with torch.no_grad():
        return hear(oracle, some_images(), targets), targets


def output_of(theirs: Heard) -> MaskOutput:
    """What the oracle predicted, as our losses take it."""
    outputs = [
        MaskOutput(masks, classes, classes, None, CLASSES)
        for masks, classes in zip(theirs.masks, theirs.classes, strict=True)
    ]
    return outputs[-1]._replace(aux=tuple(outputs[:-1]))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("points", [112, 12544])
@pytest.mark.parametrize("counts", [(3, 1), (6, 7), (2, 0), (0, 0)])
def test_losses_are_bit_equal_under_the_same_seed(
    counts: tuple[int, int], points: int, seed: int
) -> None:
    theirs, targets = heard_loss(counts, points, seed)
    assert len(theirs.terms) == 3
    loss = MaskClassification(num_points=points)
    output = output_of(theirs)
    torch.manual_seed(seed)
    for one, expected in zip((*output.aux, output), theirs.terms, strict=True):
        terms = loss(one._replace(aux=()), targets)
        assert torch.equal(terms["mask"], expected["loss_mask"])
        assert torch.equal(terms["dice"], expected["loss_dice"])
        assert torch.equal(terms["class"], expected["loss_cross_entropy"])
    torch.manual_seed(seed)
    together = loss(output, targets)  # the same, summed over blocks first
    torch.testing.assert_close(sum(together.values()), theirs.loss, rtol=3e-7, atol=0)


def test_another_seed_gives_other_losses() -> None:
    theirs, targets = heard_loss((3, 1), 112, 0)
    torch.manual_seed(1)
    terms = MaskClassification(num_points=112)(output_of(theirs), targets)
    assert abs(sum(terms.values()) / theirs.loss - 1) > 1e-4


def test_more_masks_than_queries_are_averaged_over_the_pairs() -> None:
    """As in the original; transformers divides by all the masks, paired or not."""
    theirs, targets = heard_loss((9, 2), 112, 0)
    torch.manual_seed(0)
    terms = MaskClassification(num_points=112)(output_of(theirs), targets)
    expected = {name: sum(one[name] for one in theirs.terms) for name in theirs.terms[0]}
    close = {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(terms["class"], expected["loss_cross_entropy"], **close)
    torch.testing.assert_close(terms["mask"] * (7 + 2) / (9 + 2), expected["loss_mask"], **close)
    torch.testing.assert_close(terms["dice"] * (7 + 2) / (9 + 2), expected["loss_dice"], **close)


def gradients(probs: Sequence[float], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of every parameter through a masked forward pass and the loss: ours and theirs."""
    oracle, model = pair(probs)
    targets = some_targets(3, 2)
    oracle.criterion.num_points = oracle.criterion.matcher.num_points = 448
    torch.manual_seed(seed)
    hear(oracle, some_images(), targets).loss.backward()
    torch.manual_seed(seed)
    sum(MaskClassification(num_points=448)(model(some_images()), targets).values()).backward()
    theirs = translated({name: p.grad for name, p in oracle.named_parameters()})
    return {name: p.grad for name, p in model.named_parameters()}, theirs


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("probs", [(1.0, 1.0), HALF])
def test_gradients_of_every_parameter(probs: Sequence[float]) -> None:
    ours, theirs = gradients(probs, seed=5)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 60
    for name, gradient in ours.items():
        assert theirs[name].abs().max() > 0, name
        assert relative_error([gradient], [theirs[name]]) <= GRADIENT_BOUND, name
