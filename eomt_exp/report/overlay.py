"""Draws scores as heat over a photograph, fast enough for every frame of a video."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eomt_exp.report.figures import HEAT

_LEVELS = 256
_GREY = np.array([77, 150, 29], np.uint16)  # luma of BT.601 in 256ths


class HeatScale(NamedTuple):
    """Holds the scores at the ends of the colours, the same for all pictures of a command."""

    low: float
    high: float

    @classmethod
    def of(cls, scores: list[np.ndarray], threshold: float | None) -> HeatScale:
        """Take the 1st and the 99.5th percentile, and the threshold in between."""
        values = np.concatenate([score[np.isfinite(score)].ravel() for score in scores])
        low, high = np.percentile(values, (1, 99.5)).tolist() if values.size else (0.0, 1.0)
        if threshold is not None:
            low, high = min(low, threshold), max(high, threshold)
        return cls(low, high if high > low else low + 1.0)

    def levels(self, score: np.ndarray) -> np.ndarray:
        """Return (H, W) uint8, 0 at the low end and 255 at the high one; NaN is 0."""
        share = (score - self.low) * (_LEVELS / (self.high - self.low))
        levels: np.ndarray = np.nan_to_num(share, nan=0).clip(0, _LEVELS - 1).astype(np.uint8)
        return levels


def overlay(
    image: np.ndarray, score: np.ndarray, scale: HeatScale, mask: np.ndarray | None = None
) -> np.ndarray:
    """Draw heat over the grey photograph, denser where hotter, and a white line around the mask.

    image (H, W, 3) uint8, score (H, W), mask (H, W) bool -> (H, W, 3) uint8.
    """
    levels = scale.levels(score)
    grey = (image @ _GREY) >> 8  # uint16, at most 255
    kept, colours = _tables()
    background = (grey * kept[levels] >> 8).astype(np.uint8)
    panel: np.ndarray = background[..., None] + colours[levels]
    if mask is not None:
        panel[_edges(mask)] = 255
    return panel


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Return by level what is kept of the grey, in 256ths, and the colour that is added."""
    from matplotlib import colormaps

    heat = np.linspace(0, 1, _LEVELS)
    weight = 0.3 + 0.6 * heat
    colours = 255 * colormaps[HEAT](heat)[:, :3] * weight[:, None]
    return (256 * 0.9 * (1 - weight)).astype(np.uint16), colours.astype(np.uint8)


def _edges(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask that touch others, two wide where pictures are large."""
    inside = mask.copy()
    for _ in range(1 + mask.shape[1] // 1000):
        inside[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1]
        inside[1:-1, 1:-1] &= inside[1:-1, :-2] & inside[1:-1, 2:]
    edges: np.ndarray = mask & ~inside
    return edges
