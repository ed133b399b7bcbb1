"""One Cityscapes-like training sample: our label map against the official stack of masks.

From a 1024 x 2048 picture and one map of class numbers to a 1024 x 1024 picture with one bool mask
a class. Theirs follows the official order (colour jitter, flip, scale jitter, padding, crop, drop
empty masks) with torchvision's transforms on all masks at once. Both work at the same scales: ours
counts them from the size that just covers, theirs from the one that fits inside; the official
recipe's range is 0.25 to 1 times the original, most of which leaves a rim to be filled. Our blur
and noise are off, which theirs has not got; ours ends in float32 in [0, 1], theirs in uint8, as the
official code does. Reading files is in neither time. One thread, as in a loader's worker.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from benchmarks.timing import Row, compare, console, machine, parser, positive, table
from eomt_exp.contracts import NORMAL, VOID, ImageSet, LabelledImage
from eomt_exp.data.augmentation import Augmentation
from eomt_exp.data.training_set import TrainingSet

CLASSES, WANTED = 19, 5.0
SIZE, CROP = (1024, 2048), 1024  # the crop is square: torchvision's ScaleJitter wants it so
RANGES = ((0.25, 1.0), (0.5, 1.0))  # scales of the original size
PARTS = 10  # a range is walked through by the middles of so many equal parts
JITTER_OFF: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


class Stack(NamedTuple):
    """A training sample of the official code."""

    image: Tensor  # (3, H, W) uint8
    masks: Tensor  # (M, H, W) bool
    labels: Tensor  # (M,) int64


class OneScene(ImageSet):
    """An ImageSet that always shows the same picture, already decoded."""

    num_classes = CLASSES
    class_names: Sequence[str] = [str(index) for index in range(CLASSES)]

    def __init__(self, scene: LabelledImage) -> None:
        self.scene = scene

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> LabelledImage:
        return self.scene


def make_scene(size: tuple[int, int] = SIZE, present: int = 12, seed: int = 0) -> LabelledImage:
    """A patchwork of `present` of the 19 classes with some void, each in a noisy colour."""
    rng = np.random.default_rng(seed)
    choice = np.append(rng.permutation(CLASSES)[:present], VOID).astype(np.uint8)
    patches = choice[rng.integers(len(choice), size=(16, 32))]
    patches.flat[: len(choice)] = choice  # each is there
    labels = cv2.resize(patches, size[::-1], interpolation=cv2.INTER_NEAREST)
    colours = rng.integers(20, 236, size=(256, 3))
    image = colours[labels] + rng.integers(-20, 20, size=(*size, 3))
    anomaly = np.where(labels == VOID, VOID, NORMAL).astype(np.uint8)
    return LabelledImage(image.astype(np.uint8), labels, anomaly, "scene")


def our_set(scene: LabelledImage, scale: float, jitter: bool, crop: int = CROP) -> TrainingSet:
    """Our pipeline at one scale of the original size."""
    relative = (scale * min(scene.labels.shape) / crop,) * 2
    augmentation = Augmentation(
        (crop, crop), relative, blur=0, noise=0, **({} if jitter else JITTER_OFF)
    )
    return TrainingSet(OneScene(scene), augmentation, None, CLASSES, seed=0)


def their_sample(scene: LabelledImage, scale: float, jitter: bool, crop: int = CROP) -> Stack:
    """The official pipeline at one scale of the original size."""
    relative = (scale * max(scene.labels.shape) / crop,) * 2
    image = tv_tensors.Image(torch.from_numpy(scene.image).permute(2, 0, 1))
    truth = _stacked(torch.from_numpy(scene.labels))
    if jitter:
        image = _jittered(image)
    image, truth = v2.RandomHorizontalFlip()(image, truth)
    image, truth = v2.ScaleJitter((crop, crop), relative)(image, truth)
    below, right = (max(0, crop - side) for side in image.shape[1:])
    if below or right:
        image = TF.pad(image, [0, 0, right, below])
        truth["masks"] = TF.pad(truth["masks"], [0, 0, right, below])
    image, truth = v2.RandomCrop(crop)(image, truth)
    kept = truth["masks"].flatten(1).any(dim=1)
    if not kept.any():
        return their_sample(scene, scale, jitter, crop)
    return Stack(image, truth["masks"][kept], truth["labels"][kept])


def _stacked(labels: Tensor) -> dict[str, Tensor]:
    """One bool mask for each class present."""
    classes = torch.bincount(labels.flatten(), minlength=VOID + 1)[:VOID].nonzero().flatten()
    masks = torch.stack([labels == int(index) for index in classes])
    return {"masks": tv_tensors.Mask(masks), "labels": classes}


def _jittered(image: Tensor) -> Tensor:
    """The official colour jitter on uint8: each part half of the time, contrast first or last."""
    contrast_first = _coin()
    image = _perhaps(TF.adjust_brightness, image, 1 - 32 / 255, 1 + 32 / 255)
    if contrast_first:
        image = _perhaps(TF.adjust_contrast, image, 0.5, 1.5)
    image = _perhaps(TF.adjust_saturation, image, 0.5, 1.5)
    image = _perhaps(TF.adjust_hue, image, -0.05, 0.05)
    return image if contrast_first else _perhaps(TF.adjust_contrast, image, 0.5, 1.5)


def _perhaps(
    change: Callable[[Tensor, float], Tensor], image: Tensor, low: float, high: float
) -> Tensor:
    return change(image, float(torch.empty(()).uniform_(low, high))) if _coin() else image


def _coin() -> bool:
    return bool(torch.rand(()) < 0.5)


class Turns:
    """One turn of a side is one sample at each scale; every turn draws the same random numbers.

    Otherwise the fastest turn would be the one with the fewest flips and changes of colour.
    """

    def __init__(
        self, scene: LabelledImage, scales: Sequence[float], jitter: bool, crop: int
    ) -> None:
        self.scene, self.scales, self.jitter, self.crop = scene, scales, jitter, crop
        self.sets = [our_set(scene, scale, jitter, crop) for scale in scales]

    def ours(self) -> None:
        """A sample from each of our sets."""
        for index, images in enumerate(self.sets):
            images[index]

    def theirs(self) -> None:
        """As many official ones."""
        torch.manual_seed(0)
        for scale in self.scales:
            their_sample(self.scene, scale, self.jitter, self.crop)


def middles(low: float, high: float) -> list[float]:
    """The middles of PARTS equal parts; none shrinks by a whole factor, which is a fast path."""
    return [low + (high - low) * (part + 0.5) / PARTS for part in range(PARTS)]


def measure(scene: LabelledImage, repeats: int, crop: int = CROP) -> Iterator[Row]:
    """Each range of scales, with and without colour jitter."""
    for low, high in RANGES:
        for jitter in (True, False):
            turns = Turns(scene, middles(low, high), jitter, crop)
            what = f"scales {low:g} to {high:g}, colour jitter {'on' if jitter else 'off'}"
            yield compare(what, turns.ours, turns.theirs, repeats=repeats, wanted=WANTED)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    read = parser(__doc__, repeats=5, threads=1)
    read.add_argument("--present", type=positive, default=12, help="classes of 19 (default 12)")
    chosen = read.parse_args(arguments)
    if chosen.present > CLASSES:
        read.error(f"--present must be at most {CLASSES}, got {chosen.present}")
    return chosen


def main() -> None:
    """Time both sides and print the table."""
    chosen = options()
    torch.set_num_threads(chosen.threads)
    cv2.setNumThreads(chosen.threads)
    rows = [*measure(make_scene(present=chosen.present), chosen.repeats)]
    print(f"{machine('cpu')}, {chosen.present} classes present")
    title = f"{PARTS} training samples, {SIZE[0]}x{SIZE[1]} to {CROP}x{CROP}"
    console().print(table(title, rows, theirs="stack of masks"))


if __name__ == "__main__":
    main()
