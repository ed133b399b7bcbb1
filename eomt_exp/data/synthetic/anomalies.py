"""Draws the anomalies of the synthetic benchmarks: eight families, no blobs, none in training.

Each family has its own outline and its own surface: fur, planks, tread, cloth, panels, bands.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.random import Generator

from eomt_exp.data.synthetic.objects import Cutout
from eomt_exp.data.synthetic.textures import Bytes, Floats, colour, cut, jitter, noise_tile

COATS = ((150, 104, 62), (96, 66, 44), (226, 218, 204), (62, 56, 54), (188, 148, 98),
         (120, 112, 106), (176, 92, 48))  # fmt: skip
WOODS = ((172, 128, 80), (146, 104, 64), (196, 158, 108), (120, 88, 60), (160, 140, 118))


def draw_animal(rng: Generator, size: int) -> Bytes:
    """Draw a quadruped from the side: calf, deer, dog or sheep, by proportions and fur."""
    canvas, coat = Cutout(size), _fur(rng, size)
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
    canvas.limb(
        [(0.17, back - 0.03), (0.1, back + tail * 0.5), (0.09, back + tail)], 0.03, coat, 0.8
    )
    return canvas.finished(rng, 0.4, mirrored=True)


def draw_seat(rng: Generator, size: int) -> Bytes:
    """Draw a sofa or an armchair with cushions, or a kitchen chair."""
    canvas = Cutout(size)
    stuff = _cloth(rng, size, colour(rng, (0.15, 0.8), (0.3, 0.85)))
    wood = jitter(rng, WOODS[rng.integers(len(WOODS))])
    if rng.random() < 0.35:
        for x, top in ((0.3, 0.1), (0.66, 0.1), (0.22, 0.55), (0.74, 0.55)):
            canvas.limb([(x, top), (x, 0.97)], 0.045, wood, 1.0 if top > 0.5 else 0.7)
        for rail in (0.14, 0.27, 0.4):
            canvas.limb([(0.3, rail), (0.66, rail)], 0.05, wood, 0.85)
        canvas.part([(0.28, 0.52), (0.68, 0.52), (0.78, 0.62), (0.18, 0.62)], stuff)
        return canvas.finished(rng, 0.2, mirrored=True)
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
    return canvas.finished(rng, 0.15)


def draw_crate(rng: Generator, size: int) -> Bytes:
    """Draw a wooden crate, two sides and the lid, planks and battens."""
    canvas, wood = Cutout(size), _planks(rng, size)
    corner, rise, high = rng.uniform(0.45, 0.75), rng.uniform(0.08, 0.15), rng.uniform(0.22, 0.4)
    front = [(0.02, high), (corner, high + rise), (corner, 0.98), (0.02, 0.98 - rise)]
    side = [(corner, high + rise), (0.98, high), (0.98, 0.98 - rise), (corner, 0.98)]
    lid = [(0.02, high), (corner, high + rise), (0.98, high), (0.98 - corner + 0.04, high - rise)]
    for face, shade in ((front, 1.0), (side, 0.62), (lid, 1.35)):
        canvas.part(face, wood, shade)
    for face, shade in ((front, 1.12), (side, 0.72)):
        a, b, c, d = (np.array(point) for point in face)
        for start, stop in ((a, b), (b, c), (c, d), (d, a), (a, c)):
            inward = 0.03 * ((a + b + c + d) / 4 - (start + stop) / 2)
            canvas.limb([start + inward, stop + inward], 0.045, wood, shade)
    return canvas.finished(rng, 0.1, mirrored=True)


def draw_tyre(rng: Generator, size: int) -> Bytes:
    """Draw a loose tyre on its tread, seen a little from the side, or a stack of them lying."""
    canvas, rubber = Cutout(size), jitter(rng, (44, 44, 48), 8)
    if rng.random() < 0.4:
        count = int(rng.integers(2, 5))
        for k in range(count):
            y = 0.9 - 0.8 * k / 4
            for step, shade in ((0.07, 0.7), (0.035, 1.0), (0.0, 1.35)):
                canvas.oval((0.5 + 0.02 * (k % 2), y - 0.05 + step), (0.42, 0.1), rubber, shade)
        canvas.oval((0.5, y - 0.05), (0.24, 0.05), rubber, 0.35)
        return canvas.finished(rng, 0.1)
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
    return canvas.finished(rng, 0.15, mirrored=True)


def draw_cone(rng: Generator, size: int) -> Bytes:
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
        tone = white if k % 2 else orange
        for left, shade in ((-1, 1.0), (0.35, 0.78)):
            canvas.part([(0.5 + narrow * left, top), (0.5 + narrow, top), (0.5 + broad, bottom),
                         (0.5 + broad * left, bottom)], tone, shade)  # fmt: skip
    picture = canvas.finished(rng, 0.2)
    return np.ascontiguousarray(np.rot90(picture)) if rng.random() < 0.2 else picture


def draw_suitcase(rng: Generator, size: int) -> Bytes:
    """Draw a suitcase with ribs, a handle and wheels, or with belts around it."""
    canvas, shell = Cutout(size), colour(rng, (0.2, 0.9), (0.25, 0.9))
    half, top = rng.uniform(0.25, 0.45), rng.uniform(0.2, 0.36)
    grip, dark = half * 0.4, np.array([42, 42, 46])
    canvas.limb([(0.5 - grip, top + 0.05), (0.5 - grip, 0.06), (0.5 + grip, 0.06),
                 (0.5 + grip, top + 0.05)], 0.04, dark)  # fmt: skip
    for x in (0.5 - half * 0.75, 0.5 + half * 0.75):
        canvas.oval((x, 0.95), (0.035, 0.035), dark)
    left, right = 0.5 - half, 0.5 + half
    canvas.part([(left + 0.05, top), (right - 0.05, top), (right, top + 0.05), (right, 0.88),
                 (right - 0.05, 0.93), (left + 0.05, 0.93), (left, 0.88), (left, top + 0.05)],
                shell)  # fmt: skip
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
    return canvas.finished(rng, 0.35)


def draw_ball(rng: Generator, size: int) -> Bytes:
    """Draw a football of pentagons, or a beach ball of coloured slices."""
    canvas = Cutout(size)
    axis = np.linspace(-1.04, 1.04, size)
    u, v = np.meshgrid(axis, axis)
    w = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
    turn, tilt = rng.uniform(0, 2 * np.pi, 2)
    v, w = v * np.cos(tilt) - w * np.sin(tilt), v * np.sin(tilt) + w * np.cos(tilt)
    if rng.random() < 0.5:
        ink, skin = colour(rng, (0.0, 0.9), (0.05, 0.5)), np.array([236, 236, 232])
        paint = _football(np.stack([u, v, w], -1), ink, skin)
    else:
        slices = rng.integers(3, 5) * 2
        index = ((np.arctan2(v, u) + turn) % (2 * np.pi) * slices / (2 * np.pi)).astype(int)
        tones = np.stack([colour(rng, (0.5, 1), (0.6, 1)) for _ in range(slices)])
        tones[::2] = 238
        paint = tones[np.minimum(index, slices - 1)]
    canvas.oval((0.5, 0.5), (0.48, 0.48), paint.astype(np.float32))
    return canvas.finished(rng, 0.6)


def draw_umbrella(rng: Generator, size: int) -> Bytes:
    """Draw an open umbrella left on the ground, or a parasol on its stick."""
    canvas = Cutout(size)
    first, second = colour(rng, (0.4, 1), (0.4, 1)), colour(rng, (0.0, 1), (0.5, 1))
    low, ribs = rng.uniform(0.4, 0.62), int(rng.integers(5, 9))
    canvas.limb(
        [(0.5, 0.1), (0.5, 0.93), (0.53, 0.97), (0.57, 0.94)], 0.026, np.array([70, 52, 40])
    )
    edges = -np.cos(np.linspace(0, np.pi, ribs + 1))  # panels narrow to the sides, as on a dome
    for k, (left, right) in enumerate(pairwise(edges)):
        rise = np.linspace(0, np.pi / 2, 10)
        fall = 0.06 + (low - 0.06) * (1 - np.cos(rise))
        up = np.stack([0.5 + 0.48 * left * np.sin(rise), fall], -1)
        down = np.stack([0.5 + 0.48 * right * np.sin(rise), fall], -1)[::-1]
        scallop = [(0.5 + 0.24 * (left + right), low - 0.04)]
        tone = first if k % 2 == 0 else second
        canvas.part(np.concatenate([up, scallop, down]), tone, 1.1 - 0.4 * abs(left + right) / 2)
    return canvas.finished(rng, 0.15)


def _block(left: float, right: float, top: float, bottom: float) -> list[tuple[float, float]]:
    """Return the corners of an upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _fur(rng: Generator, size: int) -> Floats:
    """Draw (size, size, 3) of short hair along the body, plain, pied like a cow's, or barred."""
    base = jitter(rng, COATS[rng.integers(len(COATS))], 12)
    hair = cut(noise_tile(0.4), rng, (size, size), 0.12, stretch=3.0)
    pied = cut(noise_tile(1.5), rng, (size, size), 0.5)
    coat = np.broadcast_to(base, (size, size, 3))
    if rng.random() < 0.45:
        other = jitter(rng, COATS[rng.integers(len(COATS))], 12)
        coat = np.where((pied > 0.1)[..., None], other, coat)
    belly = np.linspace(1.12, 0.8, size)[:, None, None]
    return (coat * belly * (1 + 0.13 * hair[..., None])).astype(np.float32)


def _cloth(rng: Generator, size: int, base: Floats) -> Floats:
    """Draw (size, size, 3), woven, sometimes checked."""
    u = np.arange(size) * (2 * np.pi / max(size / 48, 1.5))
    weave = 0.06 * np.sin(u)[:, None] * np.sin(u)
    pitch = 2 * np.pi * rng.uniform(6, 12) * np.arange(size) / size
    check = (np.sin(pitch) > 0.4).astype(np.float32)
    depth = rng.choice([0.0, 0.16])
    shade = 1 + weave - depth * (check[:, None] + check)
    return (base * shade[..., None]).astype(np.float32)


def _planks(rng: Generator, size: int) -> Floats:
    """Draw (size, size, 3) of boards with gaps, each of its own shade, the grain along them."""
    base = jitter(rng, WOODS[rng.integers(len(WOODS))], 12)
    board = np.arange(size) / size * rng.integers(6, 10)
    tone = rng.uniform(0.82, 1.12, 16)[board.astype(int)] * np.where(board % 1 < 0.1, 0.45, 1.0)
    grain = cut(noise_tile(0.6), rng, (size, size), 0.3, stretch=6.0)
    shade = tone[:, None] * (1 + 0.09 * grain)
    return (base * shade[..., None]).astype(np.float32)


def _football(points: Floats, ink: Floats, skin: Floats) -> Floats:
    """Draw (n, n, 3), dark pentagons, pale hexagons, seams, at points (n, n, 3) of a sphere."""
    golden = (1 + 5**0.5) / 2
    pentagons = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    hexagons = [(0, a * golden, b / golden) for a in (-1, 1) for b in (-1, 1)]
    cube = [(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    faces = [np.roll(f, k) for f in pentagons + hexagons for k in range(3)] + cube
    centres = np.array(faces, np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    # The planes of a truncated icosahedron's faces: pentagons lie a little further out.
    reach = points.astype(np.float32) @ centres.T / np.repeat([2.327, 2.267], [12, 20])
    two = np.partition(reach, -2, axis=-1)[..., -2:]
    dark = (reach.argmax(-1) < 12) | (two[..., 1] - two[..., 0] < 0.006)
    return np.where(dark[..., None], ink, skin)


PAINTERS = (
    draw_animal, draw_seat, draw_crate, draw_tyre, draw_cone, draw_suitcase, draw_ball,
    draw_umbrella,
)  # fmt: skip
"""Each draws one object of its family, (h, w, 4) RGBA, the longer side about `size` pixels."""
