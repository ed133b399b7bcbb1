"""Makes periodic noise, once per process, and cuts it into pieces: the grain of every scene.

Tiles depend on nothing but their arguments, so scenes stay the same in every process; cuts are
given as fractions of a tile, so scenes look the same at every size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

TILE = 512
"""Texels of a side: a power of two, since every tile goes through an FFT."""

Floats = NDArray[Any]  # float32, mostly
Bytes = NDArray[np.uint8]
Span = tuple[float, float]  # (low, high)


@lru_cache(maxsize=16)
def noise_tile(slope: float) -> Floats:
    """Make (TILE, TILE), mean 0, variance 1; amplitude falls as 1/f^slope: 0 is white, 2 clouds."""
    rng = np.random.default_rng([7, int(slope * 1000)])
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) / frequency**slope
    spectrum[0, 0] = 0.0
    tile = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return (tile / tile.std()).astype(np.float32)


@lru_cache(maxsize=1)
def streak_tile() -> Floats:
    """Make (TILE, TILE) in [0, 1] of rain, that is sparse dots smeared along a steep slant."""
    rng = np.random.default_rng([7, 99])
    dots = (rng.random((TILE, TILE)) > 0.9985).astype(np.float32)
    kernel = np.zeros((25, 25), np.float32)
    cv2.line(kernel, (8, 0), (16, 24), 1.0, 1, cv2.LINE_AA)
    streaks = cv2.filter2D(np.tile(dots, (2, 2)), -1, kernel / kernel.max())
    return np.clip(streaks[256 : 256 + TILE, 256 : 256 + TILE], 0, 1)


def cut(
    tile: Floats, rng: Generator, size: tuple[int, int], cover: float = 0.5, stretch: float = 1.0
) -> Floats:
    """Cut a random piece of a tile, resampled to size (h, w).

    cover: share of the tile's height in the piece, which sets the grain independently of the size;
    stretch > 1 draws the grain out sideways.
    """
    h, w = size
    rows = max(2, min(TILE, round(TILE * cover)))
    columns = max(2, min(TILE, round(rows * w / max(h, 1) / stretch)))
    piece = cut_pixels(tile, rng, (rows, columns))
    return cv2.resize(piece, (w, h), interpolation=cv2.INTER_LINEAR)


def cut_pixels(tile: Floats, rng: Generator, size: tuple[int, int]) -> Floats:
    """Cut a random piece of a tile, one texel a pixel, repeated where size (h, w) is larger."""
    top, left = rng.integers(0, TILE, 2)
    piece = tile.take(np.arange(top, top + size[0]), 0, mode="wrap")
    return piece.take(np.arange(left, left + size[1]), 1, mode="wrap")


def lookup(tile: Floats, across: Floats, along: Floats, per_metre: float) -> Floats:
    """Lay the tile on a plane: sample it at coordinates in metres, same shape as they have."""
    scale = np.float32(per_metre)
    u, v = np.mod(across * scale, TILE), np.mod(along * scale, TILE)
    return cv2.remap(tile, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def colour(rng: Generator, saturation: Span, value: Span) -> Floats:
    """Draw (3,) RGB in 0..255 of any hue, saturation and value from the ranges given."""
    hue, s, v = rng.random() * 6, rng.uniform(*saturation), rng.uniform(*value)
    channel = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return (255 * v * (1 - s + s * channel)).astype(np.float32)


def jitter(rng: Generator, rgb: tuple[float, float, float], amount: float = 14) -> Floats:
    """Draw (3,) RGB in 0..255: the colour given, moved a little in brightness and in hue."""
    moved = np.asarray(rgb, np.float32) + rng.normal(0, amount) + rng.normal(0, amount / 3, 3)
    return np.clip(moved, 0, 255).astype(np.float32)
