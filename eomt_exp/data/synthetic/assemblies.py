"""Draws outliers of several parts for exposure: figures of no kind in particular.

A thing in the world is seldom one smooth blob: it has straight edges, legs and holes, and each part
its own surface. The anomalies of the benchmarks (anomalies.py) are things that have names, and none
of them is drawn here.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from eomt_exp.data.synthetic.objects import Cutout, pattern, turned
from eomt_exp.data.synthetic.textures import Bytes, Floats

_MARGIN = 0.02  # of the canvas, which parts leave free
_HOLES = 0.15  # share of the figures that have one


def draw_assembly(rng: Generator, size: int) -> Bytes:
    """Draw a figure of one to seven parts, (h, w, 4) RGBA, both sides at most `size` pixels.

    Each part is a polygon, a box, a disc or a stroke that begins on those before it, so that they
    hang together, and has their paint, lighter or darker, or one of its own.
    """
    canvas, paint = Cutout(size), pattern(rng, size)
    _add_part(canvas, rng, np.full(2, 0.5), 0.3, paint)
    for _ in range(rng.integers(7)):
        rows, columns = np.nonzero(canvas.alpha)
        at = rng.integers(rows.size)
        centre = (np.array([columns[at], rows[at]]) + 0.5) / size
        if rng.random() < 0.4:
            paint = pattern(rng, size)
        _add_part(canvas, rng, centre, rng.uniform(0.04, 0.25), paint * rng.uniform(0.7, 1.15))
    if rng.random() < _HOLES:
        _cut_hole(canvas, rng)
    return canvas.finished(rng, rng.uniform(0, 0.6))


def _add_part(canvas: Cutout, rng: Generator, centre: Floats, reach: float, paint: Floats) -> None:
    """Lay one part over the canvas, `reach` from its centre to its far side."""
    kind, turn = rng.integers(4), rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
    if kind == 0:
        corners = _polygon(rng)
    elif kind == 1:
        corners = rng.uniform(0.2, 1.0, 2) * ([-1, -1], [1, -1], [1, 1], [-1, 1])
    elif kind == 2:
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        corners = np.stack([np.cos(angle), rng.uniform(0.3, 1.0) * np.sin(angle)], -1)
    else:
        joints = rng.normal(0, reach, (rng.integers(2, 4), 2)).cumsum(0)
        width = rng.uniform(0.02, 0.12)
        canvas.limb(np.clip(centre + joints - joints[0], 0.05, 0.95), width, paint)
        return
    corners = centre + reach * turned(corners[:, 0], corners[:, 1], turn)
    canvas.part(np.clip(corners, _MARGIN, 1 - _MARGIN), paint)


def _cut_hole(canvas: Cutout, rng: Generator) -> None:
    """Cut a hole, unless it would leave less than a third of the figure."""
    whole, colours = canvas.alpha.copy(), canvas.rgb.copy()
    canvas.erase(0.5 + 0.15 * _polygon(rng))
    if 3 * np.count_nonzero(canvas.alpha) < np.count_nonzero(whole):
        canvas.alpha, canvas.rgb = whole, colours


def _polygon(rng: Generator) -> Floats:
    """Return (3 to 8, 2), a polygon about the origin with corners on an ellipse, even or not."""
    corners = int(rng.integers(3, 9))
    even = rng.random() < 0.5
    angle = 2 * np.pi * (np.arange(corners) / corners if even else np.sort(rng.random(corners)))
    return np.stack([np.cos(angle), rng.uniform(0.3, 1.0) * np.sin(angle)], -1)
