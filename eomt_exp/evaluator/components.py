"""Count components, not pixels: the metrics of SegmentMeIfYouCan (Chan et al., NeurIPS 2021).

Large anomalies hide small ones in pixel metrics; here each connected component counts once. An
image is cut into runs along its rows, each in at most one true and one predicted component; sizes
and overlaps are sums over the few runs, with no loop over components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eomt_exp.evaluator.metrics import FOUND_FROM, mean, of_components
from eomt_exp.evaluator.pixel_arrays import counted_pixels, float32_array, integer_array
from eomt_exp.evaluator.ranking import Floats, Ints

SizeRow = tuple[int, int | None, int, float, float]


class ComponentCounts:
    """Holds sizes and overlaps, in pixels, of all true and predicted components; metrics follow.

    A pixel is predicted when its score is above `threshold` and it is not void; SMIYC takes the
    `f1_threshold` of PixelCounts on the same images. That one counts score >= threshold while
    here, as in the benchmark, it is strictly >: scores saturated at it are not predicted.
    The benchmark's sizes are 500 and 100 pixels on AnomalyTrack, 50 and 10 on ObstacleTrack.

    The order of images and shards changes no bit of any result: integers are kept, and their
    ratios are summed without rounding.
    """

    def __init__(
        self, threshold: float, min_predicted: int = 500, min_true: int = 100, void: int = 255
    ) -> None:
        """Leave out components under a minimal size, in pixels, and pixels labelled void."""
        if math.isnan(threshold):
            raise ValueError("threshold is NaN, as f1_threshold is without anomalies; give one.")
        if min(min_predicted, min_true) < 0:
            sizes = f"min_predicted={min_predicted} and min_true={min_true}"
            raise ValueError(f"sizes are pixels, 0 or more; got {sizes}.")
        with np.errstate(over="ignore"):  # rounded as the scores are
            self.threshold, self.void = float(np.float32(threshold)), void
        self.min_predicted, self.min_true = min_predicted, min_true
        # Per image. True: (n, 3) pixels, of them predicted, and those of the adjusted union.
        # Predicted: (m, 2) pixels, of them in true components.
        self._true: list[Ints] = []
        self._predicted: list[Ints] = []

    def update(self, scores: np.ndarray | Tensor, anomaly: np.ndarray | Tensor) -> None:
        """Count one image: scores (H, W) float, higher = more anomalous; anomaly (H, W) 0, 1, void.

        Scores are rounded to float32. Raises ValueError, and counts nothing, where shapes differ
        or are not (H, W), a label is none of the three, or a pixel that counts has NaN.

        Void pixels leave the prediction before components are formed, so void can part one. Then
        small predictions are dropped, and the pixels of small true components become void: a
        prediction over them loses these pixels but is not held to min_predicted again. As in the
        benchmark, an image with fewer than min_true pixels beside its anomalies loses those too.
        """
        values, labels = float32_array(scores), integer_array(anomaly)
        if values.ndim != 2 or values.shape != labels.shape:
            shapes = f"scores {values.shape} and anomaly {labels.shape}"
            raise ValueError(f"{shapes} must both be (H, W) of one image; resize the scores first.")
        is_true = labels == 1
        is_predicted = (values > self.threshold) & counted_pixels(values, labels, self.void)
        starts, pixels = _runs(is_true + 2 * is_predicted.view(np.uint8))
        true = _drop_small(_label(is_true)[starts], self.min_true, pixels)
        predicted = _drop_small(_label(is_predicted)[starts], self.min_predicted, pixels)
        counts = true > 0
        if is_true.size - np.count_nonzero(is_true) >= self.min_true:
            counts |= ~is_true.ravel()[starts]
        true_rows, predicted_rows = _overlaps(true[counts], predicted[counts], pixels[counts])
        self._true.append(true_rows)
        self._predicted.append(predicted_rows)

    def merge(self, other: ComponentCounts) -> None:
        """Add the components of another shard; exact, and independent of the order."""
        if self._settings() != other._settings():
            settings = f"{other._settings()} into {self._settings()}"
            rules = f"(threshold, min_predicted, min_true) = {settings}"
            raise ValueError(f"cannot merge {rules}; count all images with one of them.")
        self._true = self._true + other._true
        self._predicted = self._predicted + other._predicted

    def results(self) -> dict[str, float]:
        """Return the metrics over all components of all images; NaN where nothing defines one.

        siou: mean over true components k of |k & P| / (|k | P| - |P & other true ones|), where P
            is the union of the predicted components that touch k
        ppv: mean over predicted components of the share of their pixels in true components
        component_f1: see mean_f1
        components_true, components_predicted: how many counted
        """
        return of_components(self._siou(), self._ppv())

    def by_size(self, edges: Sequence[int]) -> list[SizeRow]:
        """List true components by area: low, high, components, share with siou >= .25, mean siou.

        Areas are low <= pixels < high; the first row starts at 0 and the last has None for high,
        so that the rows hold every component once. NaN for share and mean of an empty row.
        """
        bounds = [0, *edges]
        if any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"edges must rise and be over 0, got {[*edges]}; try [1000, 10000].")
        siou = self._siou()
        row_of = np.searchsorted(np.array(edges, np.int64), _stack(self._true, 3)[:, 0], "right")
        rows: list[SizeRow] = []
        for index, low in enumerate(bounds):
            inside = siou[row_of == index]
            high = bounds[index + 1] if index + 1 < len(bounds) else None
            share = mean((inside >= FOUND_FROM[0]).astype(np.float64))
            rows.append((low, high, len(inside), share, mean(inside)))
        return rows

    def _settings(self) -> tuple[float, int, int]:
        return self.threshold, self.min_predicted, self.min_true

    def _siou(self) -> Floats:
        rows = _stack(self._true, 3)
        return rows[:, 1] / rows[:, 2]

    def _ppv(self) -> Floats:
        rows = _stack(self._predicted, 2)
        return rows[:, 1] / rows[:, 0]


def label_components(mask: NDArray[np.bool_], min_pixels: int) -> NDArray[np.int32]:
    """Number the 8-connected components of at least min_pixels 1, 2, … in (H, W), 0 elsewhere."""
    # The algorithm that numbers components in the order of their first pixels.
    return _drop_small(_label(mask, cv2.CCL_SAUF), min_pixels).reshape(mask.shape)


def _label(mask: NDArray[np.bool_], algorithm: int = cv2.CCL_DEFAULT) -> NDArray[np.int32]:
    """Number the 8-connected components; flat."""
    picture = mask.view(np.uint8)
    found: Any = cv2.connectedComponentsWithAlgorithm(picture, 8, cv2.CV_32S, algorithm)[1]
    return found.ravel()  # type: ignore[no-any-return]


def _runs(state: NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """Find flat starts and lengths of runs of equal state along the rows of (H, W)."""
    is_start = np.ones(state.shape, bool)
    is_start[:, 1:] = state[:, 1:] != state[:, :-1]
    starts = np.flatnonzero(is_start)
    return starts, np.diff(starts, append=state.size)


def _drop_small(
    ids: NDArray[np.int32], min_pixels: int, pixels: Ints | None = None
) -> NDArray[np.int32]:
    """Set the small ids (n,) of `pixels` pixels each (None: one) to 0, renumber the others."""
    keep = np.bincount(ids, pixels, minlength=1) >= min_pixels
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[ids]


def _overlaps(
    true: NDArray[np.int32], predicted: NDArray[np.int32], pixels: Ints
) -> tuple[Ints, Ints]:
    """Compute an image's rows of ComponentCounts from both ids and the length of each run.

    Let P be the predictions that touch k. What |k | P| - |P & other true ones| holds beside k is
    the part of P in no true component: each prediction's normal pixels, and those alone.
    """
    num_true, num_predicted = (int(ids.max(initial=0)) + 1 for ids in (true, predicted))
    both, normal = (true > 0) & (predicted > 0), true == 0
    k, p = true[both], predicted[both]
    area, hit = _sums(true, pixels, num_true), _sums(k, pixels[both], num_true)
    on_true = _sums(p, pixels[both], num_predicted)
    on_normal = _sums(predicted[normal], pixels[normal], num_predicted)
    # Each pair once; a table of all pairs would be gigabytes for noise on noise.
    k, p = np.divmod(np.unique(k.astype(np.int64) * num_predicted + p), num_predicted)
    true_rows = np.stack([area, hit, area + _sums(k, on_normal[p], num_true)], axis=1)[1:]
    predicted_rows = np.stack([on_true + on_normal, on_true], axis=1)[1:]
    return true_rows, predicted_rows[predicted_rows[:, 0] > 0]  # some lay on small true ones only


def _sums(ids: NDArray[np.integer], pixels: Ints, number: int) -> Ints:
    """Sum the pixels of each id; bincount adds in float64, which is exact for an image."""
    return np.bincount(ids, pixels, minlength=number).astype(np.int64)


def _stack(rows: list[Ints], width: int) -> Ints:
    return np.concatenate([np.empty((0, width), np.int64), *rows])
