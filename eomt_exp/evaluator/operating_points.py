"""Read a ranking at a threshold, and compute areas and rates that other code bases report.

Ties are a group's whole step, as in scikit-learn. `keys` are those of keys.py, falling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from eomt_exp.evaluator import ranking as rank
from eomt_exp.evaluator.keys import TOP, first_key, to_score
from eomt_exp.evaluator.ranking import Counts, Floats, Ints, Ranking

NAN = float("nan")


def tie_fraction(ranking: Ranking) -> float:
    """Return which share of the positives is in the group that brings recall to 0.95."""
    return float(ranking.positives[rank.group_at_recall(ranking, 0.95)] / ranking.tp[-1])


def ap_trapezoid(ranking: Ranking) -> float:
    """Return the area under precision-recall points joined by lines, the first of them (0, 1).

    It is scikit-learn's auc(recall, precision), which ood_metrics calls aupr.
    """
    hits, _, tp, fp = ranking
    precision = tp / (tp + fp)
    twice = hits[0] * (1 + precision[0]) + (hits[1:] * (precision[1:] + precision[:-1])).sum()
    return float(twice / 2 / tp[-1])


def fpr_interpolated(ranking: Ranking, recall: float) -> float:
    """Return FPR at this recall (< 1) on ROC points joined by lines; the last on a level run.

    So it is in ood_metrics.
    """
    tpr = ranking.tp / ranking.tp[-1]
    after = int(np.searchsorted(tpr, recall, side="right"))
    near = slice(max(after - 1, 0), after + 1)
    fpr = ranking.fp[near] / ranking.fp[-1]
    return float(np.interp(recall, np.append(0.0, tpr[near]), np.append(0.0, fpr)))


def fpr_nearest(ranking: Ranking, recall: float) -> float:
    """Return FPR where recall is nearest to this one; where two are, at the lower threshold.

    So it is in the anomaly-seg code of Hendrycks et al., which stops at full recall.
    """
    full = int(np.searchsorted(ranking.tp, ranking.tp[-1]))
    gaps = np.abs(ranking.tp[: full + 1] / ranking.tp[-1] - recall)
    return float(ranking.fp[full - int(np.argmin(gaps[::-1]))] / ranking.fp[-1])


def tpr_at_fpr(ranking: Ranking, fpr: float) -> float:
    """Return TPR at the last threshold, from above, with at most this FPR; 0 without one."""
    passed = int(np.searchsorted(ranking.fp / ranking.fp[-1], fpr, side="right"))
    return float(ranking.tp[passed - 1] / ranking.tp[-1]) if passed else 0.0


def tnr_table(
    keys: Ints, ranking: Ranking, tprs: Sequence[float]
) -> list[tuple[float, float, float]]:
    """List (tpr, TNR, threshold) at the first threshold, from above, that reaches each tpr."""
    if outside := [tpr for tpr in tprs if not 0 < tpr <= 1]:
        raise ValueError(f"tprs holds {outside}; allowed are numbers above 0 and up to 1, as 0.95.")
    if not (ranking.positives.any() and ranking.negatives.any()):
        return [(tpr, NAN, NAN) for tpr in tprs]
    groups = [int(rank.group_at_recall(ranking, tpr)) for tpr in tprs]
    tnr = 1 - ranking.fp[groups] / ranking.fp[-1]
    thresholds = [to_score(int(keys[group])) for group in groups]
    return list(zip(tprs, tnr.tolist(), thresholds, strict=True))


def f1_threshold(keys: Ints, ranking: Ranking) -> float:
    """Return the highest threshold with the highest F1; NaN without a positive or a negative."""
    if not (ranking.positives.any() and ranking.negatives.any()):
        return NAN
    return to_score(int(keys[rank.best_f1(ranking)[1]]))


def f1_margin(keys: Ints, ranking: Ranking, least: float = 0.7) -> float:
    """Return the width of the longest range of thresholds with F1 above `least`, in score units.

    Thresholds lie between the lowest and the highest finite score. Maskomaly's MDM-F1 (Ackermann
    et al., BMVC 2023) counts those of 0, 1/1000, ..., 1 for scores in [0, 1]; this is its limit.
    """
    first, last = int(keys[0] == TOP), len(keys) - 1 - int(keys[-1] == 0)  # the finite ones
    if first > last:
        return 0.0
    steps = np.diff((rank.f1(ranking) > least).astype(np.int8), prepend=0, append=0)
    widest = 0.0
    # The thresholds of a group reach from its own score down to just above that of the next.
    for begin, end in zip(np.flatnonzero(steps > 0), np.flatnonzero(steps < 0), strict=True):
        high, low = (to_score(int(keys[np.clip(g, first, last)])) for g in (begin, end))
        widest = max(widest, high - low)
    return widest


def threshold_at_fpr(keys: Ints, ranking: Ranking, width: int, fpr: float) -> float:
    """Return the lowest threshold that no more than this share of the negatives reaches."""
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr must be from 0 to 1, got {fpr}; 0.05 lets 5 % of pixels pass.")
    if not ranking.negatives.any():
        return NAN
    passing = int(np.searchsorted(ranking.fp / ranking.fp[-1], fpr, side="right"))
    if passing == len(keys):
        return float("-inf")
    beyond = int(keys[passing]) + width  # just above the first group that is too much
    return to_score(beyond) if beyond <= TOP else NAN


def at_threshold(keys: Ints, ranking: Ranking, width: int, threshold: float) -> dict[str, float]:
    """Return rates, precision and f1 at a threshold, whose bin of `width` keys counts whole."""
    if np.isnan(threshold):
        raise ValueError("threshold is NaN; allowed is any other float, as f1_threshold.")
    lowest = first_key(threshold) - width + 1
    passed = len(keys) - int(np.searchsorted(keys[::-1], lowest))
    tp, fp = (int(column[:passed].sum()) for column in ranking[:2])
    positives, negatives = (int(column.sum()) for column in ranking[:2])
    both = positives > 0 and negatives > 0
    return {
        "tpr": tp / positives if positives else NAN,
        "fpr": fp / negatives if negatives else NAN,
        "precision": tp / (tp + fp) if both and passed else NAN,
        "f1": 2 * tp / (tp + fp + positives) if both else NAN,
    }


def histogram(keys: Ints, ranking: Ranking, bins: int) -> tuple[Floats, Floats, Floats]:
    """Return finite edges (bins + 1) of even bins, and shares of negatives and of positives."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}; 60 is the default.")
    kinds = (ranking.negatives, ranking.positives)
    finite = (keys > 0) & (keys < TOP)
    ends = [end for kind in kinds for end in _ends(keys[finite], kind[finite])]
    low, high = (min(ends), max(ends)) if ends else (0.0, 0.0)
    if low == high:
        margin = max(abs(low), 1.0) / 2
        low, high = low - margin, high + margin
    edges = np.linspace(low, high, bins + 1)
    inner = [first_key(edge) for edge in edges[1:-1]]
    bin_of = np.searchsorted(np.array(inner, np.int64), keys, side="right")
    normal, anomaly = (_shares(bin_of, kind, bins) for kind in kinds)
    return edges, normal, anomaly


def _ends(keys: Ints, counts: Counts) -> Iterator[float]:
    """Yield the scores between which all but 0.1 % lie at either end; none without a pixel."""
    above = counts.cumsum()
    if len(above) and above[-1]:
        yield to_score(int(keys[np.searchsorted(above, 0.001 * above[-1], side="right")]))
        yield to_score(int(keys[np.searchsorted(above, 0.999 * above[-1])]))


def _shares(bin_of: Ints, counts: Counts, bins: int) -> Floats:
    return np.bincount(bin_of, counts, bins) / max(counts.sum(), 1)
