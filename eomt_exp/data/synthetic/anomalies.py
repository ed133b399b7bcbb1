"""Draws the anomalies of the synthetic benchmarks: eight families, no blobs, none in training.

Each family has its own outline and its own surface: fur, planks, tread, cloth, panels, bands.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from eomt_exp.data.synthetic.objects import Cutout
from eomt_exp.data.synthetic.surfaces import WOODS, cloth, football, fur, planks
from eomt_exp.data.synthetic.textures import Bytes, colour, jitter


def draw_animal(rng: np.random.Generator, size: int) -> Bytes:
    """Draw a quadruped from the side: calf, deer, dog or sheep, by proportions and fur."""
    canvas, coat = Cutout(size), fur(rng, size)
    body, leg = rng.uniform(0.12, 0.2), rng.uniform(0.2, 0.34)
    back, neck = 0.62 - leg - body / 2 + 0.18, rng.uniform(0.1, 0.24)
    thin = rng.uniform(0.035, 0.06)
    for at, lean, shade in ((0.24, 0.02, 0.6), (0.66, -0.02, 0.6), (0.2, -0.02, 0.95),
                            (0.61, 0.03, 0.95)):  # fmt: skip
        foot = at + lean + rng.normal(0, 0.02)
        knee = (at + foot) / 2 - 0.015
        canvas.limb([(at, back), (knee, back + 0.6 * leg), (foot, back + body / 2 + leg)],
                    thin * 1.2, coat, shade)  # fmt: skip
    canvas.oval((0.43, back), (0.27, body * 0.8), coat)
    canvas.oval((0.24, back - 0.01), (0.13, body * 0.86), coat)
    canvas.oval((0.62, back - 0.02), (0.13, body * 0.9), coat)
    head = (0.8 + rng.uniform(-0.02, 0.05), back - neck - 0.02)
    canvas.limb([(0.66, back - 0.03), head], rng.uniform(0.09, 0.14), coat, 0.97)
    droop = rng.uniform(0.02, 0.09)
    canvas.oval((head[0] + 0.04, head[1] + droop / 2), (0.095, 0.055), coat, 1.05, droop * 5)
    canvas.oval((head[0] + 0.11, head[1] + droop), (0.03, 0.03), np.array([60, 46, 44]))
    canvas.oval((head[0] + 0.03, head[1] - 0.01), (0.011, 0.011), np.array([10, 10, 10]))
    for shift in (-0.05, 0.0):
        tip = (head[0] + shift - 0.03, head[1] - rng.uniform(0.06, 0.13))
        canvas.limb([(head[0] + shift, head[1] - 0.03), tip], 0.03, coat, 0.75)
    tail = rng.uniform(-0.1, 0.2)
    tail_joints = [(0.17, back - 0.03), (0.1, back + tail * 0.5), (0.09, back + tail)]
    canvas.limb(tail_joints, 0.03, coat, 0.8)
    return _maybe_mirrored(canvas.finished(0.4, rng.uniform(-1, 1)), rng)


def draw_seat(rng: np.random.Generator, size: int) -> Bytes:
    """Draw a sofa or an armchair with cushions, or a kitchen chair."""
    canvas = Cutout(size)
    stuff = cloth(rng, size, colour(rng, (0.15, 0.8), (0.3, 0.85)))
    wood = jitter(rng, WOODS[rng.integers(len(WOODS))])
    if rng.random() < 0.35:
        for x, top in ((0.3, 0.1), (0.66, 0.1), (0.22, 0.55), (0.74, 0.55)):
            canvas.limb([(x, top), (x, 0.97)], 0.045, wood, 1.0 if top > 0.5 else 0.7)
        for rail in (0.14, 0.27, 0.4):
            canvas.limb([(0.3, rail), (0.66, rail)], 0.05, wood, 0.85)
        canvas.part([(0.28, 0.52), (0.68, 0.52), (0.78, 0.62), (0.18, 0.62)], stuff)
        return _maybe_mirrored(canvas.finished(0.2, rng.uniform(-1, 1)), rng)
    low, high = rng.uniform(0.3, 0.42), 0.86
    for x in (0.1, 0.9):
        canvas.part([(x - 0.03, high), (x + 0.03, high), (x + 0.02, 0.93), (x - 0.02, 0.93)], wood)
    canvas.part([(0.08, low), (0.92, low), (0.94, 0.7), (0.06, 0.7)], stuff, 0.85)
    canvas.part([(0.06, 0.62), (0.94, 0.62), (0.96, high), (0.04, high)], stuff, 0.72)
    seats = int(rng.integers(2, 4))
    for k in range(seats):
        left, right = 0.13 + 0.74 * k / seats, 0.13 + 0.74 * (k + 1) / seats - 0.012
        canvas.part(_block(left, right, low + 0.04, 0.6), stuff)
        canvas.part(_block(left, right, 0.6, 0.69), stuff, 1.18)
    for x in (0.07, 0.93):
        canvas.part(_block(x - 0.07, x + 0.07, 0.52, high), stuff, 0.95)
        canvas.oval((x, 0.52), (0.07, 0.05), stuff, 1.1)
    return canvas.finished(0.15, rng.uniform(-1, 1))


def draw_crate(rng: np.random.Generator, size: int) -> Bytes:
    """Draw a wooden crate, two sides and the lid, planks and battens."""
    canvas, wood = Cutout(size), planks(rng, size)
    corner, rise, high = rng.uniform(0.45, 0.75), rng.uniform(0.08, 0.15), rng.uniform(0.22, 0.4)
    front = [(0.02, high), (corner, high + rise), (corner, 0.98), (0.02, 0.98 - rise)]
    side = [(corner, high + rise), (0.98, high), (0.98, 0.98 - rise), (corner, 0.98)]
    lid = [(0.02, high), (corner, high + rise), (0.98, high), (0.98 - corner + 0.04, high - rise)]
    canvas.part(front, wood, 1.0)
    canvas.part(side, wood, 0.62)
    canvas.part(lid, wood, 1.35)
    for face, shade in ((front, 1.12), (side, 0.72)):
        a, b, c, d = (np.array(point) for point in face)
        for start, stop in ((a, b), (b, c), (c, d), (d, a), (a, c)):
            inward = 0.03 * ((a + b + c + d) / 4 - (start + stop) / 2)
            canvas.limb([start + inward, stop + inward], 0.045, wood, shade)
    return _maybe_mirrored(canvas.finished(0.1, rng.uniform(-1, 1)), rng)


def draw_tyre(rng: np.random.Generator, size: int) -> Bytes:
    """Draw a loose tyre on its tread, seen a little from the side, or a stack of them lying."""
    canvas, rubber = Cutout(size), jitter(rng, (44, 44, 48), 8)
    if rng.random() < 0.4:
        count = int(rng.integers(2, 5))
        for k in range(count):
            y = 0.9 - 0.8 * k / 4
            for step, shade in ((0.07, 0.7), (0.035, 1.0), (0.0, 1.35)):
                canvas.oval((0.5 + 0.02 * (k % 2), y - 0.05 + step), (0.42, 0.1), rubber, shade)
        canvas.oval((0.5, y - 0.05), (0.24, 0.05), rubber, 0.35)
        return canvas.finished(0.1, rng.uniform(-1, 1))
    wide, thick = rng.uniform(0.3, 0.46), rng.uniform(0.06, 0.14)
    middle = 0.5 - thick / 2
    canvas.oval((middle + thick, 0.5), (wide, 0.48), rubber, 0.55)
    for turn in np.linspace(0, 2 * np.pi, 26, endpoint=False):  # lugs of the tread
        edge = np.array([middle + wide * np.cos(turn), 0.5 + 0.48 * np.sin(turn)])
        canvas.limb([edge, edge + np.array([thick, 0.0])], 0.02, rubber, 1.3)
    canvas.oval((middle, 0.5), (wide, 0.48), rubber, 1.0)
    canvas.oval((middle, 0.5), (wide * 0.85, 0.41), rubber, 1.5)
    canvas.oval((middle, 0.5), (wide * 0.8, 0.385), rubber, 1.0)
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    hole = np.stack([middle + wide * 0.52 * np.cos(turn), 0.5 + 0.25 * np.sin(turn)], -1)
    canvas.part(hole, rubber, 0.5)
    canvas.erase(hole + np.array([thick * 0.3, 0.0]))
    return _maybe_mirrored(canvas.finished(0.15, rng.uniform(-1, 1)), rng)


def draw_cone(rng: np.random.Generator, size: int) -> Bytes:
    """Draw a traffic cone with bright bands, standing or knocked over."""
    canvas = Cutout(size)
    orange = jitter(rng, [(240, 98, 28), (232, 70, 40), (240, 180, 40)][rng.integers(3)], 10)
    white, half = np.array([238, 238, 234]), rng.uniform(0.2, 0.3)
    canvas.part([(0.46 - half, 0.9), (0.54 + half, 0.9), (0.6 + half, 0.98), (0.4 - half, 0.98)],
                orange, 0.65)  # fmt: skip
    bands = int(rng.integers(2, 4)) * 2 + 1
    edges = np.linspace(0.03, 0.92, bands + 1)
    for k, (top, bottom) in enumerate(pairwise(edges)):
        narrow, broad = (0.04 + (half - 0.04) * (y - 0.03) / 0.89 for y in (top, bottom))
        corners = [(0.5 - narrow, top), (0.5 + narrow, top), (0.5 + broad, bottom),
                   (0.5 - broad, bottom)]  # fmt: skip
        canvas.part(corners, white if k % 2 else orange)
        canvas.part([(0.5 + narrow * 0.35, top), corners[1], corners[2],
                     (0.5 + broad * 0.35, bottom)], white if k % 2 else orange, 0.78)  # fmt: skip
    picture = canvas.finished(0.2, rng.uniform(-1, 1))
    return np.ascontiguousarray(np.rot90(picture)) if rng.random() < 0.2 else picture


def draw_suitcase(rng: np.random.Generator, size: int) -> Bytes:
    """Draw a suitcase with ribs, a handle and wheels, or with belts around it."""
    canvas, shell = Cutout(size), colour(rng, (0.2, 0.9), (0.25, 0.9))
    half, top = rng.uniform(0.25, 0.45), rng.uniform(0.2, 0.36)
    grip, dark = half * 0.4, np.array([42, 42, 46])
    canvas.limb([(0.5 - grip, top + 0.05), (0.5 - grip, 0.06), (0.5 + grip, 0.06),
                 (0.5 + grip, top + 0.05)], 0.04, dark)  # fmt: skip
    for x in (0.5 - half * 0.75, 0.5 + half * 0.75):
        canvas.oval((x, 0.95), (0.035, 0.035), dark)
    cut_off = 0.05
    left, right = 0.5 - half, 0.5 + half
    canvas.part([(left + cut_off, top), (right - cut_off, top), (right, top + cut_off),
                 (right, 0.93 - cut_off), (right - cut_off, 0.93), (left + cut_off, 0.93),
                 (left, 0.93 - cut_off), (left, top + cut_off)], shell)  # fmt: skip
    ribs = int(rng.integers(3, 7))
    if rng.random() < 0.6:
        for x in np.linspace(left, right, ribs + 2)[1:-1]:
            canvas.limb([(x, top + 0.05), (x, 0.88)], 0.02, shell, 0.65)
            canvas.limb([(x + 0.02, top + 0.05), (x + 0.02, 0.88)], 0.012, shell, 1.3)
    else:
        belt = colour(rng, (0.1, 0.8), (0.15, 0.6))
        for x in (0.5 - half * 0.5, 0.5 + half * 0.5):
            canvas.limb([(x, top + 0.02), (x, 0.91)], 0.05, belt)
            canvas.oval((x, top + 0.2), (0.03, 0.03), np.array([206, 186, 110]))
    return canvas.finished(0.35, rng.uniform(-1, 1))


def draw_ball(rng: np.random.Generator, size: int) -> Bytes:
    """Draw a football of pentagons, or a beach ball of coloured slices."""
    canvas = Cutout(size)
    axis = np.linspace(-1.04, 1.04, size)
    u, v = np.meshgrid(axis, axis)
    w = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
    turn, tilt = rng.uniform(0, 2 * np.pi, 2)
    v, w = v * np.cos(tilt) - w * np.sin(tilt), v * np.sin(tilt) + w * np.cos(tilt)
    if rng.random() < 0.5:
        ink, skin = colour(rng, (0.0, 0.9), (0.05, 0.5)), np.array([236, 236, 232])
        paint = football(np.stack([u, v, w], -1), ink, skin)
    else:
        slices = rng.integers(3, 5) * 2
        index = ((np.arctan2(v, u) + turn) % (2 * np.pi) * slices / (2 * np.pi)).astype(int)
        tones = np.stack([colour(rng, (0.5, 1), (0.6, 1)) for _ in range(slices)])
        tones[::2] = 238
        paint = tones[np.minimum(index, slices - 1)]
    canvas.oval((0.5, 0.5), (0.48, 0.48), paint.astype(np.float32))
    return canvas.finished(0.6, rng.uniform(-1, 1))


def draw_umbrella(rng: np.random.Generator, size: int) -> Bytes:
    """Draw an open umbrella left on the ground, or a parasol on its stick."""
    canvas = Cutout(size)
    first, second = colour(rng, (0.4, 1), (0.4, 1)), colour(rng, (0.0, 1), (0.5, 1))
    low, ribs = rng.uniform(0.4, 0.62), int(rng.integers(5, 9))
    stick = [(0.5, 0.1), (0.5, 0.93), (0.53, 0.97), (0.57, 0.94)]
    canvas.limb(stick, 0.026, np.array([70, 52, 40]))
    edges = -np.cos(np.linspace(0, np.pi, ribs + 1))  # panels narrow to the sides, as on a dome
    for k, (left, right) in enumerate(pairwise(edges)):
        rise = np.linspace(0, np.pi / 2, 10)
        fall = 0.06 + (low - 0.06) * (1 - np.cos(rise))
        up = np.stack([0.5 + 0.48 * left * np.sin(rise), fall], -1)
        down = np.stack([0.5 + 0.48 * right * np.sin(rise), fall], -1)[::-1]
        scallop = [(0.5 + 0.24 * (left + right), low - 0.04)]
        tone = first if k % 2 == 0 else second
        canvas.part(np.concatenate([up, scallop, down]), tone, 1.1 - 0.4 * abs(left + right) / 2)
    return canvas.finished(0.15, rng.uniform(-1, 1))


def _block(left: float, right: float, top: float, bottom: float) -> list[tuple[float, float]]:
    """Return the corners of an upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _maybe_mirrored(picture: Bytes, rng: np.random.Generator) -> Bytes:
    return np.ascontiguousarray(picture[:, ::-1]) if rng.random() < 0.5 else picture


DRAW: dict[str, Callable[[np.random.Generator, int], Bytes]] = {
    "animal": draw_animal,
    "seat": draw_seat,
    "crate": draw_crate,
    "tyre": draw_tyre,
    "cone": draw_cone,
    "suitcase": draw_suitcase,
    "ball": draw_ball,
    "umbrella": draw_umbrella,
}
ANOMALY_FAMILIES = tuple(DRAW)


def draw_anomaly(family: str, rng: np.random.Generator, size: int) -> Bytes:
    """Draw one object of a family, (h, w, 4) RGBA, the longer side about `size` pixels."""
    return DRAW[family](rng, size)
