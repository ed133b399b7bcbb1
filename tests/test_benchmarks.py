"""The benchmarks compare like with like: at tiny sizes both sides compute the same thing."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import (
    bench_detector,
    bench_eomt,
    bench_evaluation,
    bench_optimizer,
    bench_training_data,
    timing,
)
from eomt_exp.models.eomt import EoMT
from eomt_exp.weights.formats import to_official
from tests.official_tables import DINOV2_BLOCK_RATES
from tests.test_model import tiny

CPU = torch.device("cpu")


def test_sides_take_turns_and_the_first_turns_do_not_count() -> None:
    calls = []
    sides = (partial(calls.append, side) for side in "AB")
    row = timing.compare("x", *sides, repeats=3, warm_up=2)
    assert "".join(calls) == "ABABABABAB"
    assert [len(side.seconds) for side in (row.ours, row.theirs)] == [3, 3]
    assert min(row.ours.seconds) > 0


def test_a_ratio_above_one_says_that_ours_is_faster() -> None:
    row = timing.Row("x", timing.Times([0.5, 1.0, 9.0], 0), timing.Times([4.0, 2.0, 3.0], 0), 1.25)
    assert (row.ratio, row.ratio_of_medians) == (4.0, 3.0)
    console = Console(width=140)
    with console.capture() as capture:
        console.print(timing.table("title", [row], theirs="others"))
    (line,) = (line for line in capture.get().splitlines() if " x " in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["x", "500.0", "1000.0", "2000.0", "3000.0", "4.00", "3.00", ">= 1.25"]


@pytest.fixture(scope="module")
def pair() -> bench_eomt.Pair:
    pytest.importorskip("transformers")
    shape = bench_eomt.Shape(dim=48, depth=4, heads=3, queries=20)
    return bench_eomt.make_pair(64, CPU, shape)


@pytest.fixture(scope="module")
def inputs() -> bench_eomt.Inputs:
    return bench_eomt.make_inputs(2, 64, CPU)


@pytest.mark.slow  # imports transformers
def test_forwards_agree_and_masks_are_no_idle_work(pair: Any, inputs: Any) -> None:
    sides = bench_eomt.Sides(pair, inputs, "float32")
    seen = {}
    for task in ("forward, unmasked", "forward, masked"):
        ours, theirs = (work() for work in sides.prepare(task))
        assert max(map(bench_eomt.difference, ours, theirs)) < 1e-5
        seen[task] = ours[0]
    assert bench_eomt.difference(*seen.values()) > 1e-2


@pytest.mark.slow
def test_training_steps_have_the_same_loss_and_gradients(
    pair: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in pair:
        model.zero_grad(set_to_none=True)
        # The step would throw gradients away.
        monkeypatch.setattr(model, "zero_grad", lambda set_to_none: None)
    losses = []
    for work in bench_eomt.Sides(pair, inputs, "float32").prepare("training step, masked"):
        torch.manual_seed(0)
        losses.append(work())
    assert bench_eomt.difference(*losses) < 1e-6
    theirs, _ = to_official({name: value.grad for name, value in pair.theirs.named_parameters()})
    ours = {name: value.grad for name, value in pair.ours.named_parameters()}
    assert ours.keys() == theirs.keys()
    assert max(bench_eomt.difference(ours[name], theirs[name]) for name in ours) < 1e-3


def test_without_chance_both_samples_are_equal() -> None:
    scene = bench_training_data.make_scene((64, 64))
    images = bench_training_data.our_set(scene, 1.0, False, 64)
    for index in range(8):  # half of all are flipped
        sample = images[index]
        for seed in range(8):
            torch.manual_seed(seed)
            theirs = bench_training_data.their_sample(scene, 1.0, False, 64)
            if alike := torch.equal(theirs.image.float() / 255, sample.image):
                assert torch.equal(theirs.masks, sample.target.masks)
                assert torch.equal(theirs.labels, sample.target.labels)
                break
        assert alike, "no official sample is like ours"


@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_both_show_the_scene_at_the_same_scale(scale: float) -> None:
    scene = bench_training_data.make_scene((128, 256), present=5)  # patches of 8 x 8 pixels
    torch.manual_seed(0)
    theirs = bench_training_data.their_sample(scene, scale, False, 128)
    ours = bench_training_data.our_set(scene, scale, False, 128)[0]
    assert ours.image.shape == theirs.image.shape == (3, 128, 128)
    assert torch.equal(ours.target.labels, theirs.labels)
    sizes = [masks.flatten(1).sum(dim=1) for masks in (ours.target.masks, theirs.masks)]
    assert torch.equal(*sizes)
    means = [float(image.float().mean()) for image in (ours.image, theirs.image / 255)]
    assert means[0] == pytest.approx(means[1], abs=0.01)


def test_both_optimizers_walk_the_same_path() -> None:
    start, (ours, theirs) = tiny(), bench_optimizer.copies_of(tiny())
    steps = bench_optimizer.our_optimizer(ours).step, bench_optimizer.their_optimizer(theirs).step
    for _ in range(3):
        for step in steps:
            step()
    for mine, other, first in zip(*(m.parameters() for m in (ours, theirs, start)), strict=True):
        assert (mine - other).abs().max() <= 1e-7
        assert not torch.equal(mine, first)


def rates(model: EoMT, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(parameter)] for name, parameter in model.named_parameters()}


def test_rates_are_the_published_ones_on_both_sides() -> None:
    model = bench_optimizer.make_model("ViT-B", 32, torch.device("meta"))
    ours = rates(model, bench_optimizer.our_optimizer(model))
    optimizer = bench_optimizer.their_optimizer(model)
    assert len(optimizer.param_groups) == len(ours)  # a group for each tensor
    assert rates(model, optimizer) == pytest.approx(ours)
    # The recipe whose rates test_parity_recipe.py has one by one: ViT-B, 1e-4, layer decay 0.8.
    for block, rate in enumerate(DINOV2_BLOCK_RATES):
        assert ours[f"encoder.backbone.blocks.{block}.ls1.gamma"] == pytest.approx(rate)
    assert ours["q.weight"] == 1e-4


def test_both_detectors_are_one_model_that_differs_in_where_masks_meet_classes() -> None:
    both = bench_detector.detectors(embed_dim=64, depth=3, size=(32, 32))
    assert both["mask"].model is both["input"].model
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    (fast,), (exact,) = (both[r].stream([image]) for r in ("mask", "input"))
    for name, scores in exact.scores.items():
        assert scores.shape == fast.scores[name].shape == (32, 64)
        assert np.corrcoef(scores.ravel(), fast.scores[name].ravel())[0, 1] > 0.9
        assert not np.array_equal(scores, fast.scores[name])


def test_the_parts_of_an_evaluation_add_up_to_less_than_all_and_its_aps_are_scikit_learns() -> None:
    detector = bench_evaluation.small_detector()
    photographs = bench_evaluation.Photographs(2, shape=(144, 256))
    total, spent = bench_evaluation.shares(detector, photographs)
    assert 0.2 * total < spent.total() <= total
    ours, theirs = bench_evaluation.sides(detector, photographs.decode(0))
    assert ours() == pytest.approx(theirs(), abs=1e-3)
