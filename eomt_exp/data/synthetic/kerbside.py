"""Draws what stands along the road: trees, lamps, poles, signs, traffic lights."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator

from eomt_exp.data.synthetic.scene import POLE, SIGN, VEGETATION, Scene, box_end, ellipse
from eomt_exp.data.synthetic.textures import Bytes, Floats, colour, cut, jitter, noise_tile

CROWNS = 24
CROWN_SIZE = 160
GREY = (128, 132, 136)


@lru_cache(maxsize=CROWNS * 5)
def crown(index: int, size: int = CROWN_SIZE) -> tuple[Floats, Floats]:
    """Return shade times alpha, and alpha in [0, 1], (size, size), of a crown or a conifer."""
    if size < CROWN_SIZE:
        shade, alpha = (
            cv2.resize(larger, (size, size), interpolation=cv2.INTER_AREA)
            for larger in crown(index, 2 * size)
        )
        return shade, alpha
    rng = np.random.default_rng([11, index])
    v, u = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    lumps = cut(noise_tile(1.4), rng, (size, size), 0.25)
    leaves = cut(noise_tile(0.5), rng, (size, size), 0.16)
    kind = index % 3
    if kind == 2:  # a cone with tiers
        width = 0.08 + 0.42 * (v + 1) * (0.85 + 0.15 * np.sin(9 * v + 2))
        inside = (width - np.abs(u)) + 0.05 * lumps + 0.06 * leaves
    else:
        inside = 0.86 - np.hypot(u * (1.0 if kind == 0 else 1.35), v) + 0.09 * lumps + 0.06 * leaves
    alpha = np.clip(inside * 14, 0, 1) * (np.abs(v) < 0.985) * (np.abs(u) < 0.985)
    holes = np.clip((leaves + 0.6 * lumps + 2.1) * 3, 0, 1)  # the sky shines through here and there
    shade = 0.95 - 0.28 * v + 0.14 * lumps + 0.2 * leaves
    alpha = (alpha * holes).astype(np.float32)
    return (shade * alpha).astype(np.float32), alpha


def _foliage(index: int, tone: Floats, pixels: float) -> Bytes:
    """Return a green crown, (s, s, 4) premultiplied RGBA, not much finer than `pixels` high."""
    size = CROWN_SIZE
    while size > 20 and size >= 2 * pixels:
        size //= 2
    shade, alpha = crown(index, size)
    sprite = np.empty((size, size, 4), np.float32)
    np.multiply(shade[..., None], tone, out=sprite[..., :3])
    np.multiply(alpha, 255, out=sprite[..., 3])
    return np.minimum(sprite, 255, out=sprite).astype(np.uint8)


def draw_tree(scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw a trunk and a crown; greens from spring to autumn."""
    high, wide = rng.uniform(4.0, 9.0), rng.uniform(0.25, 0.5)
    index, flip = int(rng.integers(CROWNS)), bool(rng.random() < 0.5)
    greens = [(74, 108, 48), (58, 92, 50), (96, 122, 56), (116, 116, 52), (150, 104, 44)]
    tone = jitter(rng, greens[rng.choice(5, p=[0.32, 0.3, 0.2, 0.12, 0.06])], 12)
    conifer = index % 3 == 2
    trunk = 0.12 * high if conifer else rng.uniform(1.6, 2.4)
    spread = 0.8 if conifer else rng.uniform(0.95, 1.3)
    crown_height = high - trunk + 0.4
    scene.shade(ellipse(x, z, 0.28 * high, 0.16 * high), 0.68)
    bark = jitter(rng, (92, 74, 58), 10)
    sprite = _foliage(index, tone, crown_height * scene.camera.pixels_per_metre(z))
    scene.bar(x, z, (0, trunk + 0.8), wide * (0.7 if conifer else 1.0), bark, VEGETATION)
    sprite = sprite[:, ::-1] if flip else sprite
    scene.paste(sprite, x, z, crown_height, VEGETATION, trunk, 0.8 * spread)


def draw_bush(scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw a crown without a trunk."""
    index, high = int(rng.integers(CROWNS // 3)) * 3, rng.uniform(0.8, 2.0)
    pixels = high * scene.camera.pixels_per_metre(z)
    sprite = _foliage(index, jitter(rng, (70, 100, 48), 14), pixels)
    scene.paste(sprite, x, z, high, VEGETATION, lift=-0.1)


def draw_lamp(scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw a street lamp whose arm reaches over the road; it glows from dusk on."""
    high, arm = rng.uniform(5.5, 8.0), -np.sign(x) * rng.uniform(0.8, 1.8)
    metal = jitter(rng, GREY, 18) * rng.choice([0.6, 1.0])
    scene.bar(x, z, (0, high), 0.16, metal, POLE)
    end, thick = x + arm, max(0.09, 1.0 / scene.camera.pixels_per_metre(z))
    scene.fill([[x, high, z], [end, high + 0.25, z], [end, high + 0.25 - thick, z],
                [x, high - thick, z]], metal, POLE)  # fmt: skip
    scene.fill(box_end((end - 0.3, end + 0.3), z, (high + 0.1, high + 0.3)), metal * 1.2, POLE)
    night = scene.weather.night
    if night > 0.3:
        radius = 0.35 * scene.camera.pixels_per_metre(z)
        scene.glow([end, high + 0.1, z], radius, (230 * night, 180, 110))


def draw_pole(scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw a bollard, or a wooden or steel mast."""
    high = rng.choice([0.95, rng.uniform(6, 9)], p=[0.4, 0.6])
    tone = jitter(rng, [(110, 88, 66), GREY, (70, 72, 76)][rng.integers(3)], 12)
    scene.bar(x, z, (0, high), 0.2, tone, POLE)


def draw_sign(scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw a traffic sign on its pole: ring, triangle, disc, octagon, diamond or board."""
    low, radius = rng.uniform(1.9, 2.5), rng.uniform(0.34, 0.5)
    scene.bar(x, z, (0, low + radius), 0.09, jitter(rng, GREY, 12), POLE)
    red, blue = (196, 32, 36), (28, 76, 170)
    white, yellow, green = (236, 236, 232), (240, 196, 30), (26, 112, 72)
    kind = rng.integers(7)
    corners, turn = ((16, 0), (3, 0), (16, 0), (8, 0.39), (4, 0), (4, 0.785), (4, 0.785))[kind]
    rim, face = ((red, white), (red, white), (blue, blue), (white, red), (white, yellow),
                 (white, blue), (white, green))[kind]  # fmt: skip
    aspect = (1.0, rng.uniform(1.3, 2.2))[int(kind == 6)]
    angles = np.pi / 2 + turn + 2 * np.pi * np.arange(corners) / corners
    shape = np.stack([aspect * np.cos(angles), np.sin(angles), 0 * angles], -1) * radius
    middle = np.array([x, low + radius, z])
    scene.fill(middle + shape, rim, SIGN)
    scene.fill(middle + shape * (0.74 if rim != white else 0.86), face)
    if kind in (0, 3, 5, 6):
        bar = np.array(box_end((-0.4, 0.4), 0, (-0.12, 0.12))) * radius * [aspect, 1, 1]
        mark = (40, 40, 44) if face == white else white
        for lift in (0.35, 0.35 - 0.7) if kind == 6 else (0.0,):
            scene.fill(middle + bar + [0, radius * lift, 0], mark)


def draw_traffic_light(scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw three lamps on a pole, one of them lit."""
    low = rng.uniform(2.3, 3.0)
    scene.bar(x, z, (0, low), 0.12, jitter(rng, GREY, 12) * 0.7, POLE)
    scene.fill(box_end((x - 0.2, x + 0.2), z, (low, low + 1.05)), (34, 36, 38), SIGN)
    lit = rng.choice(3, p=[0.4, 0.15, 0.45])
    for index, lamp in enumerate(((235, 40, 36), (250, 180, 40), (50, 220, 130))):
        height = low + 0.86 - 0.33 * index
        tone = np.array(lamp) * (1.0 if index == lit else 0.22)
        scene.fill(ellipse(x, z, 0.13, 0.0, height, 0.13), tone)
        if index == lit:
            radius = 0.16 * scene.camera.pixels_per_metre(z) * (1 + scene.weather.night)
            scene.glow([x, height, z], radius, 0.35 * tone)


def draw_poster(scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw a board with the names of far towns, on two poles."""
    wide, low = rng.uniform(1.4, 2.4), rng.uniform(1.6, 2.2)
    for shift in (-0.35, 0.35):
        scene.bar(x + shift * wide, z, (0, low + 0.2), 0.1, jitter(rng, GREY, 10), POLE)
    tone = [(28, 76, 160), (28, 110, 70), (236, 200, 60)][rng.integers(3)]
    frame = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0.5, 1, 0], [-0.5, 1, 0]])
    corner = np.array([x, low, z])
    scene.fill(corner + frame * [wide, 1.1, 0], (234, 234, 230), SIGN)
    scene.fill(corner + frame * [wide * 0.95, 1.02, 0] + [0, 0.04, 0], tone, SIGN)
    ink = (240, 240, 240) if tone[0] < 200 else (30, 30, 30)
    for line in range(3):
        size = wide * rng.uniform(0.4, 0.7)
        scene.fill(corner + frame * [size, 0.12, 0] + [0, 0.2 + 0.29 * line, 0], ink)


def draw_flowers(scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw a low bush in bloom."""
    sprite, high = _foliage(0, jitter(rng, (74, 104, 52), 12), 40), rng.uniform(0.5, 0.9)
    spots = cut(noise_tile(0.2), rng, sprite.shape[:2], 0.1) > 1.5
    sprite[spots & (sprite[..., 3] > 200), :3] = colour(rng, (0.4, 0.9), (0.7, 1.0))
    scene.paste(sprite, x, z, high, VEGETATION, lift=-0.08)
