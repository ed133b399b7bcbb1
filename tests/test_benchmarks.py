"""The benchmarks compare like with like: at tiny sizes both sides compute the same thing."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import bench_detector, bench_eomt, bench_optimizer, bench_training_data, timing
from eomt_exp.backbones.timm_vit import TimmViT
from eomt_exp.contracts import VOID, LabelledImage
from eomt_exp.models.eomt import EoMT
from eomt_exp.weights.formats import to_official

CPU = torch.device("cpu")

# --- timing ------------------------------------------------------------------------------------


def test_sides_take_turns_and_the_first_turns_do_not_count() -> None:
    calls = []
    row = timing.compare(
        "x", lambda: calls.append("A"), lambda: calls.append("B"), repeats=3, warm_up=2
    )
    assert "".join(calls) == "ABABABABAB"
    assert [len(side.seconds) for side in (row.ours, row.theirs)] == [3, 3]
    assert all(second > 0 for second in row.ours.seconds)


def printed(*rows: timing.Row) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(timing.table("title", rows, theirs="others"))
    return capture.get()


def test_a_ratio_above_one_says_that_ours_is_faster() -> None:
    row = timing.Row("x", timing.Times([0.5, 1.0, 9.0], 0), timing.Times([4.0, 2.0, 3.0], 0), 1.25)
    assert (row.ratio, row.ratio_of_medians) == (4.0, 3.0)
    line = next(line for line in printed(row).splitlines() if " x " in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["x", "500.0", "1000.0", "2000.0", "3000.0", "4.00", "3.00", ">= 1.25"]


def test_memory_is_shown_where_it_was_measured() -> None:
    plain = timing.Row("x", timing.Times([1.0], 0), timing.Times([1.0], 0))
    on_gpu = timing.Row("y", timing.Times([1.0], 2 * 10**9), timing.Times([1.0], 5 * 10**9))
    assert "peak" not in printed(plain)
    assert "2.00" in printed(on_gpu)
    assert "5.00" in printed(on_gpu)


def test_options_refuse_what_cannot_be_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_eomt.options(["--batch", "3"]).batch == 3
    assert bench_training_data.options([]).threads == 1
    with pytest.raises(SystemExit):
        bench_eomt.options(["--repeats", "0"])
    assert "must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_training_data.options(["--present", "20"])
    assert "at most 19, got 20" in capsys.readouterr().err


# --- EoMT --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> bench_eomt.Pair:
    pytest.importorskip("transformers")
    shape = bench_eomt.Shape(dim=48, depth=4, heads=3, queries=20)
    return bench_eomt.make_pair(64, CPU, shape)


@pytest.fixture(scope="module")
def inputs() -> bench_eomt.Inputs:
    return bench_eomt.make_inputs(2, 64, CPU)


def test_forwards_agree_and_masks_are_no_idle_work(pair: Any, inputs: Any) -> None:
    sides = bench_eomt.Sides(pair, inputs, "float32")
    seen = {}
    for task in ("forward, unmasked", "forward, masked"):
        ours, theirs = (work() for work in sides.prepare(task))
        gaps = [bench_eomt.difference(*both) for both in zip(ours, theirs, strict=True)]
        print(task, gaps)
        assert max(gaps) < 1e-5
        seen[task] = ours[0]
    assert bench_eomt.difference(*seen.values()) > 1e-2


def test_training_steps_have_the_same_loss_and_gradients(
    pair: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in pair:  # the step would throw them away
        model.zero_grad(set_to_none=True)
        monkeypatch.setattr(model, "zero_grad", lambda set_to_none: None)
    losses = []
    for work in bench_eomt.Sides(pair, inputs, "float32").prepare("training step, masked"):
        torch.manual_seed(0)
        losses.append(work())
    assert bench_eomt.difference(*losses) < 1e-6
    theirs, _ = to_official({name: value.grad for name, value in pair.theirs.named_parameters()})
    ours = {name: value.grad for name, value in pair.ours.named_parameters()}
    assert ours.keys() == theirs.keys()
    worst = max(bench_eomt.difference(ours[name], theirs[name]) for name in ours)
    print("loss", float(losses[0]), "gradients", worst)
    assert worst < 1e-3
    monkeypatch.undo()
    for model in pair:
        model.zero_grad(set_to_none=True)


def test_a_step_leaves_no_gradients_behind(pair: Any, inputs: Any) -> None:
    for work in bench_eomt.Sides(pair, inputs, "float32").prepare("training step, masked"):
        work()
    assert all(p.grad is None for model in pair for p in model.parameters())


def test_every_row_of_eomt_is_measured_in_bf16_too(pair: Any, inputs: Any) -> None:
    sides = bench_eomt.Sides(pair, inputs, "bf16")
    ours, theirs = (work() for work in sides.prepare("forward, unmasked"))
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    assert bench_eomt.difference(ours[0], theirs[0]) < 0.05
    rows = [*bench_eomt.measure(sides, repeats=1)]
    assert [row.what for row in rows] == [f"bf16 {task}" for task in bench_eomt.WANTED]
    lines = [*bench_eomt.agreement(sides)]
    assert len(lines) == 3
    assert "loss" in lines[2]


def test_every_mask_of_the_truth_has_a_class_of_its_own(inputs: Any) -> None:
    for target in inputs.targets:
        assert target.masks.shape == (11, 64, 64)
        assert (target.masks.sum(dim=0) == 1).all()
        assert target.masks.flatten(1).any(dim=1).all()
        assert len(set(target.labels.tolist())) == 11


def test_without_transformers_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(sys, "argv", ["x", "--threads", str(torch.get_num_threads())])
    bench_eomt.main()
    assert "skipped, transformers cannot be imported" in capsys.readouterr().out


# --- training data -----------------------------------------------------------------------------


def test_without_chance_both_samples_are_equal() -> None:
    scene = bench_training_data.make_scene((64, 64))
    images = bench_training_data.our_set(scene, 1.0, False, 64)
    for index in range(8):  # half of all are flipped
        sample = images[index]
        for seed in range(8):
            torch.manual_seed(seed)
            theirs = bench_training_data.their_sample(scene, 1.0, False, 64)
            if torch.equal(theirs.image.float() / 255, sample.image):
                assert torch.equal(theirs.masks, sample.target.masks)
                assert torch.equal(theirs.labels, sample.target.labels)
                break
        else:
            pytest.fail("no official sample is like ours")


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


def test_jitter_changes_colours_on_both_sides_and_no_mask() -> None:
    scene = bench_training_data.make_scene((64, 64))
    plain, jittered = (
        bench_training_data.our_set(scene, 1.0, jitter, 64)[3] for jitter in (False, True)
    )
    assert not torch.equal(plain.image, jittered.image)
    assert torch.equal(plain.target.masks, jittered.target.masks)
    image = torch.from_numpy(scene.image).permute(2, 0, 1)
    torch.manual_seed(0)
    changed = [not torch.equal(bench_training_data._jittered(image), image) for _ in range(64)]
    assert 0.8 < np.mean(changed) < 1  # 15 / 16: each of four with one half


def test_classes_that_the_crop_leaves_out_are_dropped_on_both_sides() -> None:
    scene = bench_training_data.make_scene((128, 256), present=12)
    for side in range(6):
        torch.manual_seed(side)
        theirs = bench_training_data.their_sample(scene, 1.0, False, 16)
        ours = bench_training_data.our_set(scene, 1.0, False, 16)[side].target
        for masks, labels in (theirs[1:], ours[:2]):
            assert masks.flatten(1).any(dim=1).all()
            assert 0 < len(labels) == len(masks) < 12


def test_every_row_of_the_data_is_measured() -> None:
    scene = bench_training_data.make_scene((32, 64))
    rows = [*bench_training_data.measure(scene, repeats=1, crop=32)]
    assert [row.what for row in rows] == [
        "scales 0.25 to 1, colour jitter on",
        "scales 0.25 to 1, colour jitter off",
        "scales 0.5 to 1, colour jitter on",
        "scales 0.5 to 1, colour jitter off",
    ]


def test_a_sample_is_its_image_over_255_with_a_mask_for_each_class_present() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([levels, levels[::-1], levels.T], axis=2)
    labels = np.full((16, 16), VOID, dtype=np.uint8)
    labels[3, 4], labels[8:, 2:5], labels[:2] = 18, 0, 7
    scene = LabelledImage(image, labels, np.zeros_like(labels), "levels")
    images = bench_training_data.our_set(scene, 1.0, False, 16)
    images.augmentation.geometric = lambda image, seed: image  # type: ignore[method-assign]
    sample = images[0]
    assert torch.equal(sample.image, torch.tensor(image.transpose(2, 0, 1).copy()).float() / 255)
    assert sample.image.is_contiguous()
    assert sample.target.labels.tolist() == [0, 7, 18]
    for mask, index in zip(sample.target.masks, (0, 7, 18), strict=True):
        assert np.array_equal(mask.numpy(), labels == index)


# --- optimizer ---------------------------------------------------------------------------------


def tiny() -> EoMT:
    torch.manual_seed(0)
    encoder: Any = TimmViT(
        name="vit_small_patch14_reg4_dinov2",
        image_size=(32, 32),
        embed_dim=48,
        overrides={"embed_dim": 48, "depth": 4, "num_heads": 3},
    )
    return EoMT(encoder=encoder, num_classes=5, num_queries=7, num_blocks=2)


def test_both_optimizers_walk_the_same_path() -> None:
    start = tiny()
    before = {name: value.clone() for name, value in start.named_parameters()}
    ours, theirs = bench_optimizer.twins(start)
    steps = bench_optimizer.our_optimizer(ours).step, bench_optimizer.their_optimizer(theirs).step
    for _ in range(3):
        for step in steps:
            step()
    pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    worst = max(float((mine - other).detach().abs().max()) for (_, mine), other in pairs)
    print("largest difference after 3 steps", worst)
    assert worst <= 1e-7
    assert all(not torch.equal(value, before[name]) for name, value in ours.named_parameters())


def rates(model: EoMT, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(parameter)] for name, parameter in model.named_parameters()}


def test_rates_are_the_published_ones_on_both_sides() -> None:
    model = bench_optimizer.make_model("ViT-B", 32, torch.device("meta"))
    ours = rates(model, bench_optimizer.our_optimizer(model))
    optimizer = bench_optimizer.their_optimizer(model)
    assert len(optimizer.param_groups) == len(ours)  # a group for each tensor
    assert rates(model, optimizer) == pytest.approx(ours)
    trunk = "encoder.backbone."
    published = {  # facts of the official recipe: ViT-B, 1e-4, layer decay 0.8
        f"{trunk}pos_embed": 8.59e-6, f"{trunk}blocks.0.ls1.gamma": 8.59e-6,
        f"{trunk}blocks.8.attn.qkv.weight": 5.12e-5, f"{trunk}blocks.9.norm1.bias": 6.4e-5,
        f"{trunk}blocks.11.mlp.fc2.weight": 1e-4, f"{trunk}norm.weight": 1e-4, "q.weight": 1e-4,
    }  # fmt: skip
    for name, rate in published.items():
        assert ours[name] == pytest.approx(rate, rel=1e-3)


def test_the_optimizer_row_is_measured() -> None:
    row = bench_optimizer.measure("tiny", tiny(), 2, CPU)
    assert row.what.startswith("tiny (0.")
    assert len(row.theirs.seconds) == 2


# --- detector ----------------------------------------------------------------------------------


def test_both_detectors_are_one_model_that_differs_in_where_masks_meet_classes() -> None:
    both = bench_detector.detectors(embed_dim=64, depth=3, size=(32, 32))
    assert both["mask"].model is both["input"].model
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    (fast,), (exact,) = (both[r].stream([image]) for r in ("mask", "input"))
    for name, scores in exact.scores.items():
        assert scores.shape == fast.scores[name].shape == (32, 64)
        assert np.corrcoef(scores.ravel(), fast.scores[name].ravel())[0, 1] > 0.9
        assert not np.array_equal(scores, fast.scores[name])
