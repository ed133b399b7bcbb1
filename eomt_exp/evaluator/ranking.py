"""Measure a ranking: pixels in groups of one score, or one bin of scores, highest first.

Metrics of one number take many rankings of the same groups at once, (…, G), as resampling wants it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[Any]  # whole numbers, which resampling keeps as floats


class PixelCurves(NamedTuple):
    """Holds precision-recall and ROC curves under one index, along which thresholds fall."""

    precision: Floats
    recall: Floats
    fpr: Floats
    tpr: Floats  # recall by its other name


class Ranking(NamedTuple):
    """Holds groups of pixels, highest score first; (…, G) where several rankings share them."""

    positives: Counts  # (…, G) in the group
    negatives: Counts
    tp: Counts  # (…, G) positives of this group and of those above
    fp: Counts

    @classmethod
    def of(cls, positives: Counts, negatives: Counts) -> Ranking:
        """Build it from the counts of each group."""
        return cls(positives, negatives, positives.cumsum(-1), negatives.cumsum(-1))

    @classmethod
    def of_floats(cls, counts: Ints) -> Ranking:
        """Build it from (2, G) negatives and positives, as floats, which save each formula a
        conversion and are exact up to 2**53 pixels."""
        negatives, positives = counts.astype(np.float64, order="C")
        return cls.of(positives, negatives)


def average_precision(ranking: Ranking) -> Floats:
    """AP = sum (R_n - R_{n-1}) P_n, no interpolation, as scikit-learn defines it; (…)."""
    hits, _, tp, fp = ranking
    # A resample can leave the highest groups empty: 0 / 0 there must be 0.
    precision = tp / np.maximum(tp + fp, np.finfo(float).tiny)
    return (hits * precision).sum(-1) / tp[..., -1]


def auroc(ranking: Ranking) -> Floats:
    """AUROC = P(score of a positive > score of a negative), a tie counting half; (…)."""
    hits, alarms, tp, fp = ranking
    return (alarms * (tp - hits / 2)).sum(-1) / tp[..., -1] / fp[..., -1]


def group_at_recall(ranking: Ranking, recall: float) -> Ints:
    """Return the first group, from above, that brings recall to this one; (…)."""
    return np.argmax(ranking.tp / ranking.tp[..., -1:] >= recall, axis=-1)


def fpr_at_recall(ranking: Ranking, recall: float = 0.95) -> Floats:
    """Return FPR at the first threshold with this recall; (…)."""
    group = group_at_recall(ranking, recall)[..., None]
    return (np.take_along_axis(ranking.fp, group, -1) / ranking.fp[..., -1:])[..., 0]


def f1(ranking: Ranking) -> Floats:
    """Return F1 = 2 TP / (2 TP + FP + FN) of the threshold that stops after each group; (…, G)."""
    return 2 * ranking.tp / (ranking.tp + ranking.fp + ranking.tp[..., -1:])


def best_f1(ranking: Ranking) -> tuple[Floats, Ints]:
    """Return the highest F1 and the group its threshold stops after."""
    found = f1(ranking)
    return found.max(-1), np.argmax(found, axis=-1)


def ap_bound(ranking: Ranking, mixed: NDArray[np.bool_]) -> float:
    """Bound how far AP is from that of the unbinned scores; mixed (G,): bins of several scores.

    With t, f counted above a bin of p positives and n negatives, the j-th of its positives has a
    precision between (t + j) / (t + j + f + n) and (t + p) / (t + p + f). The sum of the former
    is at least p - F log(1 + p / (t + F)) with F = f + n, for 1 / x lies under its integral.
    """
    where = np.flatnonzero(mixed & (ranking.positives > 0))
    p, n, tp, fp = (column.take(where) for column in ranking)
    above = tp - p
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 at the very top: fmax drops it
        lowest = np.fmax(p - fp * np.log1p(p / (above + fp)), p * ((above + 1) / (above + 1 + fp)))
    counted, highest = p * (tp / (tp + fp)), p * (tp / (tp + fp - n))
    return float(max((highest - counted).sum(), (counted - lowest).sum()) / ranking.tp[-1])


def thinned_curves(ranking: Ranking, points: int) -> PixelCurves:
    """Return about `points` points of the full curves, half even in recall and half in FPR.

    In front is recall 0, with the precision of the highest group.
    """
    recall, fpr = ranking.tp / ranking.tp[-1], ranking.fp / ranking.fp[-1]
    steps = np.linspace(0, 1, max(points // 2, 2))
    chosen = np.union1d(np.searchsorted(recall, steps), np.searchsorted(fpr, steps))
    precision = ranking.tp[chosen] / (ranking.tp[chosen] + ranking.fp[chosen])
    recall, fpr = np.append(0.0, recall[chosen]), np.append(0.0, fpr[chosen])
    return PixelCurves(np.append(precision[0], precision), recall, fpr, recall.copy())
