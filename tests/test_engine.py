"""Optimiser, schedule, annealing, windows: the engine's arithmetic against worked values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eomt_exp.contracts import VOID, CheckpointError, LabelledImage, MaskOutput, PixelOutput
from eomt_exp.engine.checkpoint import load_state
from eomt_exp.engine.detector import Detector, window_boxes
from eomt_exp.engine.evaluation import evaluate_anomalies, evaluate_known_classes, shard
from eomt_exp.engine.optim import annealing_steps, mask_probs, parameter_groups, warmup_poly
from eomt_exp.schema import OptimConfig
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


class BrightnessNet(nn.Module):
    """Known evidence falls with brightness; so bright pixels are the anomalies."""

    def __init__(self, as_masks: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.as_masks = as_masks

    def forward(self, images: torch.Tensor) -> MaskOutput | PixelOutput:
        evidence = self.scale * (1 - images.mean(dim=1, keepdim=True))  # (B, 1, H, W)
        if not self.as_masks:
            return PixelOutput(torch.cat([evidence, evidence / 2], dim=1))
        classes = torch.tensor([[[50.0, 0, 0]]]).expand(len(images), -1, -1)
        return MaskOutput(torch.logit(evidence, 1e-6), classes, torch.zeros(1), None, 2)


class NegatedEvidence:
    """A semantic scorer."""

    level: Literal["semantic", "query"] = "semantic"

    def __call__(self, output) -> torch.Tensor:
        return -output.semantic_scores().amax(dim=1)


class NegatedMask(NegatedEvidence):
    """The same as a scorer of queries, so that windows are averaged the other way."""

    level: Literal["semantic", "query"] = "query"


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


def test_detector_refuses_what_is_no_image() -> None:
    detector = Detector(
        model=BrightnessNet(False), scorers={"s": NegatedEvidence()}, score="s", image_size=(16, 32)
    )
    with pytest.raises(ValueError, match="uint8 RGB"):
        detector(np.zeros((8, 8, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="score=t must be one of"):
        Detector(model=BrightnessNet(False), scorers={"s": NegatedEvidence()}, score="t",
                 image_size=(16, 32))  # fmt: skip


def test_evaluation_counts_the_planted_anomaly() -> None:
    image = np.full((16, 32, 3), 30, dtype=np.uint8)
    image[4:8, 4:12] = 240
    anomaly = np.zeros((16, 32), dtype=np.uint8)
    anomaly[4:8, 4:12] = 1
    anomaly[:, 20:] = VOID
    image[:, 20:] = 255  # brightest of all, and nobody may look
    labels = np.where(anomaly == 0, 0, VOID).astype(np.uint8)
    item = LabelledImage(image, labels, anomaly, "x")
    detector = Detector(
        model=BrightnessNet(False), scorers={"s": NegatedEvidence()}, score="s", image_size=(16, 32)
    )
    seen = []
    result = evaluate_anomalies(
        detector, iter([item, item]), bits=22, num_examples=1, advance=lambda: seen.append(1)
    )
    metrics = result.metrics("b")
    assert metrics["b/s/ap"] == pytest.approx(1)
    assert metrics["b/s/fpr95"] == 0
    assert len(result.examples) == 1
    assert len(seen) == 2
    assert evaluate_known_classes(detector, iter([item]), 2)["miou"] == pytest.approx(1)


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
