"""Turn scores and labels into arrays and keys, and refuse those that cannot be counted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, bincount, from_numpy

from eomt_exp.evaluator.keys import MODERATE, NUM_PAGES, PAGE_BITS, ZERO_PAGE, centred_keys

CHUNK = 1 << 17  # pixels worked on at a time: the temporaries stay in the cache


class KeyedPixels:
    """Holds the pixels of a map that count, and their keys: made once for all who count them."""

    def __init__(
        self, scores: np.ndarray | Tensor, anomaly: np.ndarray | Tensor, void: int = 255
    ) -> None:
        """Take scores (…) float, higher = more anomalous, and anomaly (…) 0, 1 or void.

        Scores are rounded to float32; -inf and inf are scores like any other, and -0.0 is 0.0.
        Raises ValueError where shapes differ, a label is none of the three, or a pixel that counts
        has NaN for a score.
        """
        values, labels = float32_array(scores), integer_array(anomaly)
        if values.shape != labels.shape:
            shapes = f"scores {values.shape} and anomaly {labels.shape}"
            raise ValueError(f"{shapes} must agree; resize the scores to the labels first.")
        keep = counted_pixels(values, labels, void)
        if not keep.all():
            values, labels = values[keep], labels[keep]
        values, self._labels = values.ravel(), labels.ravel()
        largest = max(-values.min(initial=0), values.max(initial=0))
        self.keys = np.empty(values.size, np.int32 if largest < MODERATE else np.int64)  # centred
        for part in self._parts():
            self.keys[part] = centred_keys(values[part], self.keys.dtype.type)
        self.pages = self._touched() if values.size else np.empty(0, np.int64)  # (P,) rising

    def places(self, row: NDArray, shift: int, bits: int) -> Iterator[NDArray[np.int64]]:
        """Yield, part by part, each pixel's index in a flat array (label, 2**bits bins).

        A bin is the row of its page, row (NUM_PAGES,), and the rest of key >> shift.
        """
        offset = np.empty(NUM_PAGES, np.int64)
        offset[self.pages] = (row[self.pages] + ZERO_PAGE - self.pages) << (PAGE_BITS - shift)
        for part in self._parts():
            keys = self.keys[part]
            pages = from_numpy((keys >> PAGE_BITS) + ZERO_PAGE)
            places = from_numpy(offset).index_select(0, pages).numpy()
            places += keys >> shift
            places |= self._labels[part].astype(np.int64) << bits
            yield places

    def _touched(self) -> NDArray[np.int64]:
        lowest, highest = (int(end) >> PAGE_BITS for end in (self.keys.min(), self.keys.max()))
        pages = (from_numpy((self.keys[part] >> PAGE_BITS) - lowest) for part in self._parts())
        counts = sum(bincount(part, minlength=highest - lowest + 1) for part in pages)
        return np.flatnonzero(counts) + (lowest + ZERO_PAGE)

    def _parts(self) -> Iterator[slice]:
        return (slice(start, start + CHUNK) for start in range(0, self.keys.size, CHUNK))


def float32_array(scores: np.ndarray | Tensor) -> NDArray[np.float32]:
    """Return scores (…) rounded to float32."""
    if isinstance(scores, Tensor):
        return scores.detach().cpu().float().numpy()
    with np.errstate(over="ignore"):  # a float64 beyond float32 is inf, which is a score
        return np.asarray(scores, np.float32)


def integer_array(
    labels: np.ndarray | Tensor, name: str = "anomaly", advice: str = "convert it to uint8"
) -> np.ndarray:
    """Return labels (…) as they are; raise ValueError with the advice unless they are integers."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind not in "bui":
        raise ValueError(f"{name} must be integers, got {array.dtype}; {advice}.")
    return array


def counted_pixels(
    scores: NDArray[np.float32], anomaly: np.ndarray, void: int
) -> NDArray[np.bool_]:
    """Return which pixels of (…) are not void.

    Raises ValueError for a label other than 0, 1 and void, and where a pixel that counts has NaN.
    """
    counted = anomaly != void
    if np.count_nonzero(counted) != np.count_nonzero(anomaly == 0) + np.count_nonzero(anomaly == 1):
        examples = np.unique(anomaly[counted & (anomaly != 0) & (anomaly != 1)])[:5].tolist()
        allowed = f"0 (normal), 1 (anomaly) and {void} (void)"
        raise ValueError(f"anomaly holds {examples}; allowed are {allowed}: remap the labels.")
    if np.isnan(scores.min(initial=0)) and (bad := np.count_nonzero(np.isnan(scores) & counted)):
        fix = f"fix the scorer, or label these pixels {void} to leave them out."
        raise ValueError(f"{bad} of {np.count_nonzero(counted)} scores are NaN; {fix}")
    return counted
