"""Metrics of a ranking: pixels in groups of one score, or one bin of scores, highest first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class PixelCurves(NamedTuple):
    """Precision-recall and ROC curves, one index for all: thresholds fall along every array."""

    precision: Floats
    recall: Floats
    fpr: Floats
    tpr: Floats  # recall by its other name


class Ranking(NamedTuple):
    """Groups that hold a pixel, highest score first; some positive and some negative among them."""

    positives: Ints  # (G,) in the group
    negatives: Ints
    tp: Ints  # (G,) positives of this group and of those above
    fp: Ints

    @classmethod
    def of(cls, positives: Ints, negatives: Ints) -> Ranking:
        """From the counts of each group."""
        return cls(positives, negatives, positives.cumsum(), negatives.cumsum())


def average_precision(ranking: Ranking) -> float:
    """AP = sum (R_n - R_{n-1}) P_n, no interpolation, as scikit-learn defines it."""
    hits, _, tp, fp = ranking
    return float((hits * (tp / (tp + fp))).sum() / tp[-1])


def auroc(ranking: Ranking) -> float:
    """P(score of a positive > score of a negative), a tie counting half."""
    hits, alarms, tp, fp = ranking
    return float((alarms * (tp - hits / 2)).sum() / tp[-1] / fp[-1])


def fpr_at_recall(ranking: Ranking, recall: float = 0.95) -> tuple[float, float]:
    """FPR at the first threshold with this recall, and the share of positives tied at it."""
    hits, _, tp, fp = ranking
    group = int(np.argmax(tp / tp[-1] >= recall))
    return float(fp[group] / fp[-1]), float(hits[group] / tp[-1])


def best_f1(ranking: Ranking) -> tuple[float, int]:
    """The highest F1 = 2 TP / (2 TP + FP + FN) over thresholds, and the group it stops after."""
    f1 = 2 * ranking.tp / (ranking.tp + ranking.fp + ranking.tp[-1])
    group = int(np.argmax(f1))
    return float(f1[group]), group


def ap_bound(ranking: Ranking, mixed: NDArray[np.bool_]) -> float:
    """How far AP can be from that of the unbinned scores; mixed (G,): bins of several scores.

    With t, f counted above a bin of p positives and n negatives, the j-th of its positives has a
    precision between (t + j) / (t + j + f + n) and (t + p) / (t + p + f). The sum of the former
    is at least p - F log(1 + p / (t + F)) with F = f + n, for 1 / x lies under its integral.
    """
    p, n, tp, fp = (column[mixed & (ranking.positives > 0)] for column in ranking)
    above = tp - p
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 at the very top: fmax drops it
        lowest = np.fmax(p - fp * np.log1p(p / (above + fp)), p * ((above + 1) / (above + 1 + fp)))
    counted, highest = p * (tp / (tp + fp)), p * (tp / (tp + fp - n))
    return float(max((highest - counted).sum(), (counted - lowest).sum()) / ranking.tp[-1])


def thinned_curves(ranking: Ranking, points: int) -> PixelCurves:
    """About `points` points of the full curves, half of them even in recall, half in FPR.

    In front stands recall 0, with the precision of the highest group.
    """
    recall, fpr = ranking.tp / ranking.tp[-1], ranking.fp / ranking.fp[-1]
    steps = np.linspace(0, 1, max(points // 2, 2))
    chosen = np.union1d(np.searchsorted(recall, steps), np.searchsorted(fpr, steps))
    precision = ranking.tp[chosen] / (ranking.tp[chosen] + ranking.fp[chosen])
    recall, fpr = np.append(0.0, recall[chosen]), np.append(0.0, fpr[chosen])
    return PixelCurves(np.append(precision[0], precision), recall, fpr, recall.copy())
