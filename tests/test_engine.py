"""Optimiser, schedule, annealing, windows: the engine's arithmetic against worked values."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eomt_exp.contracts import CheckpointError, MaskOutput
from eomt_exp.engine.checkpoint import load_state
from eomt_exp.engine.detector import Detector, window_boxes
from eomt_exp.engine.evaluation import shard
from eomt_exp.engine.optim import annealing_steps, mask_probs, parameter_groups, warmup_poly
from eomt_exp.schema import OptimConfig
from tests.bright_anomalies import BrightnessNet, NegatedEvidence, NegatedMask
from tests.test_model import tiny, with_head


def optim_config(**changes) -> OptimConfig:
    values = {
        "lr": 1e-4, "backbone_lr_factor": 1.0, "weight_decay": 0.05, "layer_decay": 0.8,
        "decay_joint_blocks": True, "head_warmup": 0.1, "backbone_warmup": 0.2, "poly_power": 0.9,
    }  # fmt: skip
    return OptimConfig(**values | changes)


def test_layer_wise_rates() -> None:
    model = tiny()
    rate_of = {
        id(p): g["peak_lr"] for g in parameter_groups(model, optim_config()) for p in g["params"]
    }
    rates = {name: rate_of[id(p)] for name, p in model.named_parameters()}
    assert len(rate_of) == len(rates)  # each parameter exactly once
    # lr * 0.8 ** (3 - i) for block i of 4; embeddings like block 0, the final norm at full rate.
    assert rates["encoder.backbone.blocks.0.norm1.weight"] == pytest.approx(1e-4 * 0.512)
    assert rates["encoder.backbone.blocks.2.norm1.weight"] == pytest.approx(0.8e-4)
    assert rates["encoder.backbone.pos_embed"] == pytest.approx(1e-4 * 0.512)
    assert rates["encoder.backbone.norm.weight"] == pytest.approx(1e-4)
    assert rates["class_head.weight"] == rates["q.weight"] == pytest.approx(1e-4)


def test_frozen_parameters_are_in_no_group() -> None:
    model = with_head()
    model.set_trainable("head")
    params = [p for g in parameter_groups(model, optim_config()) for p in g["params"]]
    assert {id(p) for p in params} == {id(p) for p in model.anomaly_head.parameters()}


@pytest.mark.parametrize(
    ("step", "head", "backbone"),
    [(0, 0, 0), (5, 0.5, 0), (10, 1, 0), (20, (8 / 9) ** 0.9, 0.5), (30, (7 / 9) ** 0.9, 1),
     (65, (1 - 55 / 90) ** 0.9, 0.5**0.9), (100, 0, 0)],
)  # fmt: skip
def test_two_stage_warmup_and_poly(step: int, head: float, backbone: float) -> None:
    assert warmup_poly(step, 0, 10, 100, 0.9) == pytest.approx(head)
    assert warmup_poly(step, 10, 20, 100, 0.9) == pytest.approx(backbone)


def test_annealing_reproduces_the_official_steps() -> None:
    # facts/eomt.md section 2.4: a_i = T/6 + (T/2) i / (K-1), b_i = a_i + T/6; COCO: T = 88692.
    total = 88_692
    starts = [14_782, 29_564, 44_346, 59_128]
    annealing = annealing_steps(None, total, 4)
    for block, start in enumerate(starts):
        assert mask_probs(start, annealing)[block] == 1
        assert mask_probs(start + 1, annealing)[block] < 1
        assert mask_probs(start + 14_782, annealing)[block] == 0
        assert mask_probs(start + 7_391, annealing)[block] == pytest.approx(0.5**0.9)
    assert mask_probs(total, annealing) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("size", "boxes"),
    [((10, 20), [(0, 0)]), ((10, 40), [(0, 0), (0, 20)]), ((10, 45), [(0, 0), (0, 12), (0, 25)]),
     ((15, 20), [(0, 0), (5, 0)])],
)  # fmt: skip
def test_windows_cover_with_even_overlap(size, boxes) -> None:
    assert window_boxes(size, (10, 20)) == boxes


@pytest.mark.parametrize("as_masks", [True, False])
@pytest.mark.parametrize("shape", [(16, 24), (40, 200), (90, 30)])
def test_detector_scores_in_the_images_own_size(as_masks: bool, shape: tuple[int, int]) -> None:
    scorers = {"s": NegatedEvidence(), "q": NegatedMask()}
    detector = Detector(
        model=BrightnessNet(as_masks), scorers=scorers, score="s", image_size=(16, 32), batch_size=2
    )
    ramp = np.linspace(20, 220, shape[1]).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (*shape, 3))
    maps, known = detector.scores(image)
    assert known.shape == shape
    assert (known == 0).all()
    for score in maps.values():
        assert score.shape == shape
        assert score.dtype == np.float32
        # Windows leave no seam: the score follows the brightness from end to end.
        np.testing.assert_allclose(score[0], ramp / 255 - 1, atol=0.03)


def test_windows_of_neighbouring_images_share_a_pass_and_stay_apart() -> None:
    net = BrightnessNet(True)
    passes = []
    net.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    scorers = {"s": NegatedEvidence(), "q": NegatedMask()}

    def detector(batch_size: int) -> Detector:
        return Detector(model=net, scorers=scorers, score="s", image_size=(16, 32),
                        batch_size=batch_size)  # fmt: skip

    rng = np.random.default_rng(0)
    shapes = [(16, 90), (16, 32), (60, 32), (20, 50), (16, 32)]  # 3, 1, 4, 2 and 1 windows
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    together = list(detector(4).stream(images))
    assert passes == [4, 4, 3]
    for image, found in zip(images, together, strict=True):
        (alone,) = detector(100).stream([image])
        np.testing.assert_array_equal(found.known, alone.known)
        for name in scorers:
            np.testing.assert_allclose(found.scores[name], alone.scores[name], atol=1e-6)


def test_an_image_is_handed_out_as_soon_as_it_is_complete() -> None:
    detector = Detector(model=BrightnessNet(True), scorers={"s": NegatedEvidence()}, score="s",
                        image_size=(16, 32), batch_size=1)  # fmt: skip
    asked = []

    def images():
        for index in range(3):
            asked.append(index)
            yield np.full((16, 32, 3), 40 * index, dtype=np.uint8)

    next(detector.stream(images()))
    assert asked == [0]


class BlockMasks(nn.Module):
    """Two queries whose masks, at a quarter of the size, are left and right of a seam."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> MaskOutput:
        height, width = (n // 4 for n in images.shape[-2:])
        left = torch.full((height, width), 8.0)
        left[:, width // 2 :] = -8.0
        masks = torch.stack([left, -left])[None].expand(len(images), -1, -1, -1)
        classes = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0]]]).expand(len(images), -1, -1)
        return MaskOutput(masks * self.scale, classes, torch.zeros(1), None, 2)


def test_at_mask_resolution_only_outlines_differ() -> None:
    scorers = {"s": NegatedEvidence(), "q": NegatedMask()}
    found = {}
    for resolution in ("input", "mask"):
        detector = Detector(model=BlockMasks(), scorers=scorers, score="s", image_size=(16, 64),
                            resolution=resolution)  # fmt: skip
        (found[resolution],) = detector.stream([np.zeros((16, 64, 3), np.uint8)])
    seam = np.zeros(64, bool)
    seam[32 - 4 : 32 + 4] = True
    for name in scorers:
        exact, fast = (found[r].scores[name] for r in ("input", "mask"))
        np.testing.assert_allclose(fast[:, ~seam], exact[:, ~seam], atol=1e-3)
        assert not np.allclose(fast[:, seam], exact[:, seam], atol=1e-2)
    assert (found["input"].known == found["mask"].known).mean() > 0.98


def test_detector_refuses_what_is_no_image() -> None:
    detector = Detector(
        model=BrightnessNet(False), scorers={"s": NegatedEvidence()}, score="s", image_size=(16, 32)
    )
    with pytest.raises(ValueError, match="uint8 RGB"):
        detector(np.zeros((8, 8, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="score=t must be one of"):
        Detector(model=BrightnessNet(False), scorers={"s": NegatedEvidence()}, score="t",
                 image_size=(16, 32))  # fmt: skip


def test_shards_are_a_partition() -> None:
    images = list(range(7))
    assert sorted(shard(images, 0, 3) + shard(images, 1, 3) + shard(images, 2, 3)) == images


def test_trunk_resizes_masks_before_the_sigmoid() -> None:
    logits = torch.randn(1, 2, 4, 4)
    output = MaskOutput(logits, torch.randn(1, 2, 4), torch.zeros(1), None, 3)
    resized = output.resized((8, 8)).mask_logits
    assert torch.equal(resized, F.interpolate(logits, size=(8, 8), mode="bilinear"))


def test_a_state_that_asks_to_be_unpickled_is_refused(tmp_path) -> None:
    for name in ("progress.json", "random_states_0.pkl", "custom_checkpoint_0.pkl"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(CheckpointError, match=r"custom_checkpoint_0\.pkl"):
        load_state(SimpleNamespace(process_index=0), tmp_path)
    (tmp_path / "custom_checkpoint_0.pkl").unlink()
    with pytest.raises(CheckpointError, match=r"random_states_1\.pkl"):
        load_state(SimpleNamespace(process_index=1), tmp_path)
