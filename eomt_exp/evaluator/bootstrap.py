"""Tell how certain the numbers of a data set are: by a bootstrap over its images, and over seeds.

It is a percentile bootstrap (Efron, Annals of Statistics 1979). Images are drawn, with all their
pixels: drawn pixels would call a result certain that rests on three lucky images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eomt_exp.evaluator.image_counts import ImageCounts
from eomt_exp.evaluator.ranking import Floats, Ints

UNDEFINED = (float("nan"), float("nan"))


def resampling_weights(images: int, resamples: int, seed: int = 0) -> Ints:
    """Return how often each resample draws each image, with replacement, (resamples, images)."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}; 1000 is the default.")
    drawn = np.random.default_rng(seed).integers(0, images, (resamples, images))
    offsets = np.arange(resamples)[:, None] * images
    return np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape)


def intervals(
    counts: ImageCounts,
    metrics: Sequence[str] = (),
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return (low, high) of each metric of pooled() over all pixels, had other images been taken.

    Resamples without an anomaly or without a normal pixel do not count; NaN where those are more
    than half of all, or there is one image or none. ValueError for a metric without intervals.
    """
    _check_level(level)
    images = len(counts.names)
    if images < 2:
        # pooled() refuses unknown metrics
        return dict.fromkeys(counts.pooled(np.ones(images), metrics), UNDEFINED)
    drawn = counts.pooled(resampling_weights(images, resamples, seed), metrics)
    return {metric: _percentiles(values, level) for metric, values in drawn.items()}


def paired(
    a: ImageCounts,
    b: ImageCounts,
    metric: str = "ap",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float, float]:
    """Compare a - b on the same images: difference, its interval's ends, and a two-sided p-value.

    Both sides see the same draws, so that what makes an image hard for both cancels out. p is twice
    the smaller of (1 + resamples with a difference <= 0) / (1 + resamples) and the same of >= 0,
    at most 1. NaN as in intervals(). Raises ValueError unless both hold the same names with the
    same numbers of anomalous and normal pixels.
    """
    _check_level(level)
    _check_same_images(a, b)
    images = len(a.names)
    everything = np.ones(images)
    difference = float(
        a.pooled(everything, [metric])[metric] - b.pooled(everything, [metric])[metric]
    )
    if images < 2:
        return difference, *UNDEFINED, float("nan")
    weights = resampling_weights(images, resamples, seed)
    drawn = a.pooled(weights, [metric])[metric] - b.pooled(weights, [metric])[metric]
    low, high = _percentiles(drawn, level)
    return difference, low, high, _p_value(drawn) if low <= high else float("nan")


def over_seeds(values: Sequence[float]) -> tuple[float, float, int]:
    """Return mean, sample standard deviation (NaN of fewer than two values) and their number."""
    array = np.asarray(values, np.float64)
    mean = float(array.mean()) if array.size else float("nan")
    return mean, float(array.std(ddof=1)) if array.size > 1 else float("nan"), array.size


def _percentiles(values: Floats, level: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values):
        return UNDEFINED
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _p_value(differences: Floats) -> float:
    defined = differences[~np.isnan(differences)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(2 * (1 + tail) / (1 + len(defined)), 1.0))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}; 0.95 is the default.")


def _check_same_images(a: ImageCounts, b: ImageCounts) -> None:
    if a.names != b.names:
        apart = sorted(set(a.names) ^ set(b.names))
        example = f"{len(apart)} are in one only, as {apart[0]!r}"
        raise ValueError(f"both must hold the same images, but {example}; measure both on all.")
    left, right = a.metrics(), b.metrics()
    for kind in ("positives", "negatives"):
        if (unequal := np.flatnonzero(left[kind] != right[kind])).size:
            first = unequal[0]
            pixels = f"{left[kind][first]} and {right[kind][first]} {kind}"
            fix = "measure both with the same labels, at one size"
            raise ValueError(f"{a.names[first]!r} has {pixels}, which must agree; {fix}.")
