"""Measure pixels on the curve of SegmentMeIfYouCan's tool, whose digits differ from the exact ones.

The tool (Chan et al., NeurIPS 2021; github.com/SegmentMeIfYouCan/road-anomaly-benchmark, metrics/
pixel_classification.py and pixel_classification_curves.py as of August 2023) cuts each image at up
to 384 quantiles of its anomalous and as many of its normal scores, and ranks the bins of all images
by their lower ends. Bins of several images overlap, so its AP is off by some 1e-3.

One slip of that version is not repeated: having joined equal thresholds of the curve, it looks that
of F1* up in the list of all of them, which is one far too high (a PPV near 1 and a low sIoU, which
no entry of the leaderboard shows). Here, as in versions before, it is the one F1* belongs to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eomt_exp.evaluator.keys import to_keys
from eomt_exp.evaluator.metrics import METRICS
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.evaluator.pixel_arrays import KeyedPixels
from eomt_exp.evaluator.ranking import Floats, Ints, Ranking, best_f1

QUANTILES = 384  # of each kind of pixels
ON_THE_CURVE = ("ap", "auroc", "fpr95", "f1_star", "tnr_at_tpr95")  # all others are exact
KEY_BITS = 17  # enough for all scores of half precision to have a bin each
_POSITIVE = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
HALVES = np.concatenate([-_POSITIVE[::-1], np.zeros(1, np.float16), _POSITIVE])  # all finite ones
HALF_KEYS = to_keys(HALVES.astype(np.float32))


class ToolCounts(PixelCounts):
    """Counts as PixelCounts does, one image an update, and has some metrics as the tool has them.

    Scores must be of half precision, as the tool's files hold them. Where several images share the
    very highest score, the tool's AP depends on the order in which it comes to them, by a little.
    """

    def __init__(self, bits: int = 22, void: int = 255) -> None:
        super().__init__(bits, void)
        self._images: list[tuple[Floats, Ints]] = []  # lower ends of bins (n,), pixels (2, n)

    def add(self, pixels: KeyedPixels) -> None:
        """Count an image; ValueError where a score is infinite or not of half precision."""
        if not pixels.size:
            return
        shift, bins, counts = pixels.filled(KEY_BITS)
        places = np.searchsorted(HALF_KEYS, bins << shift)
        if not np.array_equal(HALF_KEYS.take(places, mode="clip"), bins << shift):
            fix = "round them to float16 first, or measure the exact curve (protocol.curve=exact)"
            raise ValueError(f"the tool's curve needs finite scores of half precision; {fix}.")
        super().add(pixels)
        self._images.append(_binned(HALVES[places], counts))

    def merge(self, other: PixelCounts) -> None:
        """Add the images of another shard; exact, and independent of the order."""
        assert isinstance(other, ToolCounts)
        super().merge(other)
        self._images = self._images + other._images

    def results(self) -> dict[str, float]:
        """Return the metrics of PixelCounts, those ON_THE_CURVE and f1_threshold as the tool does.

        ap_bound still says how far the AP of the scores themselves can be.
        """
        exact, found = super().results(), self._of_tool()
        if found:
            found["ap_bound"] = exact["ap_bound"] + abs(exact["ap"] - found["ap"])
        return exact | found

    def f1_threshold(self) -> float:
        """Return that of results() alone."""
        return self._of_tool().get("f1_threshold", float("nan"))

    def _of_tool(self) -> dict[str, float]:
        """Return what the tool computes of its curve; {} without a positive or a negative."""
        if not self._used().any(axis=1).all():
            return {}
        ends, counts = (np.concatenate(part, axis=-1) for part in zip(*self._images, strict=True))
        # By their pixels too: the order of images must not matter.
        order = np.lexsort((*counts, ends))[::-1]
        ends, passed = ends[order], counts[:, order].cumsum(axis=1)
        # Bins with one lower end are one point, but the very first bin is one by itself as well.
        points = np.concatenate([[0], np.flatnonzero(np.diff(ends)), [len(ends) - 1]])
        ranking = Ranking.of_floats(np.diff(passed[:, points], prepend=0))
        found = {name: float(METRICS[name].pixels(ranking)) for name in ON_THE_CURVE}  # type: ignore[misc]
        # The tool compares in half precision (NumPy 1.23, which it pins).
        return found | {"f1_threshold": float(np.float16(ends[points[best_f1(ranking)[1]]]))}


def _binned(scores: NDArray[np.float16], counts: Ints) -> tuple[Floats, Ints]:
    """Cut an image's scores (G,), rising, with their pixels (2, G) into the tool's bins.

    Return the bins' lower ends (n,) and pixels (2, n).
    """
    upto = counts.cumsum(axis=1)
    margin = max(0.01 * float(scores[-1] - scores[0]), 0.01)
    outer = [float(scores[0]) - margin, float(scores[-1]) + margin]
    cuts = [_quantiles(scores, row) for row in upto if row[-1]]
    ends = np.unique(np.concatenate([outer, *cuts]))
    upto = np.concatenate([np.zeros((2, 1), np.int64), upto], axis=1)
    return ends[:-1], np.diff(upto[:, np.searchsorted(scores, ends)])


def _quantiles(scores: NDArray[np.float16], upto: Ints) -> Floats:
    """Return what np.quantile gives for pixels of which upto (G,) score at most scores (G,)."""
    last = int(upto[-1]) - 1
    places = last * np.linspace(0, 1, min(QUANTILES, last + 1))
    before = np.floor(places)
    ranks = (before, np.minimum(before + 1, last))
    low, high = (scores[np.searchsorted(upto, rank, side="right")] for rank in ranks)
    step, share = high - low, places - before  # the step in half precision, as NumPy has it
    return np.where(share < 0.5, low + step * share, high - step * (1 - share))
