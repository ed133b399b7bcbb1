"""Runs images through a detector into the evaluator's counts, shared among processes.

A benchmark is passed over twice: all pixels first, since SMIYC cuts components at a threshold that
is computed from them. The second pass reads the score maps that the first one left on disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from accelerate.utils import gather_object

from eomt_exp.contracts import VOID, ImageSet, LabelledImage
from eomt_exp.engine.detector import Detection, Detector
from eomt_exp.engine.score_store import ScoreStore
from eomt_exp.evaluator.components import ComponentCounts
from eomt_exp.evaluator.image_counts import ImageCounts
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.evaluator.pixel_arrays import KeyedPixels
from eomt_exp.evaluator.semantic import ConfusionMatrix

Read = Callable[[Sequence[int]], Iterator[LabelledImage]]  # positions -> their images, in order
Write = Callable[[str, np.ndarray], None]  # image name, (H, W) scores -> a file of an export
T = TypeVar("T", PixelCounts, ImageCounts, ComponentCounts)

EXAMPLE_WIDTH = 640  # pixels


class Settings(NamedTuple):
    """Says how a benchmark is measured."""

    scratch: Path  # where score maps lie between the passes
    scratch_bytes: int = 8 << 30
    bits: int = 22
    half: bool = False  # scores rounded to float16
    skip_empty: bool = False  # leave out images without anomaly
    components: tuple[int, int] | None = None  # smallest predicted and true one; None: no metrics
    num_examples: int = 0  # best and as many worst


class Example(NamedTuple):
    """Shows one image and its scores, no wider than 640 pixels."""

    kind: str  # "best" or "worst" of its benchmark by AP, under the main scorer
    name: str
    ap: float
    scorer: str
    image: np.ndarray  # (h, w, 3) uint8 RGB
    anomaly: np.ndarray  # (h, w) uint8: 0 normal, 1 anomaly, VOID
    score: np.ndarray  # (h, w) float32


@dataclass
class Measured:
    """Holds what a benchmark came to, the same in all processes."""

    counts: dict[str, PixelCounts]  # by scorer, as the next two
    images: dict[str, ImageCounts]
    components: dict[str, ComponentCounts] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # without anomaly, where that is a reason


def measure_benchmark(
    detector: Detector,
    read: Read,
    count: int,
    settings: Settings,
    advance: Callable[[], object] = lambda: None,
    exports: dict[str, Sequence[Write]] | None = None,
) -> Measured:
    """Count every scorer on this process's `count` images, and sum up over the processes.

    `exports` are written as the maps come, by scorer.
    """
    with ScoreStore(settings.scratch, settings.scratch_bytes) as store:
        first = _FirstPass(detector, settings, store, exports or {}).run(
            read(range(count)), advance
        )
        found = Measured(
            _merged(first.counts),
            _merged(first.images),
            left_out=sorted(name for part in gather_object([first.left_out]) for name in part),
        )
        second = _SecondPass(detector, settings, store, read, first.names)
        if settings.components is not None:
            thresholds = {n: c.results()["f1_threshold"] for n, c in found.counts.items()}
            found.components = _merged(second.components(thresholds))
        chosen = _best_and_worst(found.images[detector.score], settings.num_examples)
        shards = gather_object([second.examples(chosen)])
        examples = {(e.kind, e.name): e for shard in shards for e in shard}
        found.examples = [examples[kind, name] for kind, name, _ in chosen]
    return found


def measure_known_classes(
    detector: Detector,
    images: Iterator[LabelledImage],
    num_classes: int,
    categories: Sequence[str] | None = None,
    bits: int | None = None,
    half: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> tuple[dict[str, float], dict[str, PixelCounts]]:
    """Measure mIoU and its like of the argmax over the known classes.

    With `bits`, also the score counts of the pixels of known classes, all of them normal: what an
    operating point is set by when no anomaly has been seen.
    """
    matrix = ConfusionMatrix(num_classes, categories=categories)
    counts = {} if bits is None else {name: PixelCounts(bits) for name in detector.scorers}
    for _, item, found in _detected(detector, images, tuple(counts), known=True):
        # A label outside the known classes has no right answer among them.
        labels = np.where(item.labels < num_classes, item.labels, VOID).astype(np.uint8)
        assert found.known is not None
        matrix.update(found.known, labels)
        normal = np.where(labels == VOID, VOID, 0).astype(np.uint8)
        for name, part in counts.items():
            part.update(_rounded(found.scores[name], half), normal)
        advance()
    matrix, *shards = gather_object([matrix])
    for other in shards:
        matrix.merge(other)
    return matrix.results(), _merged(counts)


def shard(images: ImageSet, rank: int, world: int) -> list[int]:
    """Return every world-th position from rank on: together the processes see each image once."""
    return list(range(rank, len(images), world))


class _FirstPass:
    """Counts the pixels of each image, and keeps its score maps for the second pass."""

    def __init__(
        self,
        detector: Detector,
        settings: Settings,
        store: ScoreStore,
        exports: dict[str, Sequence[Write]],
    ) -> None:
        self.detector, self.settings, self.store, self.exports = detector, settings, store, exports
        self.counts = {name: PixelCounts(settings.bits) for name in detector.scorers}
        self.images = {name: ImageCounts() for name in detector.scorers}
        self.left_out: list[str] = []
        self.names: dict[int, str] = {}  # position -> name, of the images that count

    def run(self, items: Iterator[LabelledImage], advance: Callable[[], object]) -> _FirstPass:
        keep = self._has_anomaly if self.settings.skip_empty else None
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for position, item, found in _detected(self.detector, items, keep=keep):
                maps = {n: _rounded(m, self.settings.half) for n, m in found.scores.items()}
                list(pool.map(lambda name: self._count(name, maps[name], item), maps))  # noqa: B023
                self.store.put(position, {**self._to_keep(maps), "/anomaly": item.anomaly})
                self.names[position] = item.name
                advance()
        return self

    def _to_keep(self, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        main = self.detector.score
        return maps if self.settings.components is not None else {main: maps[main]}

    def _count(self, scorer: str, scores: np.ndarray, item: LabelledImage) -> None:
        pixels = KeyedPixels(scores, item.anomaly)
        self.counts[scorer].add(pixels)
        self.images[scorer].add(item.name, pixels)
        for write in self.exports.get(scorer, ()):
            write(item.name, scores)

    def _has_anomaly(self, item: LabelledImage) -> bool:
        found = bool((item.anomaly == 1).any())
        if not found:
            self.left_out.append(item.name)
        return found


class _SecondPass:
    """Reads the score maps from disk, or computes them again where they did not fit."""

    def __init__(
        self,
        detector: Detector,
        settings: Settings,
        store: ScoreStore,
        read: Read,
        names: dict[int, str],
    ) -> None:
        self.detector, self.settings, self.store = detector, settings, store
        self.read, self.names = read, names

    def components(self, thresholds: dict[str, float]) -> dict[str, ComponentCounts]:
        assert self.settings.components is not None
        smallest = self.settings.components
        counts = {n: ComponentCounts(t, *smallest) for n, t in thresholds.items() if t == t}
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for maps in self._maps(list(self.names)):
                list(pool.map(lambda n: counts[n].update(maps[n], maps["/anomaly"]), counts))  # noqa: B023
        return counts

    def examples(self, chosen: Sequence[tuple[str, str, float]]) -> list[Example]:
        """Return those of the chosen images that this process has measured."""
        positions = {name: position for position, name in self.names.items()}
        mine = [entry for entry in chosen if entry[1] in positions]
        order = [positions[name] for _, name, _ in mine]
        main = self.detector.score
        pairs = zip(self.read(order), self._maps(order), strict=True)
        return [
            Example(kind, name, ap, main, *_downsampled(item, maps[main]))
            for (kind, name, ap), (item, maps) in zip(mine, pairs, strict=True)
        ]

    def _maps(self, positions: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        not_kept = [position for position in positions if not self.store.has(position)]
        again = _detected(self.detector, self.read(not_kept)) if not_kept else iter(())
        for position in positions:
            if self.store.has(position):
                yield self.store.get(position)
            else:
                _, item, found = next(again)
                maps = {n: _rounded(m, self.settings.half) for n, m in found.scores.items()}
                yield {**maps, "/anomaly": item.anomaly}


def _detected(
    detector: Detector,
    items: Iterator[LabelledImage],
    only: Sequence[str] | None = None,
    known: bool = False,
    keep: Callable[[LabelledImage], bool] | None = None,
) -> Iterator[tuple[int, LabelledImage, Detection]]:
    """Yield (position, image, detection) of each image that `keep` does not refuse."""
    waiting: deque[tuple[int, LabelledImage]] = deque()

    def images() -> Iterator[np.ndarray]:
        for position, item in enumerate(items):
            if keep is None or keep(item):
                waiting.append((position, item))
                yield item.image

    for found in detector.stream(images(), only=only, known=known):
        position, item = waiting.popleft()
        yield position, item, found


def _rounded(scores: np.ndarray, half: bool) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float16 is inf, which is a score
        return scores.astype(np.float16).astype(np.float32) if half else scores


def _merged(counts: dict[str, T]) -> dict[str, T]:
    """Sum up over the processes."""
    total, *shards = gather_object([counts])
    for other in shards:
        for name in total:
            total[name].merge(other[name])
    return total


def _best_and_worst(images: ImageCounts, number: int) -> list[tuple[str, str, float]]:
    """Choose the images shown, none twice; return (kind, name, AP) of each."""
    found = zip(images.names, images.metrics()["ap"].tolist(), strict=True)
    ranked = sorted((ap, name) for name, ap in found if ap == ap)
    worst = ranked[: min(number, len(ranked) // 2)]
    best = ranked[len(worst) :][::-1][:number]
    return [("best", name, ap) for ap, name in best] + [("worst", n, ap) for ap, n in worst]


def _downsampled(
    item: LabelledImage, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image averaged over blocks, and every n-th pixel of its truth and score."""
    step = -(-item.image.shape[1] // EXAMPLE_WIDTH)
    height, width = (n // step * step for n in item.image.shape[:2])
    blocks = item.image[:height, :width].reshape(height // step, step, width // step, step, 3)
    image = blocks.mean(axis=(1, 3)).astype(np.uint8)
    return image, item.anomaly[:height:step, :width:step], score[:height:step, :width:step]
