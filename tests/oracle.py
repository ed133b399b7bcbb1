"""scikit-learn's numbers for scores and labels, the oracle of the evaluator's tests.

With it: scores in the shapes that scorers make them, and what the tests of counts have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from eomt_exp.evaluator.image_counts import ImageCounts
from eomt_exp.evaluator.pixel import PixelCounts

SIZE = 20_000

Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


# Each draws scores for labels y.
SCORES: dict[str, Draw] = {
    "uniform": lambda r, y: r.random(y.size) + 0.3 * y,
    "gaussian": lambda r, y: r.standard_normal(y.size) + 1.5 * y,
    "no_skill": lambda r, y: r.standard_normal(y.size),
    "inverted": lambda r, y: r.standard_normal(y.size) - y,
    "perfect": lambda r, y: r.random(y.size) + y,
    "constant": lambda r, y: np.full(y.size, 0.3),
    "saturated_sigmoid": lambda r, y: sigmoid(12 * r.standard_normal(y.size) + 15 * y),
    "saturated_confidence": lambda r, y: -sigmoid(12 + 4 * r.standard_normal(y.size) - 4 * y),
    "six_levels": lambda r, y: np.round(5 * sigmoid(r.standard_normal(y.size) + y)),
    "two_levels": lambda r, y: (r.random(y.size) + 0.4 * y > 0.7).astype(float),
    "float16": lambda r, y: sigmoid(3 * r.standard_normal(y.size) + 4 * y).astype(np.float16),
    "float32": lambda r, y: sigmoid(3 * r.standard_normal(y.size) + 2 * y).astype(np.float32),
    "tiny_range": lambda r, y: 0.5 + 1e-4 * (r.standard_normal(y.size) + y),
    "tinier_range": lambda r, y: 0.5 + 2e-7 * (r.standard_normal(y.size) + y),
    "tiny_range_and_zeros": lambda r, y: (
        (0.5 + 1e-4 * (r.standard_normal(y.size) + y)) * (r.random(y.size) > 0.1)
    ),
    "hard_tail": lambda r, y: np.where(r.random(y.size) < 0.06, 0.0, r.random(y.size) + 2 * y),
    "rba": lambda r, y: -9 * sigmoid(r.standard_normal(y.size) - 2 * y),
    "large_magnitudes": lambda r, y: np.exp(12 * r.standard_normal(y.size) + 10 * y),
    "denormals": lambda r, y: 1e-42 * (r.standard_normal(y.size) + y),
}


def draw(name: str, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Float32 scores and labels, 2 % of them anomalies for even seeds and 40 % for odd ones."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(SIZE) < (0.02, 0.4)[seed % 2]).astype(np.uint8)
    return SCORES[name](rng, labels).astype(np.float32), labels


def noise(seed: int, shape: tuple[int, int] = (60, 80)) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) scores and labels of one image; every twentieth pixel is void."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(shape) < (0.2, 0.45)[seed % 2]).astype(np.uint8)
    scores = rng.random(shape) + 0.3 * labels
    labels[rng.random(shape) < 0.05] = 255
    return scores.astype(np.float32), labels


def ranked(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The numbers of the road benchmarks."""
    # Intermediate points matter: the first with TPR >= .95 may lie on a straight piece.
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return {
        "ap": average_precision_score(labels, scores),
        "auroc": roc_auc_score(labels, scores),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
    }


def other_definitions(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The numbers as other code bases define them."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    fpr, tpr, _ = roc_curve(labels, scores)  # as ood_metrics calls it
    full, full_tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    falling = slice(np.flatnonzero(full_tpr == 1)[0], 0, -1)  # from full recall down
    return {
        "ap_trapezoid": auc(recall, precision),
        "fpr95_interpolated": np.interp(0.95, tpr, fpr),
        "fpr95_nearest": full[falling][np.argmin(np.abs(full_tpr[falling] - 0.95))],
        "tpr_at_fpr05": full_tpr[full <= 0.05].max(),
        "tpr_at_fpr01": full_tpr[full <= 0.01].max(),
        "tnr_at_tpr95": 1 - full[np.argmax(full_tpr >= 0.95)],
    }


def count(scores: object, labels: object, bits: int = 19) -> PixelCounts:
    counts = PixelCounts(bits)
    counts.update(np.asarray(scores), np.asarray(labels, np.uint8))
    return counts


def contents(counts: Any) -> dict[str, Any]:
    """What was counted, in an order that does not depend on that of images and shards."""
    if isinstance(counts, ImageCounts):
        return {name: value.tolist() for name, value in counts.state_dict().items()}
    if isinstance(counts, PixelCounts):
        rows = [counts.shift, *(array.tolist() for array in counts.filled())]
    else:
        rows = [sorted(np.concatenate(kind).tolist()) for kind in (counts._true, counts._predicted)]
    return {"counts": rows, "results": counts.results()}


def same(left: Any, right: Any) -> bool:
    """Whether two counts hold the same, and have the same results, to the bit; NaN equals NaN."""
    return repr(contents(left)) == repr(contents(right))
