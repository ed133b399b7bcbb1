"""Draws outliers for exposure: smooth blobs in any colour.

The anomalies of the benchmarks (anomalies.py) have other outlines and other patterns.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from eomt_exp.data.synthetic.textures import Bytes, Floats, colour, cut, noise_tile


class Cutout:
    """Holds a square RGBA canvas for an object, in unit coordinates, (0, 0) top left."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rgb: Floats = np.zeros((size, size, 3), np.float32)
        self.alpha: Bytes = np.zeros((size, size), np.uint8)

    def part(self, corners: ArrayLike, paint: Floats, shade: float = 1.0) -> None:
        """Fill a polygon (N, 2) with a colour (3,) or with a pattern (size, size, 3)."""
        mask = np.zeros_like(self.alpha)
        points = np.round(np.asarray(corners, np.float64) * self.size * 16 - 8).astype(np.int32)
        cv2.fillPoly(mask, [points], 255, cv2.LINE_8, 4)
        self._lay(mask, paint, shade)

    def limb(self, joints: ArrayLike, width: float, paint: Floats, shade: float = 1.0) -> None:
        """Draw a stroke with round ends through joints (N, 2), filled like a part."""
        mask = np.zeros_like(self.alpha)
        points = np.round(np.asarray(joints, np.float64) * self.size).astype(np.int32)
        cv2.polylines(mask, [points], False, 255, max(1, round(width * self.size)))
        self._lay(mask, paint, shade)

    def oval(
        self,
        centre: tuple[float, float],
        axes: tuple[float, float],
        paint: Floats,
        shade: float = 1.0,
        turn: float = 0.0,
    ) -> None:
        """Fill an ellipse with these half axes, turned by `turn` radians."""
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        ring = turned(axes[0] * np.cos(angle), axes[1] * np.sin(angle), turn)
        self.part(np.asarray(centre) + ring, paint, shade)

    def erase(self, corners: ArrayLike) -> None:
        """Cut a polygon (N, 2) out again."""
        points = np.round(np.asarray(corners) * self.size).astype(np.int32)
        cv2.fillPoly(self.alpha, [points], 0)
        self.rgb[self.alpha == 0] = 0

    def finished(self, rng: Generator, roundness: float, mirrored: bool = False) -> Bytes:
        """Return (h, w, 4) RGBA, cropped to the object, edges darker by roundness, lit from a side.

        mirrored: half of them are turned to look the other way.
        """
        depth = cv2.distanceTransform(self.alpha, cv2.DIST_L2, 3) / (0.14 * self.size)
        across, light = np.linspace(-1, 1, self.size, dtype=np.float32), rng.uniform(-1, 1)
        shade = 1 - roundness * (1 - np.clip(depth, 0, 1)) ** 2
        shade = shade * (1 + 0.16 * light * across - 0.12 * across[:, None])
        rgba = np.dstack([np.clip(self.rgb * shade[..., None], 0, 255), self.alpha])
        rows, columns = np.flatnonzero(self.alpha.any(1)), np.flatnonzero(self.alpha.any(0))
        rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
        mirror = mirrored and rng.random() < 0.5
        return np.ascontiguousarray(rgba[:, ::-1]) if mirror else rgba

    def _lay(self, mask: Bytes, paint: Floats, shade: float) -> None:
        inside = mask > 0
        self.rgb[inside] = (paint if paint.ndim == 1 else paint[inside]) * np.float32(shade)
        self.alpha[inside] = 255


def turned(u: Floats, v: Floats, turn: float) -> Floats:
    """Return (N, 2), the points (u, v) turned about the origin by `turn` radians."""
    sin, cos = np.sin(turn), np.cos(turn)
    return np.stack([u * cos - v * sin, u * sin + v * cos], -1)


def any_colour(rng: Generator) -> Floats:
    """Draw (3,) RGB: vivid, earthen or grey, so that no part of the colour cube stays unseen."""
    kind = rng.integers(4)
    if kind == 0:
        return colour(rng, (0.0, 0.15), (0.05, 1.0))
    if kind == 1:  # browns, sands and fawns
        mix = np.array([1.0, rng.uniform(0.55, 0.85), rng.uniform(0.25, 0.65)])
        return (255 * rng.uniform(0.2, 0.95) * mix).astype(np.float32)
    return colour(rng, (0.25, 1.0), (0.15, 1.0))


def pattern(rng: Generator, size: int) -> Floats:
    """Draw (size, size, 3) RGB in 0..255: one of seven patterns, in two colours or three."""
    kind, first, second = rng.integers(7), any_colour(rng), any_colour(rng)
    share: Floats  # of the second colour
    if kind == 0:  # plain
        share = np.zeros((size, size), np.float32)
    elif kind == 1:  # a gradient
        share = 0.5 + 0.7 * _ramp(rng, size)
    elif kind == 2:  # straight or wavy stripes
        bend = rng.uniform(0, 0.35) * cut(noise_tile(1.6), rng, (size, size), 0.3)
        wave = np.sin(rng.uniform(6, 40) * (_ramp(rng, size) + bend))
        share = 0.5 + rng.uniform(0.6, 6) * wave
    elif kind == 3:  # clouds
        slope = round(rng.uniform(0.5, 1.6), 1)
        share = 0.5 + 0.4 * cut(noise_tile(slope), rng, (size, size), 0.3)
    elif kind == 4:  # three flat colours with borders like a map's
        relief = cut(noise_tile(1.7), rng, (size, size), rng.uniform(0.15, 0.6))[..., None]
        third = any_colour(rng)
        land = np.where(relief > rng.uniform(-0.5, 0.2), first, second)
        return np.where(relief > rng.uniform(0.4, 1.2), third, land)
    elif kind == 5:  # a lattice of dots, turned and bent
        pitch = rng.uniform(5, 16)
        u, v = _ramp(rng, size), _ramp(rng, size)
        dots = np.cos(np.pi * pitch * u) * np.cos(np.pi * pitch * v)
        share = 4 * (dots - rng.uniform(0.2, 0.6))
    else:  # speckles
        grain = cut(noise_tile(0.2), rng, (size, size), rng.uniform(0.05, 0.15))
        share = (grain > rng.uniform(0.3, 1.5)).astype(np.float32)
    return first + (second - first) * np.clip(share, 0, 1)[..., None]


def _ramp(rng: Generator, size: int) -> Floats:
    """Return (size, size), a plane through 0 in a random direction, -1 to 1 across the canvas."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    return np.float32(np.cos(angle)) * axis + np.float32(np.sin(angle)) * axis[:, None]


def blob_outline(rng: Generator) -> Floats:
    """Return (96, 2) in [0, 1], a closed curve of a few Fourier terms, from egg to starfish."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    terms = np.arange(2, 2 + rng.integers(1, 6))
    strength = rng.uniform(0, 0.42) * rng.dirichlet(np.ones(len(terms)))
    phase = rng.uniform(0, 2 * np.pi, len(terms))
    radius = 1 + (strength[:, None] * np.cos(terms[:, None] * angle + phase[:, None])).sum(0)
    turn, aspect = rng.uniform(0, np.pi), rng.uniform(0.35, 1.0)
    points = turned(radius * np.cos(angle), aspect * radius * np.sin(angle), turn)
    low, high = points.min(0), points.max(0)
    return 0.5 + 0.96 * (points - (low + high) / 2) / (high - low).max()


def draw_blob(rng: Generator, size: int) -> Bytes:
    """Draw one blob, (h, w, 4) RGBA, the longer side `size` pixels or just under."""
    canvas, paint = Cutout(size), pattern(rng, size)
    grain = cut(noise_tile(0.6), rng, (size, size), 0.2)
    paint = paint * (1 + rng.uniform(0, 0.12) * grain[..., None])
    canvas.part(blob_outline(rng), paint)
    if rng.random() < 0.3:  # a second pattern on a part of it
        paint = pattern(rng, size)
        inner = 0.5 + rng.uniform(0.4, 0.7) * (blob_outline(rng) - 0.5) + rng.normal(0, 0.08, 2)
        whole = canvas.alpha.copy()
        canvas.part(inner, paint)
        canvas.alpha = whole
    return canvas.finished(rng, rng.uniform(0, 0.6))
