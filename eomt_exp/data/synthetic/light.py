"""Draws the weather, and a scene's last pass: fog, dusk, lamps, rain, lens and sensor over all.

Anomalies are drawn before this pass, so no seam of compositing marks them.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from eomt_exp.data.synthetic.scene import FAR, ROAD, SKY, Camera, Glow, Scene
from eomt_exp.data.synthetic.textures import (
    Bytes,
    Floats,
    cut_pixels,
    jitter,
    noise_tile,
    streak_tile,
)


class Weather(NamedTuple):
    """Describes sky and light of one scene; colours are RGB in 0..255."""

    kind: str
    sun: float  # 0 no cast shadows .. 1 hard ones
    side: int  # the sun stands left (-1) or right (1)
    zenith: Floats
    haze: Floats  # the sky at the horizon, and what fog fades to
    clouds: float  # share of the sky
    fog: float  # extinction, 1/metres
    rain: float  # 0..1
    night: float  # 0 day .. 1 night: lamps and windows are lit
    tint: tuple[float, float, float]  # gain of each channel


#              share  sun  zenith            haze              clouds fog    rain night tint
KINDS = {
    "clear": (0.34, 1.0, (70, 125, 205), (190, 214, 236), 0.25, 0.0012, 0, 0.0, (1.04, 1.0, 0.95)),
    "cloudy": (0.18, 0.6, (96, 140, 196), (206, 216, 224), 0.6, 0.002, 0, 0.0, (1.0, 1.0, 1.0)),
    "overcast": (0.16, 0, (166, 172, 180), (208, 210, 212), 0.9, 0.004, 0, 0.0, (0.9, 0.92, 0.95)),
    "fog": (0.09, 0.0, (188, 192, 196), (205, 207, 209), 0.3, 0.026, 0, 0.1, (0.94, 0.95, 0.97)),
    "rain": (0.09, 0.0, (112, 120, 132), (158, 164, 172), 0.8, 0.009, 1, 0.25, (0.74, 0.78, 0.84)),
    "dusk": (0.09, 0.35, (74, 88, 150), (250, 170, 110), 0.45, 0.003, 0, 0.5, (0.9, 0.72, 0.66)),
    "night": (0.05, 0.0, (28, 34, 66), (72, 70, 92), 0.3, 0.003, 0, 1.0, (0.44, 0.46, 0.62)),
}  # fmt: skip


def draw_weather(rng: np.random.Generator) -> Weather:
    """Draw a kind of weather by its share, every number of it moved a little."""
    shares = np.array([row[0] for row in KINDS.values()])
    kind = str(rng.choice(list(KINDS), p=shares / shares.sum()))
    _, sun, zenith, haze, clouds, fog, rain, night, tint = KINDS[kind]
    return Weather(
        kind=kind,
        sun=sun * rng.uniform(0.6, 1.0),
        side=int(rng.choice([-1, 1])),
        zenith=jitter(rng, zenith, 12),
        haze=jitter(rng, haze, 10),
        clouds=float(np.clip(clouds + rng.normal(0, 0.15), 0, 1)),
        fog=fog * rng.uniform(0.6, 1.5),
        rain=rain * rng.uniform(0.5, 1.0),
        night=float(np.clip(night * rng.uniform(0.8, 1.15), 0, 1)),
        tint=tuple(np.asarray(tint) * rng.normal(1, 0.025, 3) * rng.uniform(0.9, 1.1)),
    )


def finish(scene: Scene, weather: Weather, rng: np.random.Generator) -> Bytes:
    """Return the photograph of a scene, (H, W, 3) uint8 RGB."""
    picture = scene.image.astype(np.float32)
    if weather.rain > 0:
        _reflect(picture, scene, 0.36 * weather.rain)
    # The sky has been drawn with its haze already; fog shall not hide its clouds twice.
    air = np.exp(-weather.fog * np.where(scene.depth >= FAR, 12.0, scene.depth))[..., None]
    picture = weather.haze + (picture - weather.haze) * air
    picture *= np.asarray(weather.tint, np.float32)
    light = _glow(scene.camera, [*scene.glows, *_sun_glow(scene, weather, rng)])
    if light is not None:
        picture += light
    if weather.rain > 0:
        picture += 55 * weather.rain * cut_pixels(
            streak_tile(), rng, picture.shape[:2])[..., None]  # fmt: skip
    return _photograph(picture, scene.camera, weather.night, rng)


def _photograph(picture: Floats, camera: Camera, night: float, rng: np.random.Generator) -> Bytes:
    """Add contrast, lens blur, vignette and sensor noise, the noise stronger by night."""
    gain, gamma = rng.normal(1.0, 0.06), np.exp(rng.normal(0, 0.1))
    curve = np.clip(255 * gain * (np.arange(256) / 255) ** gamma, 0, 255).astype(np.float32)
    picture = curve[np.clip(picture, 0, 255).astype(np.uint8)]
    sigma = abs(rng.normal(0.3, 0.18)) * camera.height / 128
    if sigma > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    across = np.linspace(-1, 1, camera.width, dtype=np.float32) ** 2
    down = np.linspace(-1, 1, camera.height, dtype=np.float32)[:, None] ** 2
    strength = rng.uniform(1.0, 4.0) * (1 + 1.5 * night)
    grain = strength * cut_pixels(noise_tile(0.0), rng, picture.shape[:2])
    # Colour noise is coarser than grey noise, as behind a Bayer pattern.
    chroma = 0.4 * strength * cut_pixels(noise_tile(0.5), rng, picture.shape[:2])
    picture *= (1 - rng.uniform(0, 0.1) * (across + down))[..., None]
    picture += np.stack([grain + chroma, grain, grain - chroma], -1)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _reflect(picture: Floats, scene: Scene, strength: float) -> None:
    """Mirror what stands above the horizon in a wet road."""
    horizon = round(scene.camera.horizon)
    depth = min(horizon, picture.shape[0] - horizon)
    mirrored = cv2.blur(picture[horizon - depth : horizon][::-1], (3, 9))
    ground = picture[horizon : horizon + depth]
    wet = strength * (scene.labels[horizon : horizon + depth] == ROAD)[..., None]
    ground += wet * (mirrored - ground)


def _sun_glow(scene: Scene, weather: Weather, rng: np.random.Generator) -> list[Glow]:
    """Return a low sun in some scenes, blinding a little, unless something stands before it."""
    camera = scene.camera
    shines = rng.random() < 0.35 * weather.sun
    column = camera.width * (0.5 + weather.side * rng.uniform(0.1, 0.5))
    row, radius = camera.horizon * rng.uniform(0.1, 0.7), camera.height * rng.uniform(0.1, 0.3)
    seen = scene.labels[int(row), int(np.clip(column, 0, camera.width - 1))] == SKY
    return [Glow(column, row, radius, (150, 135, 95))] if shines and seen else []


def _glow(camera: Camera, glows: list[Glow]) -> Floats | None:
    """Return (H, W, 3) of light to add: discs with soft halos, on half the grid to be cheap."""
    if not glows:
        return None
    h, w = -(-camera.height // 2), -(-camera.width // 2)
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
    return cv2.resize(light, (camera.width, camera.height), interpolation=cv2.INTER_LINEAR)
