"""Measure quality on the known classes by one confusion matrix over the whole data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eomt_exp.evaluator.pixel_arrays import integer_array


class ConfusionMatrix:
    """Counts pairs of true and predicted class over the pixels of all images."""

    def __init__(
        self, num_classes: int, void: int = 255, categories: Sequence[str] | None = None
    ) -> None:
        """Leave out pixels labelled `void`, which is no class.

        `categories` names for each class the one it belongs to, as Cityscapes groups car and bus.
        """
        if num_classes < 1 or 0 <= void < num_classes:
            allowed = f"at least 1 and, for {void} marks void pixels, at most {void}"
            raise ValueError(f"num_classes must be {allowed}; got {num_classes}.")
        if categories is not None and len(categories) != num_classes:
            raise ValueError(
                f"categories names one for each class: got {len(categories)} for {num_classes}."
            )
        self.num_classes, self.void = num_classes, void
        self.categories = None if categories is None else tuple(categories)
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def update(self, predicted: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> None:
        """Count pixels: predicted (…) and labels (…) integers 0..num_classes-1, labels may be void.

        Raises ValueError, and counts nothing, where shapes or ranges do not hold; the prediction
        at a void pixel does not matter.
        """
        guess = integer_array(predicted, "predicted", "take the argmax first")
        truth = integer_array(labels, "labels", "take the argmax first")
        if guess.shape != truth.shape:
            shapes = f"predicted {guess.shape} and labels {truth.shape}"
            raise ValueError(f"{shapes} must agree; resize the prediction to the labels first.")
        keep = truth != self.void
        guess, truth = guess[keep], truth[keep]
        self._check("predicted", guess)
        self._check("labels", truth)
        # int64 first: true * num_classes would wrap around in uint8.
        pairs = truth.astype(np.int64) * self.num_classes + guess.astype(np.int64)
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another shard."""
        if self.num_classes != other.num_classes:
            sizes = f"{other.num_classes} classes into {self.num_classes}"
            raise ValueError(f"cannot merge {sizes}; both must count the same ones.")
        self.counts += other.counts

    def results(self) -> dict[str, float]:
        """Return miou, macc, aacc and iou/<class>, in [0, 1], or NaN where nothing defines it.

        iou/c = TP / (TP + FP + FN), and miou is its mean over the classes that occur in truth or
        prediction; macc is the mean recall over the classes that occur in truth; aacc is the share
        of pixels that are right. With categories also category_miou and category_iou/<category>:
        there a prediction is right when it is of the true class's category (Cityscapes, CVPR 2016).
        """
        hits, true, iou = self.counts.diagonal(), self.counts.sum(1), _iou(self.counts)
        summary = {
            "miou": _mean(iou),
            "macc": _mean(_ratios(hits, true)),
            "aacc": _mean(_ratios(hits.sum(keepdims=True), true.sum(keepdims=True))),
        }
        per_class = {f"iou/{index}": float(value) for index, value in enumerate(iou)}
        return summary | per_class | self._of_categories()

    def _of_categories(self) -> dict[str, float]:
        if self.categories is None:
            return {}
        names = list(dict.fromkeys(self.categories))
        belongs = np.array([[own == name for own in self.categories] for name in names], np.int64)
        iou = _iou(belongs @ self.counts @ belongs.T)
        per_category = {f"category_iou/{n}": float(v) for n, v in zip(names, iou, strict=True)}
        return {"category_miou": _mean(iou)} | per_category

    def _check(self, name: str, classes: np.ndarray) -> None:
        if classes.size and not 0 <= classes.min() <= classes.max() < self.num_classes:
            wrong = np.unique(classes[(classes < 0) | (classes >= self.num_classes)])[:5].tolist()
            allowed = f"0 to {self.num_classes - 1}, and {self.void} in labels"
            raise ValueError(f"{name} holds {wrong}; allowed are {allowed}. Check num_classes.")


def _iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    hits = counts.diagonal()
    return _ratios(hits, counts.sum(1) + counts.sum(0) - hits)


def _ratios(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return part / whole, NaN where the whole is empty."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of what is defined, NaN when nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
