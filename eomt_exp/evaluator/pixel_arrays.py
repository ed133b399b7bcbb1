"""Turn scores and labels into arrays and keys, and refuse those that cannot be counted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, bincount, from_numpy

from eomt_exp.evaluator.keys import MODERATE, PAGE_BITS, TOP, ZERO, ZERO_PAGE, centred_keys
from eomt_exp.evaluator.ranking import Ints

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
        values, labels = values.ravel(), labels.ravel()
        largest = max(-values.min(initial=0), values.max(initial=0))
        self._codes = np.empty(values.size, np.int32 if largest < MODERATE else np.int64)
        for part in self._parts():
            self._codes[part] = centred_keys(values[part], self._codes.dtype.type)
        self.low, self.high = TOP, 0  # extreme keys
        self.key_bits = int(np.bitwise_or.reduce(self._codes))  # that any key - ZERO has set
        self.pages = np.empty(0, np.int64)  # (P,) rising
        if values.size:
            self._encode(labels, int(self._codes.min()), int(self._codes.max()))

    @property
    def size(self) -> int:
        """Return how many pixels count."""
        return self._codes.size

    def _encode(self, labels: np.ndarray, low: int, high: int) -> None:
        """Turn centred keys into codes: label, index in `pages` and low bits, high bits first."""
        self.low, self.high = low + ZERO, high + ZERO
        first, span = low >> PAGE_BITS, (high >> PAGE_BITS) - (low >> PAGE_BITS) + 1
        pages = (from_numpy((self._codes[part] >> PAGE_BITS) - first) for part in self._parts())
        found = np.flatnonzero(sum(bincount(part, minlength=span) for part in pages))
        self.pages = found + (first + ZERO_PAGE)
        if len(found) >= 1 << (30 - PAGE_BITS):
            self._codes = self._codes.astype(np.int64)
        kind = self._codes.dtype
        moved = np.zeros(span, kind)  # what a page's keys change by; int32 may wrap around and back
        moved[found] = (np.arange(len(found)) - (found + first)) << PAGE_BITS
        for part in self._parts():
            codes = self._codes[part]
            if len(found) == span:
                codes += moved[0]
            else:
                codes += moved.take((codes >> PAGE_BITS) - first)
            codes += labels[part].astype(kind) * kind.type(len(found) << PAGE_BITS)

    def places(self, row: NDArray, shift: int, bits: int) -> Iterator[NDArray[np.int64]]:
        """Yield, part by part, each pixel's index in a flat array (label, 2**bits bins).

        A bin is the row of its page, row (NUM_PAGES,), and the rest of key >> shift.
        """
        rows = np.stack([row[self.pages], row[self.pages] + (1 << (bits + shift - PAGE_BITS))])
        offset = (rows.ravel() - np.arange(rows.size)) << (PAGE_BITS - shift)
        for part in self._parts():
            codes = self._codes[part]
            places = offset.take(codes >> PAGE_BITS)
            places += codes >> shift
            yield places

    def filled(self, bits: int) -> tuple[int, Ints, Ints]:
        """Count in the finest of at most 2**bits bins; return what PixelCounts would have then.

        These are shift, key >> shift (G,) of the bins with a pixel, rising, and (2, G) normal,
        anomalous.
        """
        shift = finest_shift(len(self.pages), bits)
        size = len(self.pages) << (PAGE_BITS - shift)
        counts = bincount(from_numpy(self._codes >> shift), minlength=2 * size).numpy()
        return shift, *filled_bins(counts.reshape(2, size), self.pages, shift)

    def _parts(self) -> Iterator[slice]:
        return (slice(start, start + CHUNK) for start in range(0, self.size, CHUNK))


def filled_bins(counts: NDArray, pages: Ints, shift: int) -> tuple[Ints, NDArray]:
    """Return key >> shift (G,) of the bins with a pixel, rising, and their counts (2, G).

    counts (2, bins of all pages) hold the pages one after another, as pages (P,) does.
    """
    width, order, rank = PAGE_BITS - shift, np.argsort(pages), np.arange(len(pages))
    is_filled = (counts[0] | counts[1]).astype(bool)  # of bool flatnonzero is much faster
    filled = np.flatnonzero(is_filled.reshape(-1, 1 << width)[order])
    page = filled >> width
    keys = filled + ((pages[order] - rank) << width).take(page)
    return keys, counts.take(filled + ((order - rank) << width).take(page), axis=1)


def finest_shift(pages: int, bits: int) -> int:
    """Return how many low bits of a key must be ignored for these pages to fit 2**bits bins."""
    return max(PAGE_BITS - bits + (pages - 1).bit_length(), 0)


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
