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
from eomt_exp.evaluator.keys import NUM_PAGES, PAGE_BITS, to_keys, to_score
from eomt_exp.evaluator.metrics import of_pixels
from eomt_exp.evaluator.pixel_arrays import counted_pixels, float32_array, integer_array
from eomt_exp.evaluator.ranking import Floats, Ints, PixelCurves, Ranking

CHUNK = 1 << 18  # pixels counted at a time: the temporaries stay in the cache


class PixelCounts:
    """Counts how many anomalous and normal pixels had which score; metrics follow from that.

    The state depends on the pixels alone, never on their order or on how they were sharded:
    merging shards gives the very numbers of one run. Memory: 2**(bits + 4) bytes when full
    (64 MiB by default), and less while few pages are touched.
    """

    def __init__(self, bits: int = 22, void: int = 255) -> None:
        """Hold 2**bits bins; pixels labelled `void` do not count."""
        if not 17 <= bits <= 28:  # 17: one bin for each page there is
            raise ValueError(f"bits must be from 17 to 28, got {bits}; 22 is the default.")
        self.bits, self.void = bits, void
        self.shift = 0  # low bits of a key that all bins ignore
        self._pages = np.empty(0, np.int64)  # in order of discovery
        self._row = np.full(NUM_PAGES, -1, np.int64)  # page -> its index in _pages
        self._bins = np.zeros((1 << bits, 2), np.int64)  # (normal, anomaly); mapped when touched
        self._low, self._high = 1 << 33, -1  # extreme keys seen

    def update(self, scores: np.ndarray | Tensor, anomaly: np.ndarray | Tensor) -> None:
        """Count pixels: scores (…) float, higher = more anomalous; anomaly (…) 0, 1 or void.

        Scores are rounded to float32; -inf and inf are scores like any other, and -0.0 is 0.0.
        Raises ValueError, and counts nothing, where shapes differ, a label is none of the three,
        or a pixel that counts has NaN for a score.
        """
        values, labels = float32_array(scores), integer_array(anomaly)
        if values.shape != labels.shape:
            shapes = f"scores {values.shape} and anomaly {labels.shape}"
            raise ValueError(f"{shapes} must agree; resize the scores to the labels first.")
        keep = counted_pixels(values, labels, self.void)
        values, labels = values[keep], labels[keep]
        labels = labels.astype(np.uint8, copy=False)
        for start in range(0, values.size, CHUNK):
            part = slice(start, start + CHUNK)
            self._count(to_keys(values[part]), labels[part])

    def merge(self, other: PixelCounts) -> None:
        """Add the counts of another shard; exact, and independent of the order."""
        if self.bits != other.bits:
            raise ValueError(f"cannot merge bits={other.bits} into bits={self.bits}; use one.")
        self._add_pages(other._pages)
        per_page = 1 << (PAGE_BITS - self.shift)
        added = other._used().reshape(-1, 1 << (self.shift - other.shift), 2).sum(axis=1)
        pages = self._used().reshape(-1, per_page, 2)  # a view, so that += reaches the bins
        pages[self._row[other._pages]] += added.reshape(-1, per_page, 2)
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)

    def __add__(self, other: PixelCounts) -> PixelCounts:
        total = PixelCounts(self.bits, self.void)
        total.merge(self)
        total.merge(other)
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """Return tensors to save or gather; equal pixels give equal ones, whatever their order."""
        order = np.argsort(self._pages)
        arrays = {
            "bits_low_high": np.array([self.bits, self._low, self._high]),
            "pages": self._pages[order],
            "bins": self._used().reshape(-1, 1 << (PAGE_BITS - self.shift), 2)[order],
        }
        return {name: from_numpy(array) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Become what state_dict() described; what was counted here is dropped."""
        bits, low, high = state["bits_low_high"].tolist()
        fresh = PixelCounts(bits, self.void)
        fresh._add_pages(state["pages"].cpu().numpy())
        fresh._used()[:] = state["bins"].cpu().numpy().reshape(-1, 2)
        fresh._low, fresh._high = low, high
        self.__dict__.update(fresh.__dict__)

    def __getstate__(self) -> dict[str, Any]:
        # To another process go the bins that hold a pixel, not the memory of all of them.
        state = self.state_dict()
        bins = state.pop("bins").numpy().reshape(-1, 2)
        filled = np.flatnonzero(bins.any(axis=1))
        return {"void": self.void, "state": state, "filled": filled, "counts": bins[filled]}

    def __setstate__(self, packed: dict[str, Any]) -> None:
        state = packed["state"]
        bits = int(state["bits_low_high"][0])
        self.__init__(bits, packed["void"])  # type: ignore[misc]
        self._add_pages(state["pages"].numpy())
        self._used()[packed["filled"]] = packed["counts"]
        self._low, self._high = state["bits_low_high"][1:].tolist()

    def results(self) -> dict[str, float]:
        """Return the metrics that metrics.py computes of pixels, and three that need more.

        ap_bound: the AP of the unbinned float32 scores is no further than this from ap
        f1_threshold: score >= f1_threshold reaches f1_star
        positives, negatives: pixels of either kind; without one of them all others are NaN
        """
        negatives, positives = (int(total) for total in self._used().sum(axis=0))
        metrics = of_pixels(None) | dict.fromkeys(("ap_bound", "f1_threshold"), float("nan"))
        if positives and negatives:
            keys, ranking = self.ranking()
            # Scores saturated at either end share a bin with nothing else.
            top = keys + (1 << self.shift) - 1
            mixed = np.maximum(keys, self._low) < np.minimum(top, self._high)
            metrics["ap_bound"] = rank.ap_bound(ranking, mixed)
            metrics["f1_threshold"] = to_score(int(keys[rank.best_f1(ranking)[1]]))
            metrics |= of_pixels(ranking)
        return metrics | {"positives": float(positives), "negatives": float(negatives)}

    def curves(self, points: int = 400) -> PixelCurves:
        """Return about `points` points to plot, see thinned_curves; none where metrics are NaN."""
        if not self._used().any(axis=0).all():
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
        width = PAGE_BITS - self.shift
        order = np.argsort(self._pages)
        bins = self._used().reshape(-1, 1 << width, 2)[order].reshape(-1, 2)
        filled = np.flatnonzero(bins[:, 0] | bins[:, 1])[::-1]  # any(axis=1) takes longer
        numbers = self._pages[order][filled >> width] << width | filled & ((1 << width) - 1)
        return numbers << self.shift, Ranking.of(bins[filled, 1], bins[filled, 0])

    def _count(self, keys: Ints, labels: np.ndarray) -> None:
        pages = keys >> PAGE_BITS
        self._add_pages(pages)
        self._low, self._high = min(self._low, int(keys.min())), max(self._high, int(keys.max()))
        entries = (keys & ((1 << PAGE_BITS) - 1)) >> self.shift
        bins = self._row[pages] << (PAGE_BITS - self.shift) | entries
        np.add.at(self._bins.reshape(-1), bins << 1 | labels, 1)  # faster than bincount: in place

    def _add_pages(self, pages: np.ndarray) -> None:
        """Hold these pages too, and coarsen until all of them fit."""
        touched = np.zeros(NUM_PAGES, bool)
        touched[pages] = True
        new = np.flatnonzero(touched & (self._row < 0))
        shift, total = self.shift, len(self._pages) + len(new)
        while total << (PAGE_BITS - shift) > 1 << self.bits:
            shift += 1
        self._coarsen(shift)
        self._row[new] = np.arange(len(self._pages), total)
        self._pages = np.append(self._pages, new)

    def _coarsen(self, shift: int) -> None:
        """Let bins ignore `shift` low bits; new pages can only raise it, so no order matters."""
        if shift == self.shift:
            return
        used = self._used()
        sums = used.reshape(-1, 1 << (shift - self.shift), 2).sum(axis=1)
        used[: len(sums)], used[len(sums) :] = sums, 0
        self.shift = shift

    def _used(self) -> Ints:
        """Return a view of the bins in use, (pages * bins per page, 2)."""
        return self._bins[: len(self._pages) << (PAGE_BITS - self.shift)]
