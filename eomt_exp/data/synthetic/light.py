"""Does a scene's last pass: fog, dusk, lamps, rain, lens and sensor over everything.

Anomalies are drawn before this pass, so no seam of compositing marks them.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from eomt_exp.data.synthetic.scene import FAR, ROAD, SKY, Glow, Scene
from eomt_exp.data.synthetic.textures import Bytes, Floats, cut_pixels, noise_tile, streak_tile


def finish(scene: Scene, rng: Generator) -> Bytes:
    """Return the photograph of a scene, (H, W, 3) uint8 RGB."""
    picture, weather = scene.image.astype(np.float32), scene.weather
    if weather.rain > 0:
        _reflect(picture, scene)
    # The sky has been drawn with its haze already; fog shall not hide its clouds twice.
    air = np.exp(-weather.fog * np.where(scene.depth >= FAR, 12.0, scene.depth))[..., None]
    picture = weather.haze + (picture - weather.haze) * air
    picture *= np.asarray(weather.tint, np.float32)
    _shine(picture, [*scene.glows, *_sun_glow(scene, rng)])
    if weather.rain > 0:
        streaks = cut_pixels(streak_tile(), rng, picture.shape[:2])
        picture += 55 * weather.rain * streaks[..., None]
    return _photograph(picture, weather.night, rng)


def _photograph(picture: Floats, night: float, rng: Generator) -> Bytes:
    """Add contrast, lens blur, vignette and sensor noise, the noise stronger by night."""
    height, width = picture.shape[:2]
    gain, gamma = rng.normal(1.0, 0.06), np.exp(rng.normal(0, 0.1))
    curve = np.clip(255 * gain * (np.arange(256) / 255) ** gamma, 0, 255).astype(np.float32)
    picture = curve[np.clip(picture, 0, 255).astype(np.uint8)]
    sigma = abs(rng.normal(0.3, 0.18)) * height / 128
    if sigma > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    across = np.linspace(-1, 1, width, dtype=np.float32) ** 2
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] ** 2
    strength = rng.uniform(1.0, 4.0) * (1 + 1.5 * night)
    grain = strength * cut_pixels(noise_tile(0.0), rng, (height, width))
    # Colour noise is coarser than grey noise, as behind a Bayer pattern.
    chroma = 0.4 * strength * cut_pixels(noise_tile(0.5), rng, (height, width))
    picture *= (1 - rng.uniform(0, 0.1) * (across + down))[..., None]
    picture += np.stack([grain + chroma, grain, grain - chroma], -1)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _reflect(picture: Floats, scene: Scene) -> None:
    """Mirror what stands above the horizon in a wet road."""
    horizon = round(scene.camera.horizon)
    depth = min(horizon, picture.shape[0] - horizon)
    mirrored = cv2.blur(picture[horizon - depth : horizon][::-1], (3, 9))
    ground = picture[horizon : horizon + depth]
    road = scene.labels[horizon : horizon + depth] == ROAD
    ground += 0.36 * scene.weather.rain * road[..., None] * (mirrored - ground)


def _sun_glow(scene: Scene, rng: Generator) -> list[Glow]:
    """Return a low sun in some scenes, blinding a little, unless something stands before it."""
    camera, weather = scene.camera, scene.weather
    shines = rng.random() < 0.35 * weather.sun
    column = camera.width * (0.5 + weather.side * rng.uniform(0.1, 0.5))
    row, radius = camera.horizon * rng.uniform(0.1, 0.7), camera.height * rng.uniform(0.1, 0.3)
    seen = scene.labels[int(row), int(np.clip(column, 0, camera.width - 1))] == SKY
    return [Glow(column, row, radius, (150, 135, 95))] if shines and seen else []


def _shine(picture: Floats, glows: list[Glow]) -> None:
    """Add discs of light with soft halos, computed on half the grid to be cheap."""
    if not glows:
        return
    height, width = picture.shape[:2]
    h, w = -(-height // 2), -(-width // 2)
    light = np.zeros((h, w, 3), np.float32)
    for glow in glows:
        radius = glow.radius / 2
        reach = 3 * radius + 1
        top, bottom = int(max(glow.row / 2 - reach, 0)), int(min(glow.row / 2 + reach, h))
        left, right = int(max(glow.column / 2 - reach, 0)), int(min(glow.column / 2 + reach, w))
        if top >= bottom or left >= right:
            continue
        rows = (np.arange(top, bottom)[:, None] - glow.row / 2) / radius
        columns = (np.arange(left, right)[None] - glow.column / 2) / radius
        halo = np.exp(-1.5 * np.sqrt(rows**2 + columns**2))[..., None]
        light[top:bottom, left:right] += halo * np.asarray(glow.colour, np.float32)
    picture += cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
