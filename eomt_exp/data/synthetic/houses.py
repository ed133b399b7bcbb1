"""Paints what stands behind the pavements: houses, hedges and walls."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from eomt_exp.data.synthetic.scene import BUILDING, VEGETATION, Scene, box_end, box_side
from eomt_exp.data.synthetic.textures import Bytes, Floats, Span, colour, cut, jitter, noise_tile

WALLS = (
    (150, 84, 66), (168, 104, 78), (214, 200, 172), (196, 176, 140), (168, 166, 164),
    (226, 222, 214), (120, 122, 128), (206, 168, 112), (160, 184, 196), (196, 140, 124),
)  # fmt: skip
ROOFS = ((122, 58, 44), (96, 70, 60), (74, 76, 84), (140, 82, 56), (60, 58, 60))
NEAR = 1.3  # metres; walls are cut off here, nearer ones would project to infinity
STOREY = 3.1  # metres
WINDOWS = (
    (0.2, 0.75, 0.3, 0.7), (0.25, 0.7, 0.22, 0.78), (0.25, 0.68, 0.1, 0.9), (0.2, 0.7, 0.0, 1.0),
    (0.12, 0.85, 0.28, 0.72),
)  # fmt: skip
"""Top, bottom, left and right of a window in its cell: upright, square, wide or a ribbon."""


def paint_houses(scene: Scene, rng: Generator) -> None:
    """Paint both rows of houses, far ones first."""
    style, plans = scene.street.style, []
    for side in (-1, 1):
        at, free = rng.uniform(-8, 4), True
        while at < 85:
            long = rng.uniform(7, 20) if style == "city" else rng.uniform(8, 14)
            plans.append((at, at + long, side, free))
            free = rng.random() < {"city": 0.18, "suburb": 0.85, "country": 1.0}[style]
            at += long + free * rng.uniform(3, 9)
            at += (style == "country") * rng.uniform(0, 60)
    for start, stop, side, free in sorted(plans, reverse=True):
        _paint_house(scene, (start, stop), side, free, rng)


def _paint_house(scene: Scene, span: Span, side: int, free: bool, rng: Generator) -> None:
    """Paint a house from span[0] to span[1] metres along the road: gable, front and roof.

    free: no house touches the gable, so it has windows.
    """
    weather, city = scene.weather, scene.street.style == "city"
    storeys = int(rng.integers(2, 8) if city else rng.integers(1, 3))
    wall = jitter(rng, WALLS[rng.integers(len(WALLS))], 16)
    roof = jitter(rng, ROOFS[rng.integers(len(ROOFS))], 10)
    x = scene.street.front(side) + side * rng.uniform(0, 0.8 if city else 2.5)
    high, deep = storeys * STOREY + rng.uniform(0.2, 1.0), side * rng.uniform(8, 12)
    pitched = rng.random() < (0.45 if city else 0.9)
    columns = max(2, round((span[1] - span[0]) / rng.uniform(2.2, 3.4)))
    seed = int(rng.integers(2**32))  # what a front takes from its stream depends on the image size
    if span[1] < NEAR + 0.5:
        return
    own = np.random.default_rng(seed)
    start = max(span[0], NEAR)
    columns = max(1, round(columns * (span[1] - start) / (span[1] - span[0])))
    lit = 1.0 if weather.side != side else 1.0 - 0.3 * weather.sun
    # Texels of a storey: about as many as pixels, but not too many to draw.
    most = 32 * max(1.0, scene.camera.height / 128)
    cell = int(np.clip(STOREY * scene.camera.pixels_per_metre(start), 6, most))
    ridge = (x + deep / 2, high + 2.8)
    if span[0] > NEAR:
        quad = box_end((x, x + deep), start, (0, high))
        if free:
            gable = _facade(own, storeys, 3, wall * 0.82, cell, weather.night)
            scene.warp(gable, quad, BUILDING)
        else:
            scene.fill(quad, wall * 0.8, BUILDING)
        if pitched:
            scene.fill([*quad[:2], [*ridge, start]], wall * 0.8, BUILDING)
    front = _facade(own, storeys, columns, wall * lit, cell, weather.night)
    scene.warp(front, box_side(x, (start, span[1]), (0, high)), BUILDING)
    if pitched:
        eaves = (x - side * 0.4, high - 0.1)
        slope = [(*eaves, start), (*eaves, span[1]), (*ridge, span[1]), (*ridge, start)]
        scene.fill(slope, roof * lit, BUILDING)
    else:
        rim = box_side(x - side * 0.15, (start, span[1]), (high - 0.15, high + 0.25))
        scene.fill(rim, wall * 0.62 * lit, BUILDING)


def _facade(
    rng: Generator, storeys: int, columns: int, wall: Floats, cell: int, night: float
) -> Bytes:
    """Return (storeys * cell, columns * cell, 3): a grid of windows, shops or a door below."""
    grid = np.empty((storeys, cell, columns, cell, 3), np.float32)
    grid[:] = wall
    top, bottom, left, right = WINDOWS[rng.integers(len(WINDOWS))]
    rows, across = _texels(top, bottom, cell), _texels(left, right, cell)
    dark, sky = np.array([44, 52, 64]), np.array([124, 146, 168])  # what panes show by day
    mirrored = rng.random((storeys, columns, 1)) ** 1.6
    panes = dark + (sky - dark) * mirrored * (1 - 0.7 * night)
    lit = rng.random((storeys, columns, 1)) < 0.04 + 0.45 * night
    # Above 255 on purpose: the night's tint, well under 1, comes after.
    lamp = np.array([250, 206, 128]) * (0.8 + 0.6 * night)
    glass = np.where(lit, lamp, panes).astype(np.float32)
    trim = np.clip(wall * rng.choice([0.7, 1.25]), 0, 255)
    grow = max(1, cell // 16)
    outer = slice(max(rows.start - grow, 0), rows.stop + grow)
    outer_across = slice(max(across.start - grow, 0), across.stop + grow)
    grid[:, outer, :, outer_across] = trim
    grid[:, rows, :, across] = glass[:, None, :, None]
    grid[:, rows.start : rows.start + max(1, cell // 10), :, across] *= 0.7  # the lintel's shadow
    if rng.random() < 0.7 and cell >= 12:  # glazing bars
        middle = (across.start + across.stop) // 2
        grid[:, rows, :, middle : middle + max(1, cell // 20)] = trim
    if rng.random() < 0.4:  # a ledge under every storey
        grid[:, -max(1, cell // 14) :] = wall * 0.78
    _ground_floor(grid[-1], rng, wall, night)
    flat = grid.reshape(storeys * cell, columns * cell, 3)
    grain = cut(noise_tile(0.8), rng, flat.shape[:2], 0.25)
    return np.clip(flat * (1 + 0.06 * grain[..., None]), 0, 255).astype(np.uint8)


def _texels(low: float, high: float, cell: int) -> slice:
    return slice(round(low * cell), max(round(high * cell), round(low * cell) + 1))


def _ground_floor(grid: Floats, rng: Generator, wall: Floats, night: float) -> None:
    """Paint shop windows with an awning, or a door, on one storey, (cell, columns, cell, 3)."""
    cell, columns = grid.shape[:2]
    if rng.random() < 0.4:
        grid[:] = wall * 0.7
        inside = np.array([[60, 66, 74], [236, 200, 130]])[int(rng.random() < 0.1 + 0.6 * night)]
        grid[int(0.3 * cell) : int(0.88 * cell), :, int(0.08 * cell) : int(0.92 * cell)] = inside
        grid[int(0.12 * cell) : int(0.3 * cell)] = colour(rng, (0.3, 0.9), (0.3, 0.85))
    else:
        column = rng.integers(columns)
        door = grid[int(0.3 * cell) :, column, int(0.32 * cell) : int(0.68 * cell)]
        door[:] = colour(rng, (0.2, 0.7), (0.2, 0.6))
        grid[int(0.9 * cell) :] *= 0.8


def paint_hedges(scene: Scene, rng: Generator) -> None:
    """Paint hedges or low walls between the pavement and the gardens, where there are any."""
    for side in (-1, 1):
        if scene.street.style == "city" or rng.random() < 0.35:
            continue
        at, leafy = rng.uniform(-4, 6), bool(rng.random() < 0.7)
        tone = jitter(rng, (58, 92, 46) if leafy else (164, 158, 148), 12)
        high = rng.uniform(0.8, 1.9) if leafy else rng.uniform(0.5, 1.1)
        spans = []
        while at < 70:
            long = rng.uniform(5, 16)
            spans.append((max(at, NEAR), at + long))
            at += long + rng.uniform(1.5, 6)
        x = scene.street.edge(side) + side * 0.35
        ends = (x, x + (0.9 if leafy else 0.3) * side)
        for span in reversed(spans):
            if span[1] > NEAR + 0.5:
                _paint_hedge(scene, ends, span, high, tone, leafy, rng)


def _paint_hedge(
    scene: Scene, x: Span, z: Span, high: float, tone: Floats, leafy: bool, rng: Generator
) -> None:
    """Paint a box: the top as far as the camera sees it, its end, and its face with texture."""
    label = VEGETATION if leafy else BUILDING
    top = [(x[0], high, z[0]), (x[1], high, z[0]), (x[1], high, z[1]), (x[0], high, z[1])]
    scene.fill(top, tone * 1.15, label)
    size = (48, int(np.clip(16 * (z[1] - z[0]), 48, 256)))
    grain = cut(noise_tile(0.5 if leafy else 0.9), rng, size, 0.09 if leafy else 0.2)
    shade = 1 + (0.2 if leafy else 0.06) * grain - np.linspace(-0.1, 0.25, 48)[:, None]
    texture = np.clip(tone * shade[..., None], 0, 255).astype(np.uint8)
    scene.warp((texture[:, :48] * 0.9).astype(np.uint8), box_end(x, z[0], (0, high)), label)
    scene.warp(texture, box_side(x[0], z, (0, high)), label)
