"""Runs images through a detector into the evaluator's counts, shared among processes.

A benchmark's scores are passed over twice: all pixels first, since SMIYC cuts components at a
threshold that is computed from them. The second pass takes the maps that the first one kept.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from accelerate.utils import gather_object

from eomt_exp.contracts import VOID, ImageSet, LabelledImage, UserError
from eomt_exp.engine.detector import AnyDetector, Detection
from eomt_exp.engine.score_store import ScoreStore
from eomt_exp.evaluator.components import ComponentCounts
from eomt_exp.evaluator.image_counts import ImageCounts
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.evaluator.pixel_arrays import KeyedPixels
from eomt_exp.evaluator.semantic import ConfusionMatrix
from eomt_exp.evaluator.tool_curve import ToolCounts

Read = Callable[[Sequence[int]], Iterator[LabelledImage]]  # positions -> their images, in order
Write = Callable[[str, np.ndarray], None]  # image name, (H, W) scores -> a file of an export
T = TypeVar("T", PixelCounts, ImageCounts, ComponentCounts)

Shown = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, anomaly and score of an Example

EXAMPLE_WIDTH = 640  # pixels


class Settings(NamedTuple):
    """Says how a benchmark is measured."""

    scratch: Path  # where score maps lie between the passes that do not stay in memory
    scratch_bytes: int = 8 << 30
    bits: int = 22
    half: bool = False  # scores rounded to float16
    tool_curve: bool = False  # that of SegmentMeIfYouCan's tool instead of the exact one
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
    detector: AnyDetector,
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
        first = _FirstPass(detector, settings, store, exports or {})
        first.run(read(range(count)), advance)
        found = Measured(
            _merged(first.counts),
            _merged(first.images),
            left_out=sorted(name for part in gather_object([first.left_out]) for name in part),
        )
        if settings.components is not None:
            with ThreadPoolExecutor() as pool:
                at_f1 = pool.map(lambda counts: counts.f1_threshold(), found.counts.values())
                thresholds = dict(zip(found.counts, at_f1, strict=True))
            found.components = _merged(_components(first, read, thresholds))
    shown = {name: kept for part in gather_object([first.shown]) for name, kept in part.items()}
    chosen = _best_and_worst(found.images[detector.score], settings.num_examples)
    found.examples = [
        Example(kind, name, ap, detector.score, *shown[ap, name]) for kind, name, ap in chosen
    ]
    return found


def measure_known_classes(
    detector: AnyDetector,
    images: Iterator[LabelledImage],
    num_classes: int,
    categories: Sequence[str] | None = None,
    bits: int | None = None,
    half: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> tuple[dict[str, float], dict[str, PixelCounts]]:
    """Measure mIoU and its like of the argmax over the known classes; {} of what finds none.

    With `bits`, also the score counts of the pixels of known classes, all of them normal: what an
    operating point is set by when no anomaly has been seen.
    """
    matrix = ConfusionMatrix(num_classes, categories=categories)
    counts = {} if bits is None else {name: PixelCounts(bits) for name in detector.scorers}
    finds_classes = detector.finds_classes
    for _, item, found in _detected(detector, images, tuple(counts), known=finds_classes):
        # A label outside the known classes has no right answer among them.
        labels = np.where(item.labels < num_classes, item.labels, VOID).astype(np.uint8)
        if found.known is not None:
            matrix.update(found.known, labels)
        normal = np.where(labels == VOID, VOID, 0).astype(np.uint8)
        for name, part in counts.items():
            part.update(_rounded(found.scores[name], half), normal)
        advance()
    matrix, *shards = gather_object([matrix])
    for other in shards:
        matrix.merge(other)
    return matrix.results() if finds_classes else {}, _merged(counts)


def shard(images: ImageSet, rank: int, world: int) -> list[int]:
    """Return every world-th position from rank on: together the processes see each image once."""
    return list(range(rank, len(images), world))


class _FirstPass:
    """Counts the pixels of each image, and keeps its score maps where components need them."""

    def __init__(
        self,
        detector: AnyDetector,
        settings: Settings,
        store: ScoreStore,
        exports: dict[str, Sequence[Write]],
    ) -> None:
        self.detector, self.settings, self.store, self.exports = detector, settings, store, exports
        kind = ToolCounts if settings.tool_curve else PixelCounts
        self.counts = {name: kind(settings.bits) for name in detector.scorers}
        self.images = {name: ImageCounts() for name in detector.scorers}
        self.left_out: list[str] = []
        self.positions: list[int] = []  # of the images that count
        self.shown: dict[tuple[float, str], Shown] = {}  # (AP, name) -> those that may be shown

    def run(self, items: Iterator[LabelledImage], advance: Callable[[], object]) -> None:
        keep = self._has_anomaly if self.settings.skip_empty else None
        scored = _scored(self.detector, items, self.settings.half, keep, advance)
        # Counting keeps to one core; more threads would wait for each other, and for the detector.
        _in_threads(self._count, scored, threads=1, most=self.detector.batch_size)

    def _count(self, position: int, item: LabelledImage, maps: dict[str, np.ndarray]) -> None:
        for scorer, scores in maps.items():
            pixels = KeyedPixels(scores, item.anomaly)
            try:
                self.counts[scorer].add(pixels)
            except ValueError as error:  # infinite scores have no place on the tool's curve
                raise UserError(f"{scorer} on {item.name}: {error}") from error
            self.images[scorer].add(item.name, pixels)
            for write in self.exports.get(scorer, ()):
                write(item.name, scores)
        if self.settings.components is not None:
            self.store.put(position, [*maps.values()], item.anomaly)
        self._show(item, maps[self.detector.score])
        self.positions.append(position)

    def _has_anomaly(self, item: LabelledImage) -> bool:
        found = bool((item.anomaly == 1).any())
        if not found:
            self.left_out.append(item.name)
        return found

    def _show(self, item: LabelledImage, scores: np.ndarray) -> None:
        """Keep the image while it is among the best or the worst of this process."""
        ap = self.images[self.detector.score].ap(item.name)
        number = self.settings.num_examples
        if not number or ap != ap:
            return
        ranked = sorted([*self.shown, (ap, item.name)])
        outer = ranked if len(ranked) <= 2 * number else ranked[:number] + ranked[-number:]
        if (ap, item.name) in outer:
            self.shown[ap, item.name] = _downsampled(item, scores)
            self.shown = {key: self.shown[key] for key in outer}


def _components(
    first: _FirstPass, read: Read, thresholds: dict[str, float]
) -> dict[str, ComponentCounts]:
    """Count components on the kept score maps; where they did not fit, images are scored again."""
    assert first.settings.components is not None
    smallest = first.settings.components
    counts = {n: ComponentCounts(t, *smallest) for n, t in thresholds.items() if t == t}
    not_kept = [position for position in first.positions if not first.store.has(position)]

    def maps() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        for position in first.positions:
            if first.store.has(position):
                scores, anomaly = first.store.get(position)
                yield dict(zip(first.detector.scorers, scores, strict=True)), anomaly
        if not_kept:
            again = _scored(first.detector, read(not_kept), first.settings.half)
            yield from ((scores, item.anomaly) for _, item, scores in again)

    def count(scores: dict[str, np.ndarray], anomaly: np.ndarray) -> None:
        for name, part in counts.items():
            part.update(scores[name], anomaly)

    threads = os.cpu_count() or 1
    _in_threads(count, maps(), threads, most=2 * threads)
    return counts


def _in_threads(
    work: Callable[..., None], items: Iterator[tuple[Any, ...]], threads: int, most: int
) -> None:
    """Do the work on each item, while at most so many wait with what they hold in memory."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, *item))
            if len(waiting) > most:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def _scored(
    detector: AnyDetector,
    items: Iterator[LabelledImage],
    half: bool,
    keep: Callable[[LabelledImage], bool] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Iterator[tuple[int, LabelledImage, dict[str, np.ndarray]]]:
    """Yield (position, image, score maps by scorer) of each image that `keep` does not refuse."""
    for position, item, found in _detected(detector, items, keep=keep):
        yield position, item, {name: _rounded(m, half) for name, m in found.scores.items()}
        advance()


def _detected(
    detector: AnyDetector,
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


def _downsampled(item: LabelledImage, score: np.ndarray) -> Shown:
    """Return the image averaged over blocks, and every n-th pixel of its truth and score."""
    step = -(-item.image.shape[1] // EXAMPLE_WIDTH)
    height, width = (n // step * step for n in item.image.shape[:2])
    steps = [slice(start, None, step) for start in range(step)]
    image, inside = item.image[:height, :width], (slice(0, height, step), slice(0, width, step))
    total = sum(image[rows, columns].astype(np.uint32) for rows in steps for columns in steps)
    return (total // step**2).astype(np.uint8), item.anomaly[inside].copy(), score[inside].copy()
