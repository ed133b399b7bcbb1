"""Measure any number of score maps pixel by pixel in constant memory: count instead of sort.

A score becomes an integer that sorts the same way, its key (keys.py). The high bits of a key name
a *page*, the low 16 an entry of it. Only pages that scores touch are held, and all of them at the
finest resolution that fits 2**bits bins: scores of a narrow range are counted exactly, and those
of a sigmoid to about 2**-16 of their distance to 0 and to 1, whichever is less. The hard case is a
tight core with a wide tail; `ap_bound` shows it, and more bits help.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from eomt_exp.evaluator import operating_points
from eomt_exp.evaluator import ranking as rank
from eomt_exp.evaluator.keys import NUM_PAGES, PAGE_BITS
from eomt_exp.evaluator.metrics import of_pixels
from eomt_exp.evaluator.pixel_arrays import KeyedPixels, filled_bins, finest_shift
from eomt_exp.evaluator.ranking import Counts, Floats, Ints, PixelCurves, Ranking

_COUNTED_HERE = ("ap_bound", "f1_threshold", "f1_margin")  # they need scores, not their order alone


class PixelCounts:
    """Counts how many anomalous and normal pixels had which score; metrics follow from that.

    The state depends on the pixels alone, never on their order or on how they were sharded:
    merging shards gives the very numbers of one run. Memory: 2**(bits + 3) bytes when full
    (32 MiB by default), less while few pages are touched, and twice that from 2**31 pixels on.
    """

    def __init__(self, bits: int = 22, void: int = 255) -> None:
        """Hold 2**bits bins; pixels labelled `void` do not count."""
        if not 17 <= bits <= 28:  # 17: one bin for each page there is
            raise ValueError(f"bits must be from 17 to 28, got {bits}; 22 is the default.")
        self.bits, self.void = bits, void
        self.shift = 0  # low bits of a key that all bins ignore
        self._pages = np.empty(0, np.int64)  # in order of discovery
        self._row = np.full(NUM_PAGES, -1, np.int32)  # page -> its index in _pages
        # Normal, then anomaly; mapped when touched. int64 once there are pixels to need it.
        self._bins: Counts = np.zeros((2, 1 << bits), np.int32)
        self._pixels = 0
        self._low, self._high = 1 << 33, -1  # extreme keys seen
        self._key_bits = 0  # that any key seen has set, counted from that of 0

    def update(self, scores: np.ndarray | Tensor, anomaly: np.ndarray | Tensor) -> None:
        """Count pixels: scores (…) float, higher = more anomalous; anomaly (…) 0, 1 or void.

        Raises ValueError, and counts nothing, where KeyedPixels does.
        """
        self.add(KeyedPixels(scores, anomaly, self.void))

    def add(self, pixels: KeyedPixels) -> None:
        """Count pixels whose keys are made already."""
        if not pixels.size:
            return
        self._add_pages(pixels.pages, pixels.size)
        self._low, self._high = min(self._low, pixels.low), max(self._high, pixels.high)
        self._key_bits |= pixels.key_bits
        bins = from_numpy(self._bins.reshape(-1))
        one = bins.new_ones(1)
        for places in pixels.places(self._row, self.shift, self.bits):
            # In place: few bins are met. Not np.add.at, which would keep other threads waiting.
            bins.scatter_add_(0, from_numpy(places), one.expand(len(places)))

    def merge(self, other: PixelCounts) -> None:
        """Add the counts of another shard; exact, and independent of the order."""
        if self.bits != other.bits:
            raise ValueError(f"cannot merge bits={other.bits} into bits={self.bits}; use one.")
        self._add_pages(other._pages, other._pixels)
        per_page = 1 << (PAGE_BITS - self.shift)
        added = other._used().reshape(2, -1, 1 << (self.shift - other.shift)).sum(axis=2)
        pages = self._used().reshape(2, -1, per_page)  # a view, so that += reaches the bins
        pages[:, self._row[other._pages]] += added.reshape(2, -1, per_page)
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)
        self._key_bits |= other._key_bits

    def __getstate__(self) -> dict[str, Any]:
        # To another process go the bins that hold a pixel, not the memory of all of them.
        used = self._used()
        filled = np.flatnonzero((used[0] | used[1]).astype(bool))
        return self.__dict__ | {"_bins": (filled, used.take(filled, axis=1))}

    def __setstate__(self, packed: dict[str, Any]) -> None:
        filled, counts = packed["_bins"]
        self.__dict__.update(packed, _bins=np.zeros((2, 1 << packed["bits"]), counts.dtype))
        self._bins[:, filled] = counts

    def results(self) -> dict[str, float]:
        """Return the metrics that metrics.py computes of pixels, and those that need more.

        ap_bound: the AP of the unbinned float32 scores is no further than this from ap; 0 where
            they are of half precision, or within a range that has a bin for each float
        f1_threshold: score >= f1_threshold reaches f1_star
        f1_margin: the width of the longest range of thresholds with F1 above 0.7
        positives, negatives: pixels of either kind; without one of them all others are NaN
        """
        negatives, positives = self._used().sum(axis=1, dtype=np.int64).tolist()
        metrics = of_pixels(None) | dict.fromkeys(_COUNTED_HERE, float("nan"))
        if positives and negatives:
            keys, ranking = self.ranking()
            # Keys are a step apart at least: those of half precision differ in high bits only.
            step = self._key_bits & -self._key_bits
            top = keys + (1 << self.shift) - step
            # Scores saturated at either end share a bin with nothing else.
            mixed = np.maximum(keys, self._low) < np.minimum(top, self._high)
            metrics["ap_bound"] = rank.ap_bound(ranking, mixed)
            metrics["f1_threshold"] = operating_points.f1_threshold(keys, ranking)
            metrics["f1_margin"] = operating_points.f1_margin(keys, ranking)
            metrics |= of_pixels(ranking)
        return metrics | {"positives": float(positives), "negatives": float(negatives)}

    def f1_threshold(self) -> float:
        """Return that of results() alone, in half the time."""
        return operating_points.f1_threshold(*self.ranking())

    def curves(self, points: int = 400) -> PixelCurves:
        """Return about `points` points to plot, see thinned_curves; none where metrics are NaN."""
        if not self._used().any(axis=1).all():
            return PixelCurves(*(np.empty(0) for _ in PixelCurves._fields))
        return rank.thinned_curves(self.ranking()[1], points)

    def tnr_table(
        self, tprs: Sequence[float] = (0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
    ) -> list[tuple[float, float, float]]:
        """List (tpr, TNR, threshold) at the first threshold, from above, that reaches each tpr.

        TNR and threshold are NaN where metrics are; ValueError for a tpr outside (0, 1].
        """
        return operating_points.tnr_table(*self.ranking(), tprs)

    def threshold_at_fpr(self, fpr: float) -> float:
        """Return the lowest t (to the bin) for which at most `fpr` of the normal pixels are >= t.

        It needs no anomalies: the normal pixels of a validation set do. -inf where all of them may
        pass, NaN without a normal pixel or where too many have inf; ValueError outside [0, 1].
        """
        return operating_points.threshold_at_fpr(*self.ranking(), 1 << self.shift, fpr)

    def at_threshold(self, threshold: float) -> dict[str, float]:
        """Return tpr, fpr, precision and f1 when pixels with score >= threshold are anomalies.

        The bin that holds the threshold counts as a whole: exact for every threshold that this
        class returns. tpr needs a positive and fpr a negative, the others both, and precision a
        pixel that passes; else NaN. ValueError for a threshold of NaN.
        """
        return operating_points.at_threshold(*self.ranking(), 1 << self.shift, threshold)

    def histogram(self, bins: int = 60) -> tuple[Floats, Floats, Floats]:
        """Return edges (bins + 1), and the shares of normal and of anomalous pixels per bin.

        Even bins between the lower 0.1 % and the upper 99.9 % quantile of the two kinds, all
        finite; what lies beyond is in the bin at that end. Shares sum to 1, or are 0 without a
        pixel.
        """
        return operating_points.histogram(*self.ranking(), bins)

    def ranking(self) -> tuple[Ints, Ranking]:
        """Return the lowest key (G,) of each bin with a pixel, and those bins, highest first."""
        bins, counts = self.filled()
        return bins[::-1] << self.shift, Ranking.of_floats(counts[:, ::-1])

    def filled(self) -> tuple[Ints, Counts]:
        """Return key >> shift (G,) of the bins with a pixel, rising; (2, G) normal, anomalous."""
        return filled_bins(self._used(), self._pages, self.shift)

    def _add_pages(self, pages: Ints, pixels: int) -> None:
        """Make room for this many pixels on these pages, and coarsen until all pages fit."""
        self._pixels += pixels
        if self._pixels > np.iinfo(self._bins.dtype).max:
            self._bins = self._bins.astype(np.int64)
        new = pages[self._row[pages] < 0]
        total = len(self._pages) + len(new)
        self._coarsen(finest_shift(total, self.bits))
        self._row[new] = np.arange(len(self._pages), total)
        self._pages = np.append(self._pages, new)

    def _coarsen(self, shift: int) -> None:
        """Let bins ignore `shift` low bits; new pages can only raise it, so no order matters."""
        while self.shift < shift:
            used = self._used()
            half = used.shape[1] // 2
            used[:, :half], used[:, half:] = used[:, ::2] + used[:, 1::2], 0
            self.shift += 1

    def _used(self) -> Ints:
        """Return a view of the bins in use, (2, pages * bins per page)."""
        return self._bins[:, : len(self._pages) << (PAGE_BITS - self.shift)]
