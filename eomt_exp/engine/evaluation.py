"""Images through a detector into the evaluator's counts, shared among processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from accelerate.utils import gather_object

from eomt_exp.contracts import VOID, ImageSet, LabelledImage, OutlierPool
from eomt_exp.engine.detector import Detector
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.evaluator.semantic import ConfusionMatrix


class Example(NamedTuple):
    """One image for the figures."""

    image: np.ndarray  # (H, W, 3) uint8
    anomaly: np.ndarray  # (H, W) uint8
    score: np.ndarray  # (H, W) float32
    name: str


class BenchmarkResult(NamedTuple):
    """Counts per scorer, and some images to look at."""

    counts: dict[str, PixelCounts]
    examples: list[Example]

    def metrics(self, benchmark: str) -> dict[str, float]:
        """`<benchmark>/<scorer>/<metric>` -> value; undefined ones are NaN."""
        return {
            f"{benchmark}/{scorer}/{metric}": value
            for scorer, counts in self.counts.items()
            for metric, value in counts.results().items()
        }


def evaluate_anomalies(
    detector: Detector,
    images: Iterator[LabelledImage],
    *,
    bits: int,
    num_examples: int,
    advance: Callable[[], None],
) -> BenchmarkResult:
    """Every scorer on every image of this process; counts are summed over all processes."""
    counts = {name: PixelCounts(bits) for name in detector.scorers}
    examples: list[Example] = []
    for item in images:
        maps, _ = detector.scores(item.image)
        for name, score in maps.items():
            counts[name].update(score, item.anomaly)
        if len(examples) < num_examples and (item.anomaly == 1).any():
            examples.append(Example(item.image, item.anomaly, maps[detector.score], item.name))
        advance()
    counts, *shards = gather_object([counts])
    for other in shards:
        for name in counts:
            counts[name].merge(other[name])
    return BenchmarkResult(counts, examples)


def evaluate_known_classes(
    detector: Detector, images: Iterator[LabelledImage], num_classes: int
) -> dict[str, float]:
    """mIoU, mAcc, aAcc and IoU per class of the argmax over the known classes."""
    matrix = ConfusionMatrix(num_classes)
    for item in images:
        known = detector.scores(item.image, only=())[1]
        # A label outside the known classes has no right answer among them.
        labels = np.where(item.labels < num_classes, item.labels, VOID).astype(np.uint8)
        matrix.update(known, labels)
    matrix, *shards = gather_object([matrix])
    for other in shards:
        matrix.merge(other)
    return matrix.results()


def shard(images: ImageSet, rank: int, world: int) -> list[int]:
    """Every world-th image from rank on: together the processes see each image once."""
    return list(range(rank, len(images), world))


def verify(images: ImageSet | OutlierPool) -> None:
    """Read every item of a set that has files, so that a broken one is found before training.

    Raises DataError naming the first one. Sets that draw have nothing that can break.
    """
    if not getattr(images, "reads_files", False):
        return
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(images.__getitem__, range(len(images))):
            pass
