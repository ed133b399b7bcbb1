"""Fuses the score maps of several detectors into one, s = sum_i w_i g_i(s_i), pixel by pixel.

The members may be of different families and see the image at different sizes: their maps are all
in its own. g takes scores into the space where they are added: as they are ("raw"), to their ranks
in the image, or to the share of normal pixels that score lower ("cdf"). The last is fitted, and
says the same of every member: how rare a score is where nothing is anomalous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import tee
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eomt_exp.contracts import VOID, LabelledImage, UserError
from eomt_exp.engine.detector import AnyDetector, Detection
from eomt_exp.evaluator.keys import TOP, to_keys
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.evaluator.ranking import average_precision

Map = NDArray[Any]  # (H, W) or (N,) scores
Space = Callable[[Map], Map]

NUM_KNOTS = 1000  # of a fitted space, evenly, and as many over the decades
STEPS = 21  # of a weight that is fitted: 0, 0.05, …, 1
PIXELS = 20_000  # of an image, that weights are fitted on at most


def raw(scores: Map) -> Map:
    """Leave scores as they are."""
    return scores


def ranks(scores: Map) -> Map:
    """Return the rank of each pixel among those of its image, over their number: in (0, 1].

    Equal scores share the mean of their ranks.
    """
    order = np.argsort(scores, axis=None)
    rising = scores.ravel()[order]
    starts = np.flatnonzero(np.append(True, rising[1:] != rising[:-1]))
    ends = np.append(starts[1:], rising.size)
    found = np.empty(rising.size)
    found[order] = np.repeat((starts + 1 + ends) / (2 * rising.size), ends - starts)
    return found.reshape(scores.shape)


class NormalScores(NamedTuple):
    """Knows how one member scores normal pixels: knots of their distribution, between which it
    runs straight in the keys of evaluator/keys.py."""

    keys: list[int]  # rising
    above: list[float]  # share of normal pixels with at least this key; falling from 1 to 0

    @classmethod
    def of(cls, counts: PixelCounts) -> NormalScores:
        """Fit it to the counts of normal pixels.

        Each share is (n + 1) / (N + 2), Laplace's rule, so that a score above all that were
        counted still differs from a higher one.
        """
        keys, ranking = counts.ranking()  # highest first
        above = (ranking.fp + 1) / (ranking.fp[-1] + 2)
        # As many knots in each decade besides: anomalies score where few normal pixels do.
        ends = above[0], above[-1], NUM_KNOTS
        wanted = np.searchsorted(above, np.append(np.linspace(*ends), np.geomspace(*ends)))
        chosen = np.unique(wanted.clip(max=len(above) - 1))[::-1]
        return cls([0, *keys[chosen].tolist(), TOP], [1.0, *above[chosen].tolist(), 0.0])

    def share_below(self, scores: Map) -> Map:
        """Return the share of normal pixels that score lower, less 1, which keeps all scores apart.

        Less 1 because floats are finest near 0, and anomalies score where hardly a normal one does.
        """
        found: Map = -np.interp(to_keys(scores), self.keys, self.above)
        return found


SPACES: dict[str, Space] = {"raw": raw, "rank": ranks}  # those that need no fit


class EnsembleDetector(AnyDetector):
    """Scores images with several detectors, each by the score that it goes by.

    It has one score, called `score`, and no known classes: evidence of different families has no
    common scale. Of runs: `EnsembleDetector([load_detector(one) for one in runs], [ranks] * 2)`.
    """

    finds_classes = False

    def __init__(
        self,
        members: Sequence[AnyDetector],
        spaces: Sequence[Space],
        weights: Sequence[float] | None = None,
        score: str = "ensemble",
    ) -> None:
        """Take a space and a weight of each member, `weights` as normalised() does."""
        shares = normalised(weights, len(members))
        # A member of no weight is not asked: 0 times inf would be no number.
        self._members = [part for part in zip(members, spaces, shares, strict=True) if part[2] > 0]
        self.scorers = {score: self._members}
        self.score = score
        self.image_size = members[0].image_size
        self.batch_size = members[0].batch_size

    def stream(
        self, images: Iterable[np.ndarray], only: Sequence[str] | None = None, known: bool = True
    ) -> Iterator[Detection]:
        """Yield one Detection an image, in order, always of its one score and no classes."""
        shares = [share for *_, share in self._members]
        for maps in self.maps(images):
            yield Detection({self.score: fused(maps, shares)}, None)

    def maps(self, images: Iterable[np.ndarray]) -> Iterator[list[Map]]:
        """Yield the map (H, W) of each member that has a weight, in its space, image by image.

        Each image is read once; it waits until the last member has had it.
        """
        streams = [
            member.stream(copy, only=(member.score,), known=False)
            for (member, *_), copy in zip(
                self._members, tee(images, len(self._members)), strict=True
            )
        ]
        for found in zip(*streams, strict=True):
            yield [
                space(one.scores[member.score])
                for (member, space, _), one in zip(self._members, found, strict=True)
            ]

    def sampled(
        self, items: Iterator[LabelledImage], advance: Callable[[], object] = lambda: None
    ) -> Iterator[tuple[Map, Map]]:
        """Yield maps (M, N) and anomaly (N,) of at most PIXELS of each image, evenly spaced.

        Neighbours score much alike, so that the AP hardly differs from that of all pixels.
        """
        items, again = tee(items)
        for item, found in zip(items, self.maps(one.image for one in again), strict=True):
            inside = np.flatnonzero(item.anomaly != VOID)
            inside = inside[:: max(1, -(-len(inside) // PIXELS))]
            maps = np.stack([one.ravel()[inside] for one in found]).astype(np.float32)
            yield maps, item.anomaly.ravel()[inside]
            advance()


def normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return weights that sum to 1, equal ones for None. UserError for what cannot be weights."""
    if weights is None:
        return [1 / count] * count
    if len(weights) != count or min(weights) < 0 or not sum(weights) > 0:
        raise UserError(
            f"fusion.weights={list(weights)} must be {count} numbers of at least 0, one a member, "
            "and not all 0; null weighs all alike, fit fits them."
        )
    return [weight / sum(weights) for weight in weights]


def fused(maps: Iterable[Map], weights: Sequence[float]) -> NDArray[np.float32]:
    """Add weighted maps of one shape."""
    total = sum(weight * one.astype(np.float64) for weight, one in zip(weights, maps, strict=True))
    return np.asarray(total, np.float32)


def fitted_weights(maps: Map, anomaly: Map, bits: int = 22) -> tuple[list[float], float]:
    """Return the weights of maps (M, N) whose fused scores have the highest AP, and that AP.

    From equal weights on, one member after the other tries each share of 0, 0.05, …, 1, while the
    others keep their proportions, until nothing is better. Of two members it is the whole grid.
    UserError where the truth, anomaly (N,), is of one kind.
    """
    if not 0 < (anomaly == 1).sum() < anomaly.size:
        raise UserError(
            "fusion.weights=fit needs normal and anomalous pixels in benchmark@tuning=…; "
            "pasted_validation has both."
        )

    def ap(weights: NDArray[np.float64]) -> float:
        counts = PixelCounts(bits)
        counts.update(fused(maps, weights.tolist()), anomaly)
        return float(average_precision(counts.ranking()[1]))

    count = len(maps)
    best = np.full(count, 1 / count)
    highest, before = ap(best), -1.0
    while highest > before:
        before = highest
        for own in np.eye(count):
            others = best * (1 - own)
            others = (others if others.any() else 1 - own) / (others.sum() or count - 1)
            for share in np.linspace(0, 1, STEPS):
                tried = share * own + (1 - share) * others
                if (found := ap(tried)) > highest:
                    best, highest = tried, found
    return best.round(4).tolist(), highest
