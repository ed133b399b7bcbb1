"""Windows, detector and states: the engine's arithmetic against worked values.

The optimiser, its schedule and the annealing are judged in test_parity_recipe.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from eomt_exp.contracts import CheckpointError, MaskOutput, Model
from eomt_exp.engine.checkpoint import load_state
from eomt_exp.engine.detector import Detector, window_boxes
from eomt_exp.engine.evaluation import shard
from tests.bright_anomalies import BrightnessNet, NegatedEvidence, NegatedMask

SCORERS = {"s": NegatedEvidence(), "q": NegatedMask()}


def detector(net: nn.Module | None = None, **changes) -> Detector:
    settings = {"model": net or BrightnessNet(False), "scorers": SCORERS, "score": "s"}
    return Detector(**{**settings, "image_size": (16, 32), **changes})


def test_windows_cover_with_even_overlap() -> None:
    for size, boxes in {
        (10, 20): [(0, 0)],
        (10, 40): [(0, 0), (0, 20)],
        (10, 45): [(0, 0), (0, 12), (0, 25)],
        (15, 20): [(0, 0), (5, 0)],
    }.items():
        assert window_boxes(size, (10, 20)) == boxes


@pytest.mark.parametrize("as_masks", [True, False])
@pytest.mark.parametrize("shape", [(16, 24), (40, 200), (90, 30)])
def test_detector_scores_in_the_images_own_size(as_masks: bool, shape: tuple[int, int]) -> None:
    ramp = np.linspace(20, 220, shape[1]).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (*shape, 3))
    maps, known = detector(BrightnessNet(as_masks), batch_size=2).scores(image)
    assert known.shape == shape
    assert (known == 0).all()
    for score in maps.values():
        assert (score.shape, score.dtype) == (shape, np.float32)
        # Windows leave no seam: the score follows the brightness from end to end.
        np.testing.assert_allclose(score[0], ramp / 255 - 1, atol=0.03)


def test_windows_of_neighbouring_images_share_a_pass_and_stay_apart() -> None:
    net = BrightnessNet(True)
    passes = []
    net.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    rng = np.random.default_rng(0)
    shapes = [(16, 90), (16, 32), (60, 32), (20, 50), (16, 32)]  # 3, 1, 4, 2 and 1 windows
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    together = list(detector(net, batch_size=4).stream(images))
    assert passes == [4, 4, 3]
    for image, found in zip(images, together, strict=True):
        (alone,) = detector(net, batch_size=100).stream([image])
        np.testing.assert_array_equal(found.known, alone.known)
        for name in SCORERS:
            np.testing.assert_allclose(found.scores[name], alone.scores[name], atol=1e-6)


def test_an_image_is_handed_out_as_soon_as_it_is_complete() -> None:
    images = iter(np.zeros((3, 16, 32, 3), np.uint8))
    next(detector(batch_size=1).stream(images))
    assert len(list(images)) == 2  # one was asked for


class BlockMasks(Model):
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
    found = {}
    for resolution in ("input", "mask"):
        at_resolution = detector(BlockMasks(), image_size=(16, 64), resolution=resolution)
        (found[resolution],) = at_resolution.stream([np.zeros((16, 64, 3), np.uint8)])
    seam = np.zeros(64, bool)
    seam[32 - 4 : 32 + 4] = True
    for name in SCORERS:
        exact, fast = (found[r].scores[name] for r in ("input", "mask"))
        np.testing.assert_allclose(fast[:, ~seam], exact[:, ~seam], atol=1e-3)
        assert not np.allclose(fast[:, seam], exact[:, seam], atol=1e-2)
    assert (found["input"].known == found["mask"].known).mean() > 0.98


def test_detector_refuses_what_is_no_image_and_no_scorer() -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        detector()(np.zeros((8, 8, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="score=t must be one of"):
        detector(score="t")


def test_shards_are_a_partition() -> None:
    assert sorted(i for rank in range(3) for i in shard(range(7), rank, 3)) == [*range(7)]


def test_a_state_that_asks_to_be_unpickled_is_refused(tmp_path) -> None:
    for name in ("progress.json", "random_states_0.pkl", "custom_checkpoint_0.pkl"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(CheckpointError, match=r"custom_checkpoint_0\.pkl"):
        load_state(SimpleNamespace(process_index=0), tmp_path)
    (tmp_path / "custom_checkpoint_0.pkl").unlink()
    with pytest.raises(CheckpointError, match=r"random_states_1\.pkl"):
        load_state(SimpleNamespace(process_index=1), tmp_path)
