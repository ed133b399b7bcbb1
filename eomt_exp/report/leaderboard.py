"""Holds results as people read them: methods on benchmarks, and what belongs to each number.

A *method* is a model with a scorer. Everything here is plain values and arrays, so that tables, the
report, MLflow and the files of finished cells take the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from eomt_exp.engine.evaluation import Example
from eomt_exp.evaluator.image_counts import ImageCounts
from eomt_exp.evaluator.ranking import PixelCurves


class Histogram(NamedTuple):
    """Shows how the scores of either kind of pixel are spread."""

    edges: np.ndarray  # (N + 1,) float64, rising
    normal: np.ndarray  # (N,) share of the normal pixels in each bin; sums to 1, or all 0
    anomaly: np.ndarray  # (N,) the same of the anomalous ones


class ImageRow(NamedTuple):
    """Describes one image."""

    name: str
    anomaly_share: float  # of the pixels that count
    metrics: dict[str, float]  # "ap", …; NaN where it has no anomaly or nothing else


def image_rows(images: ImageCounts) -> list[ImageRow]:
    """Describe every image that was counted."""
    found = {key: values.tolist() for key, values in images.metrics().items()}
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    pixels = [(row.pop("positives"), row.pop("negatives")) for row in rows]
    shares = [positives / max(positives + negatives, 1) for positives, negatives in pixels]
    return [ImageRow(*row) for row in zip(images.names, shares, rows, strict=True)]


class SizeRow(NamedTuple):
    """Sums up true components whose size lies in a range of pixels."""

    low: int  # pixels
    high: int | None  # exclusive; None: no upper end
    components: int
    found: float  # share of them with sIoU of at least 0.25
    siou: float  # mean over them


class TnrRow(NamedTuple):
    """Says what it costs to find this share of the anomaly, at the first threshold that does."""

    tpr: float
    tnr: float  # share of the normal pixels below it
    threshold: float


@dataclass
class Result:
    """Holds the results of one method on one benchmark."""

    model: str  # "eim_oe-0": experiment and seed, or the name of a weight file
    scorer: str
    benchmark: str
    metrics: dict[str, float]  # "ap", "fpr95", "siou", …; NaN where undefined
    intervals: dict[str, tuple[float, float]]  # "ap" -> (low, high), 95 % over images
    curves: PixelCurves
    histogram: Histogram
    images: list[ImageRow]
    sizes: list[SizeRow]  # empty where components were not measured
    tnr: list[TnrRow] = field(default_factory=list)  # empty where undefined

    @property
    def method(self) -> str:
        """Return what tables call it when there are several models."""
        return f"{self.model} {self.scorer}"


class Comparison(NamedTuple):
    """Compares two methods on the same images by paired bootstrap over images."""

    benchmark: str
    metric: str  # "ap"
    first: str  # method
    second: str
    difference: float  # first - second
    low: float  # 95 % interval of the difference
    high: float
    p_value: float  # two-sided


class OverSeeds(NamedTuple):
    """Sums up one experiment and scorer over several seeds."""

    experiment: str
    scorer: str
    benchmark: str
    metric: str
    mean: float
    std: float  # sample standard deviation
    seeds: tuple[int, ...]


class PublishedResult(NamedTuple):
    """Holds published numbers, to be shown beside ours."""

    benchmark: str
    method: str  # as its authors call it, with backbone where known
    values: dict[str, float]  # "ap" -> 0.1242, as fractions
    source: str  # where it is published
    protocol: str  # what differs from ours, in a few words; "" where unknown


@dataclass
class Leaderboard:
    """Holds all that one evaluation found."""

    title: str
    results: list[Result]
    known_classes: dict[str, dict[str, float]]  # model -> "miou", "macc", "aacc", "iou_car", …
    examples: dict[tuple[str, str], list[Example]]  # (model, benchmark) -> the best, the worst
    comparisons: list[Comparison] = field(default_factory=list)
    over_seeds: list[OverSeeds] = field(default_factory=list)
    published: list[PublishedResult] = field(default_factory=list)
    manifest: dict[str, object] = field(default_factory=dict)  # protocol, weights, data; nested
    warnings: list[str] = field(default_factory=list)  # what makes numbers untrustworthy, in red
    notes: list[str] = field(default_factory=list)  # what a reader should know, without alarm

    @property
    def protocol(self) -> str:
        """Return the protocol's name; "" where the manifest does not say."""
        found = self.manifest.get("protocol")
        return str(found.get("name", "")) if isinstance(found, dict) else ""

    @property
    def benchmarks(self) -> list[str]:
        """List them in the order they were measured."""
        return list(dict.fromkeys(result.benchmark for result in self.results))

    @property
    def models(self) -> list[str]:
        """List them in the order they were measured."""
        return list(dict.fromkeys(result.model for result in self.results))

    @property
    def methods(self) -> list[str]:
        """List their names in the order they were measured."""
        return list(dict.fromkeys(self.name(result) for result in self.results))

    def name(self, result: Result) -> str:
        """Return what tables call its method: the scorer alone where there is but one model."""
        return result.method if len(self.models) > 1 else result.scorer

    def on(self, benchmark: str) -> list[Result]:
        """Return the results on one benchmark."""
        return [result for result in self.results if result.benchmark == benchmark]

    def flat_metrics(self) -> dict[str, float]:
        """Key numbers by `<benchmark>/<scorer>/<metric>`.

        Where there are several models, `<benchmark>/<model>.<scorer>/<metric>`.
        """
        flat = {
            f"{self._key(r)}/{k}": value for r in self.results for k, value in r.metrics.items()
        }
        known = {
            f"val/{name}" if self._is_alone else f"{model}/val/{name}": value
            for model, found in self.known_classes.items()
            for name, value in found.items()
        }
        return flat | known

    def flat_intervals(self) -> dict[str, tuple[float, float]]:
        """Return intervals by the keys of flat_metrics."""
        return {
            f"{self._key(r)}/{k}": pair for r in self.results for k, pair in r.intervals.items()
        }

    @property
    def _is_alone(self) -> bool:
        return len(set(self.models) | set(self.known_classes)) <= 1

    def _key(self, result: Result) -> str:
        method = result.scorer if self._is_alone else f"{result.model}.{result.scorer}"
        return f"{result.benchmark}/{method}"
