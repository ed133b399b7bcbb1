"""Count scores image by image on one grid of bins, so that images can be drawn again.

Numbers over a data set are as uncertain as its few images are different: pixels of one image rise
and fall together, hence images, not pixels, are what to resample (Efron, Annals of Statistics
1979). With counts per image a resample is a weighted sum, and a thousand of them a matrix product.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy, tensor

from eomt_exp.evaluator.metrics import METRICS, flagged
from eomt_exp.evaluator.pixel_arrays import KeyedPixels
from eomt_exp.evaluator.ranking import Floats, Ints, Ranking

BITS = 18  # of the counts of one image, before they join the grid: the finest that it can be
CHUNK = 1 << 20  # numbers in one temporary of pooled(): 8 MiB


class _Image(NamedTuple):
    bins: Ints  # (G,) key >> shift, rising
    counts: NDArray[np.int32]  # (2, G) normal, anomaly
    metrics: Floats  # (M,) those with the flag `image`, of 2**BITS bins


class ImageCounts:
    """Counts each image's anomalous and normal pixels in each of at most max_bins bins.

    A bin is all scores with the same high bits of their key (keys.py). The grid is the finest that
    holds all images, hence a matter of the set of images alone, never of their order or of shards.
    Memory: up to 16 bytes per bin and image. PixelCounts has the bins for the numbers to report;
    these are for their spread. AP differs by less than 1e-3 for most scorers, but by more where a
    few pixels spread wide around a core that is narrow.
    """

    def __init__(self, max_bins: int = 8192, void: int = 255) -> None:
        """Hold `max_bins` over all images together; pixels labelled `void` do not count."""
        if max_bins < 2:
            raise ValueError(f"max_bins must be at least 2, got {max_bins}; 8192 is the default.")
        self.max_bins, self.void = max_bins, void
        self._shift = 0  # low bits of a key that all bins ignore
        self._grid = np.empty(0, np.int64)  # the bins that any image touches, rising
        self._images: dict[str, _Image] = {}

    @property
    def names(self) -> list[str]:
        """Return the names of the images counted, sorted."""
        return sorted(self._images)

    def update(self, name: str, scores: np.ndarray | Tensor, anomaly: np.ndarray | Tensor) -> None:
        """Count an image: scores (…) float, higher = more anomalous; anomaly (…) 0, 1 or void.

        Raises ValueError, and counts nothing, for a name that is counted already and wherever
        KeyedPixels does.
        """
        self.add(name, KeyedPixels(scores, anomaly, self.void))

    def add(self, name: str, pixels: KeyedPixels) -> None:
        """Count an image whose keys are made already; ValueError for a name that is counted."""
        self._check_new([name])
        own, bins, counts = pixels.filled(BITS)
        shift = max(own, self._shift)
        image = _Image(bins, counts.astype(np.int32), _metrics(counts))
        image = _coarse(image, shift - own)
        self._add_images({name: image}, image.bins, shift)

    def merge(self, other: ImageCounts) -> None:
        """Add the images of another shard; ValueError where a name is in both."""
        if self.max_bins != other.max_bins:
            sizes = f"max_bins={other.max_bins} into max_bins={self.max_bins}"
            raise ValueError(f"cannot merge {sizes}; use one.")
        self._check_new(other.names)
        self._add_images(other._images, other._grid, other._shift)

    def state_dict(self) -> dict[str, Tensor]:
        """Return tensors to save or gather; equal images give equal ones, whatever their order."""
        images = [self._images[name] for name in self.names]
        names = np.frombuffer(json.dumps(self.names).encode(), np.uint8)
        arrays = {
            "names": names.copy(),  # JSON in UTF-8
            "sizes": np.array([len(image.bins) for image in images], np.int64),
            "bins": np.concatenate([self._grid[:0], *(image.bins for image in images)]),
            "counts": np.concatenate([np.empty((0, 2), np.int32), *(i.counts.T for i in images)]),
            "metrics": self._metrics_of_images(),
        }
        grid = {"max_bins_shift": tensor([self.max_bins, self._shift])}
        return grid | {name: from_numpy(array) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Become what state_dict() described; what was counted here is dropped."""
        arrays = {name: value.cpu().numpy() for name, value in state.items()}
        max_bins, shift = arrays["max_bins_shift"].tolist()
        ends = arrays["sizes"].cumsum()[:-1]
        parts = (np.split(arrays[key], ends) for key in ("bins", "counts"))
        names = json.loads(arrays["names"].tobytes())
        fresh = ImageCounts(max_bins, self.void)
        if names:
            columns = zip(names, *parts, arrays["metrics"], strict=True)
            images = {n: _Image(bins, counts.T, found) for n, bins, counts, found in columns}
            fresh._add_images(images, arrays["bins"], shift)
        self.__dict__.update(fresh.__dict__)

    def metrics(self) -> dict[str, NDArray]:
        """Return metrics as PixelCounts has them, positives and negatives; (N,) as names.

        The metrics are those of each image by itself, NaN where it has but one kind of pixels.
        """
        images = [self._images[name] for name in self.names]
        totals = np.array([i.counts.sum(axis=1, dtype=np.int64) for i in images]).reshape(-1, 2)
        pixels = {"positives": totals[:, 1], "negatives": totals[:, 0]}
        return dict(zip(flagged("image"), self._metrics_of_images().T, strict=True)) | pixels

    def ap(self, name: str) -> float:
        """Return the AP of one image by itself."""
        return float(self._images[name].metrics[flagged("image").index("ap")])

    def pooled(self, weights: NDArray, metrics: Sequence[str] = ()) -> dict[str, Floats]:
        """Measure all pixels together when image n, in the order of names, counts weights[n].

        (N,) or (B, N) -> () or (B,) each; NaN where no positive or no negative has any weight.
        `metrics` are some of those with the flag `interval`, or () for all of them.
        """
        allowed = flagged("interval")
        if unknown := [metric for metric in metrics if metric not in allowed]:
            raise ValueError(f"metrics holds {unknown}; allowed are {', '.join(allowed)}.")
        weights = np.asarray(weights, np.float64)
        if weights.ndim not in (1, 2) or weights.shape[-1] != len(self._images):
            wanted = f"(N,) or (B, N) with N = {len(self._images)} images"
            raise ValueError(f"weights must be {wanted}, got {weights.shape}.")
        rows = np.atleast_2d(weights)
        found = {metric: np.full(len(rows), np.nan) for metric in metrics or allowed}
        step = max(CHUNK // max(len(self._grid), 1), 1)
        for start in range(0, len(rows) if len(self._grid) else 0, step):
            ranking = Ranking.of(*self._weighted(rows[start : start + step], step))
            defined = (ranking.tp[:, -1] > 0) & (ranking.fp[:, -1] > 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                for metric, column in found.items():
                    values = METRICS[metric].pixels(ranking)  # type: ignore[misc]
                    column[start : start + step] = np.where(defined, values, np.nan)
        return {metric: column.reshape(weights.shape[:-1]) for metric, column in found.items()}

    def _weighted(self, rows: Floats, step: int) -> tuple[Floats, Floats]:
        """(b, N) -> positives and negatives (b, G), highest score first, `step` images at a time.

        Products of whole numbers are exact in float64: no order of summation can show.
        """
        names, totals = self.names, np.zeros((2, len(rows), len(self._grid)))
        for start in range(0, len(names), step):
            some = [self._images[name] for name in names[start : start + step]]
            dense = np.zeros((2, len(some), len(self._grid)))
            for row, image in enumerate(some):
                dense[:, row, np.searchsorted(self._grid, image.bins)] = image.counts
            totals += rows[:, start : start + step] @ dense
        return totals[1, :, ::-1], totals[0, :, ::-1]

    def _metrics_of_images(self) -> Floats:
        rows = [self._images[name].metrics for name in self.names]
        return np.array(rows).reshape(-1, len(flagged("image")))

    def _check_new(self, names: Sequence[str]) -> None:
        if again := [name for name in names if name in self._images]:
            raise ValueError(f"{again[:5]} counted already; give every image a name of its own.")

    def _add_images(self, images: dict[str, _Image], grid: Ints, shift: int) -> None:
        """Hold these images too, and coarsen until all together touch few enough bins."""
        common = max(self._shift, shift)
        both = [self._grid >> (common - self._shift), grid >> (common - shift)]
        union = _distinct(np.sort(np.concatenate(both), kind="stable"))  # fast on rising runs
        while len(union) > self.max_bins:
            union, common = _distinct(union >> 1), common + 1
        if common > self._shift:
            for name, image in self._images.items():
                self._images[name] = _coarse(image, common - self._shift)
        for name, image in images.items():
            self._images[name] = _coarse(image, common - shift)
        self._grid, self._shift = union, common


def _distinct(rising: Ints) -> Ints:
    return rising[np.diff(rising, prepend=-1) > 0]


def _coarse(image: _Image, by: int) -> _Image:
    """Put the image into bins that ignore `by` more bits."""
    if not by or not len(image.bins):
        return image
    bins = image.bins >> by
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    counts = np.add.reduceat(image.counts, starts, axis=1, dtype=np.int32)
    return image._replace(bins=bins[starts], counts=counts)


def _metrics(counts: Ints) -> Floats:
    """(2, G) -> (M,) those with the flag `image`; NaN without a positive or without a negative."""
    if not counts.any(axis=1).all():
        return np.full(len(flagged("image")), np.nan)
    ranking = Ranking.of_floats(counts[:, ::-1])
    return np.array([METRICS[name].pixels(ranking) for name in flagged("image")])  # type: ignore[misc]
