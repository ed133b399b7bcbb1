"""The component metrics as their definitions read: one component after the other, set by set.

Slow on purpose, and the oracle of test_components.py and of benchmarks/bench_components.py. Sets of
pixels are boolean maps; every component is compared with the whole image.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.ndimage import label

Image = tuple[np.ndarray, np.ndarray]  # scores (H, W), labels (H, W)
VOID = 255
TAUS = np.linspace(0.25, 0.75, 11)


def metrics(
    images: Iterable[Image], threshold: float, min_predicted: int, min_true: int
) -> dict[str, float]:
    """siou, ppv, component_f1 and the numbers of components over all images."""
    sious: list[float] = []
    ppvs: list[float] = []
    for scores, labels in images:
        true, predicted = instances(scores, labels, threshold, min_predicted, min_true)
        sious += [siou(true, predicted, k) for k in np.unique(true) if k > 0]
        ppvs += [ppv(true, predicted, k) for k in np.unique(predicted) if k > 0]
    return {
        "siou": float(np.mean(sious)) if sious else float("nan"),
        "ppv": float(np.mean(ppvs)) if ppvs else float("nan"),
        "component_f1": float(np.mean([f1(sious, ppvs, tau) for tau in TAUS])),
        "components_true": len(sious),
        "components_predicted": len(ppvs),
    }


def instances(
    scores: np.ndarray, labels: np.ndarray, threshold: float, min_predicted: int, min_true: int
) -> Image:
    """The numbered components that count, at the pixels that count (flat)."""
    counts = labels != VOID
    predicted, number = label((scores > threshold) & counts, np.ones((3, 3)))
    for k in range(1, number + 1):
        if (predicted == k).sum() < min_predicted:
            predicted[predicted == k] = 0
    true, number = label(labels == 1, np.ones((3, 3)))
    for k in range(number + 1):  # 0, all that is not anomaly, is held to the same size
        if (true == k).sum() < min_true:
            counts[true == k] = False
    return true[counts], predicted[counts]


def siou(true: np.ndarray, predicted: np.ndarray, k: int) -> float:
    """|k & P| / (|k | P| - |P & other true components|) with P all predictions that touch k."""
    here = true == k
    touching = [number for number in np.unique(predicted[here]) if number > 0]
    union = np.isin(predicted, touching)
    others = (true > 0) & ~here
    return (here & union).sum() / ((here | union).sum() - (union & others).sum())


def ppv(true: np.ndarray, predicted: np.ndarray, k: int) -> float:
    """The share of prediction k that lies in true components."""
    here = predicted == k
    return (here & (true > 0)).sum() / here.sum()


def f1(sious: list[float], ppvs: list[float], tau: float) -> float:
    """2 TP / (2 TP + FN + FP); NaN where there is nothing at all."""
    hits = sum(value >= tau for value in sious)
    missed = sum(value < tau for value in sious)
    false = sum(value < tau for value in ppvs)
    whole = 2 * hits + missed + false
    return 2 * hits / whole if whole else float("nan")
