"""Windows and their merging against transformers' processor, up to whole images through both.

Two differences are known: transformers resizes whole grey levels and cuts sizes off where the
original rounds them. Ours resizes in float and rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers_oracle import CLASSES, QUERIES, SIZE, ours_of, random_eomt

from eomt_exp.contracts import MaskOutput, Model, PixelOutput
from eomt_exp.engine.detector import Detector, window_boxes

AS_THEY_ARE = [(64, 64), (64, 128), (64, 150), (150, 64), (64, 333)]  # height, width
RESIZED = [(96, 225), (225, 96), (32, 75), (128, 128)]  # by 2/3, 2/3, 2 and 1/2: nothing to round
WINDOW = {"shortest_edge": SIZE, "longest_edge": None}
slow = pytest.mark.slow  # transformers alone takes seconds to import


@dataclass
class Evidence:
    """A scorer that hands out the evidence for one class as it is."""

    index: int
    level: Literal["semantic", "query"] = "semantic"
    size: tuple[int, ...] = ()  # the size in which windows were merged

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w)."""
        scores = output.semantic_scores()
        self.size = tuple(scores.shape[-2:])
        return scores[:, self.index]


class Canned(Model):
    """Predicts for each window what was drawn for it beforehand, and keeps the windows."""

    def __init__(self, masks: Tensor, classes: Tensor) -> None:
        super().__init__()
        self.masks, self.classes = nn.Parameter(masks), nn.Parameter(classes)
        self.windows: list[Tensor] = []

    def forward(self, crops: Tensor) -> MaskOutput:
        """(B, 3, H, W) -> the next B outputs."""
        chosen = slice(len(self.windows), len(self.windows) + len(crops))
        self.windows += list(crops)
        masks, classes = self.masks[chosen], self.classes[chosen]
        return MaskOutput(masks, classes, classes, None, CLASSES)


def detector(model: nn.Module) -> Detector:
    scorers = {str(index): Evidence(index) for index in range(CLASSES)}
    return Detector(model=model, scorers=scorers, score="0", image_size=(SIZE, SIZE), batch_size=2)


def evidence(model: nn.Module, image: np.ndarray) -> tuple[Tensor, Tensor]:
    """(K, H, W) class scores and (H, W) known classes, as our detector has them."""
    maps, known = detector(model).scores(image)
    return torch.stack([torch.from_numpy(m) for m in maps.values()]), torch.from_numpy(known)


def processor() -> Any:
    library = pytest.importorskip("transformers.models.eomt.image_processing_eomt")
    return library.EomtImageProcessor(size=WINDOW, do_split_image=True)


def merged(masks: Tensor, classes: Tensor, offsets: Any, size: tuple[int, int]) -> Any:
    """The processor's scores and classes for the windows of one image."""
    outputs = SimpleNamespace(
        masks_queries_logits=masks, class_queries_logits=classes, patch_offsets=offsets
    )
    return processor().post_process_semantic_segmentation(
        outputs, size=WINDOW, target_sizes=[size], return_segmentation_scores=True
    )[0]


def some_image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@slow
@pytest.mark.parametrize("side", [64, 640, 1024])
def test_windows_lie_where_the_processor_cuts(side: int) -> None:
    size, split = SimpleNamespace(shortest_edge=side), processor()._split_image
    for length in (*range(side, side + 80), *range(side + 80, 6 * side, 13)):
        for height, width in ((side, length), (length, side)):
            picture = torch.zeros(1, 1, 1, 1).expand(1, 1, height, width)
            _, cuts = split(picture, size, [0])
            corners = [(start, 0) if height > width else (0, start) for _, start, _ in cuts]
            assert window_boxes((height, width), (side, side)) == corners, (height, width)


@slow
@pytest.mark.parametrize("size", AS_THEY_ARE + RESIZED, ids=str)
def test_windows_show_the_same_pixels(size: tuple[int, int]) -> None:
    given = processor()(images=some_image(size), do_normalize=False, return_tensors="pt")
    model = Canned(*canned_logits(9))
    evidence(model, some_image(size))
    assert len(model.windows) == len(given["pixel_values"])
    worst = (torch.stack(model.windows) - given["pixel_values"]).abs().max()
    assert worst <= (1e-6 if size in AS_THEY_ARE else 1 / 255 + 1e-6)


def canned_logits(count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(count)
    masks = 4 * torch.randn(count, QUERIES, SIZE // 4, SIZE // 4)
    return masks, 2 * torch.randn(count, QUERIES, CLASSES + 1)


@slow
@pytest.mark.parametrize("size", AS_THEY_ARE + RESIZED, ids=str)
def test_given_logits_are_merged_to_the_same_class_scores(size: tuple[int, int]) -> None:
    offsets = processor()(images=some_image(size), return_tensors="pt")["patch_offsets"]
    masks, classes = canned_logits(len(offsets))
    theirs = merged(masks, classes, offsets, size)
    scores, known = evidence(Canned(masks, classes), some_image(size))
    torch.testing.assert_close(scores, theirs.segmentation_scores, rtol=1e-6, atol=1e-6)
    assert (known == theirs.segmentation).double().mean() > 0.9999  # ties may fall either way


@slow
@pytest.mark.parametrize("size", [(64, 150), (150, 64)], ids=str)
@torch.no_grad()
def test_whole_images_through_both_programs(size: tuple[int, int]) -> None:
    given = processor()(images=some_image(size), return_tensors="pt")
    oracle = random_eomt().eval()
    output = oracle(given["pixel_values"])
    theirs = merged(
        output.masks_queries_logits, output.class_queries_logits, given["patch_offsets"], size
    )
    scores, known = evidence(ours_of(oracle), some_image(size))
    worst = (scores - theirs.segmentation_scores).abs().max() / theirs.segmentation_scores.max()
    assert worst <= 1e-5
    assert (known == theirs.segmentation).double().mean() > 0.999


def test_working_sizes_are_rounded_as_in_the_original() -> None:
    found = detector(Canned(*canned_logits(9)))
    found.scores(some_image((100, 151)))
    assert found.scorers["0"].size == (64, 97)  # 151 * 0.64 = 96.64; transformers takes 96
