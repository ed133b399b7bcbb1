"""Paints what every scene starts from: the sky, the far hills, and the ground with its road."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from eomt_exp.data.synthetic.scene import BUILDING, PAVEMENT, ROAD, VEGETATION, Scene
from eomt_exp.data.synthetic.setting import Street
from eomt_exp.data.synthetic.textures import Floats, cut, jitter, lookup, noise_tile


def paint_sky(scene: Scene, rng: Generator) -> None:
    """Paint a gradient from zenith to haze, with clouds that lie flatter towards the horizon."""
    camera, weather = scene.camera, scene.weather
    rows = min(camera.height, int(camera.horizon) + 2)
    climb = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None] ** rng.uniform(0.6, 1.2)
    sky = weather.zenith + (weather.haze - weather.zenith) * climb
    shape = cut(noise_tile(1.5), rng, (rows, camera.width), rng.uniform(0.3, 0.7), 2.2)
    threshold = np.quantile(shape[::4, ::4], 1 - weather.clouds) if weather.clouds > 0.02 else 9.0
    cover = np.clip((shape - threshold) * 1.6, 0, 1)[..., None] * (1 - 0.5 * climb)
    relief = np.clip(1 - 0.16 * (shape - threshold - 0.4), 0.72, 1.02)[..., None]
    brightness = 60 if weather.night > 0.6 else 215 if weather.kind in ("rain", "fog") else 248
    cloud = relief * (0.65 * brightness + 0.35 * weather.haze * (1 - 0.5 * weather.night))
    scene.image[:rows] = np.clip(sky + (cloud - sky) * 0.92 * cover, 0, 255)


def paint_distance(scene: Scene, rng: Generator) -> None:
    """Paint a far tree line or hill, or a skyline in the city, pale from the air between."""
    camera, weather = scene.camera, scene.weather
    skyline = scene.street.style == "city" and rng.random() < 0.6
    waves = rng.normal(0, 1, 6) / (1 + np.arange(6))
    along = np.linspace(0, 1, 160)
    rolling = sum(a * np.sin(2 * np.pi * (k + 1) * along + 5 * a) for k, a in enumerate(waves))
    rough = rng.normal(0, 1, 160)
    if skyline:
        heights = np.repeat(np.abs(rng.normal(0.06, 0.04, 40)), 4)
    else:
        heights = 0.05 + 0.02 * rolling + 0.004 * rough * rng.integers(0, 2)
    tops = camera.horizon - camera.height * np.clip(heights, 0.012, 0.3)
    corners = [(0, camera.horizon + 2), *zip(along * camera.width, tops, strict=True),
               (camera.width, camera.horizon + 2)]  # fmt: skip
    near = jitter(rng, (128, 124, 122) if skyline else (66, 92, 58))
    colour = 0.5 * near + 0.5 * weather.haze * (1 - 0.4 * weather.night)
    scene.fill_pixels(corners, colour, BUILDING if skyline else VEGETATION, 150.0)


def paint_ground(scene: Scene, rng: Generator) -> None:
    """Paint road, markings, kerbs, pavements, verges and the shadows that lie on them."""
    street = scene.street
    first, x, z = scene.camera.ground()
    fade = np.minimum(1, 9 / z)  # texture drowns in the distance instead of shimmering
    fine = lookup(noise_tile(0.3), x, z, 24.0) * fade
    coarse = lookup(noise_tile(1.3), x + 90 * rng.random(), z + 90 * rng.random(), 5.0) * fade**0.3
    distance = np.abs(x)
    edge = street.half + np.where(x > 0, street.pavements[1], street.pavements[0])
    lush = rng.random()  # grass, lush or dry, with patches
    base = jitter(rng, (92, 118, 58), 12) * lush + jitter(rng, (136, 128, 76), 12) * (1 - lush)
    ground = base * (1 + 0.16 * fine + 0.1 * coarse)[..., None]
    ground = ground + coarse[..., None] * np.array([7, 3, -2], np.float32)
    paving = _paving(x, z, fade, fine, coarse, rng)
    on_pavement, on_road = distance < edge, distance < street.half
    np.copyto(ground, paving, where=on_pavement[..., None])
    kerb = on_pavement & (distance < street.half + 0.18)
    ground[kerb] = 0.5 * ground[kerb] + 0.5 * jitter(rng, (176, 174, 170), 10)
    np.copyto(ground, _asphalt(x, z, street, fine, coarse, rng), where=on_road[..., None])
    gutter = np.abs(distance - street.half + 0.06) < 0.06
    ground[gutter & on_road] *= 0.72
    ground *= (1 - 0.55 * scene.weather.sun * _cast_shadow(x, z, scene, rng))[..., None]
    scene.image[first:] = np.clip(ground, 0, 255)
    scene.labels[first:] = np.where(on_road, ROAD, np.where(on_pavement, PAVEMENT, VEGETATION))
    scene.depth[first:] = z


def _paving(
    x: Floats, z: Floats, fade: Floats, fine: Floats, coarse: Floats, rng: Generator
) -> Floats:
    """Return (h, W, 3) of slabs with joints, each slab its own grey (or red, or sand)."""
    palette = [(158, 154, 148), (142, 142, 142), (166, 134, 116), (176, 164, 138)]
    base = jitter(rng, palette[rng.integers(4)], 12)
    slab = rng.uniform(0.4, 0.9)
    u, v = x / slab, z / (slab * rng.choice([1.0, 1.6]))
    joints = (u - np.floor(u) < 0.07) | (v - np.floor(v) < 0.07)
    # A cheap hash of the slab's position gives each one its shade.
    tone = np.sin(np.floor(u) * 12.99 + np.floor(v) * 78.23) * 43.7
    tone = (tone - np.floor(tone) - 0.5) * 0.16
    shade = 1 + fade * (tone - 0.22 * joints) + 0.05 * fine + 0.05 * coarse
    return base * shade[..., None].astype(np.float32)


def _asphalt(
    x: Floats, z: Floats, street: Street, fine: Floats, coarse: Floats, rng: Generator
) -> Floats:
    """Return (h, W, 3) of asphalt with wheel tracks, patches and cracks, then its markings."""
    base = rng.uniform(72, 128) + rng.normal(0, 3, 3).astype(np.float32)
    tracks = -0.05 * np.cos(4 * np.pi * (x + street.half) / street.lane)
    shade = 1 + 0.08 * fine + 0.07 * coarse + tracks
    for _ in range(rng.integers(0, 4)):
        left, near = rng.uniform(-street.half, street.half * 0.7), rng.uniform(3, 30)
        wide, long = rng.uniform(0.5, 2.2), rng.uniform(0.8, 8)
        inside = (x > left) & (x < left + wide) & (z > near) & (z < near + long)
        shade[inside] *= rng.uniform(0.76, 1.12)
    cracks = np.abs(coarse + 0.5 * rng.normal()) < 0.035 * rng.integers(0, 2)
    shade[cracks & (z < 25)] *= 0.8
    road = base * shade[..., None]
    paint = _markings(x, z, street, rng) * np.clip(1.0 + rng.uniform(-0.3, 0.4) * fine, 0, 1)
    white = jitter(rng, (222, 222, 216), 8)
    return road + (white - road) * (rng.uniform(0.6, 0.95) * paint)[..., None]


def _markings(x: Floats, z: Floats, street: Street, rng: Generator) -> Floats:
    """Return (h, W) in [0, 1]: edge lines, dashes between the lanes, perhaps a zebra crossing."""
    texel = x[:, 1:2] - x[:, :1]  # metres a pixel, to soften the edges of thin lines
    phase, period, duty = rng.random() * 9, rng.uniform(6, 10), rng.uniform(0.35, 0.6)
    dashed = (np.mod(z + phase, period) < duty * period).astype(np.float32)
    solid_centre, edges = rng.random() < 0.25, rng.random() < 0.75
    lines: list[tuple[float, float | Floats]]
    lines = [(side * (street.half - 0.3), 1.0) for side in (-1, 1) if edges]
    for k in range(1, street.lanes):
        solid = solid_centre and 2 * k == street.lanes
        lines.append((street.half * (2 * k / street.lanes - 1), 1.0 if solid else dashed))
    paint = np.zeros_like(x)
    for position, drawn in lines:
        cover = np.clip((0.075 - np.abs(x - position)) / texel + 0.5, 0, 1)
        cover *= np.minimum(1, 0.15 / texel)
        paint = np.maximum(paint, cover * drawn)
    zebra, near = rng.random() < (0.3 if street.style == "city" else 0.1), rng.uniform(6, 22)
    if zebra:
        crossing = (z > near) & (z < near + 3.2) & (np.abs(x) < street.half - 0.3)
        paint = np.where((z > near - 1.5) & (z < near + 4.5), 0, paint)
        paint = np.maximum(paint, crossing & (np.mod(x + street.half, 1.0) < 0.52))
    return paint


def _cast_shadow(x: Floats, z: Floats, scene: Scene, rng: Generator) -> Floats:
    """Return (h, W) in [0, 1]: what houses and trees on the sunny side throw over the ground."""
    street, weather = scene.street, scene.weather
    reach = rng.uniform(1.0, 2.2) * street.half * (0.4 if street.style != "city" else 1.0)
    blocks = np.repeat(rng.random(40) < 0.7, 7) * np.repeat(rng.uniform(0.3, 1.0, 40), 7)
    lengths = blocks[np.minimum(z + 3 * x * weather.side * 0.2, 270).clip(0).astype(int)] * reach
    shadow = (x * weather.side > street.half + 1.5 - lengths).astype(np.float32)
    leaves = lookup(noise_tile(1.1), x + 50 * rng.random(), z, 9.0)
    dapple = np.clip(2 * (leaves - rng.uniform(0.6, 1.6)), 0, 1) * (rng.random() < 0.4)
    return cv2.blur(np.maximum(shadow, dapple.astype(np.float32)), (3, 3))
