"""Draws people: a few limbs, a coat, a face; walking, standing, looking away."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from eomt_exp.data.synthetic.scene import PERSON, Scene, ellipse
from eomt_exp.data.synthetic.textures import Bytes, Floats, colour, jitter

SKIN = ((238, 202, 172), (222, 176, 140), (176, 128, 92), (122, 84, 58), (86, 58, 42))
HAIR = ((34, 28, 24), (74, 50, 32), (134, 96, 52), (206, 176, 110), (150, 148, 146), (140, 60, 30))


class Figure:
    """Holds an RGBA canvas for limbs in a body's own units: 1 is the body's height."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pixels: Bytes = np.zeros((size, size // 2, 4), np.uint8)

    def limb(self, joints: ArrayLike, width: float, tone: Floats) -> None:
        """Draw a stroke with round ends through joints (N, 2), x from the middle, y from top."""
        points = self._pixels(joints)
        thick = max(1, round(width * self.size))
        cv2.polylines(self.pixels, [points], False, (*tone.tolist(), 255), thick)

    def part(self, corners: ArrayLike, tone: Floats) -> None:
        """Fill a polygon, (N, 2)."""
        cv2.fillPoly(self.pixels, [self._pixels(corners)], (*tone.tolist(), 255))

    def ball(self, centre: tuple[float, float], axes: tuple[float, float], tone: Floats) -> None:
        """Fill an ellipse."""
        middle = self._pixels([centre])[0].tolist()
        half = [max(1, round(axis * self.size)) for axis in axes]
        cv2.ellipse(self.pixels, middle, half, 0, 0, 360, (*tone.tolist(), 255), -1)

    def _pixels(self, points: ArrayLike) -> np.ndarray:
        shifted = np.asarray(points, np.float64) + np.array([0.25, 0.0])
        return np.round(shifted * self.size).astype(np.int32)


def draw_person(scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw someone on their feet at (x, z), with a small shadow."""
    high = rng.uniform(1.55, 1.92) if rng.random() < 0.88 else rng.uniform(1.05, 1.4)
    pixels = high * scene.camera.pixels_per_metre(z)
    figure = draw_figure(rng, size=int(np.clip(2 * pixels, 64, 400)))
    scene.shade(ellipse(x, z, 0.32, 0.3, corners=12), 0.55)
    scene.paste(figure, x, z, high, PERSON)


def draw_figure(rng: Generator, size: int) -> Bytes:
    """Draw one person, (size, about size / 2, 4) RGBA, cut to its outline."""
    figure = Figure(size)
    skin = jitter(rng, SKIN[rng.integers(len(SKIN))], 8)
    hair = jitter(rng, HAIR[rng.integers(len(HAIR))], 8)
    vivid = rng.random() < 0.45
    top = colour(rng, (0.3, 0.9), (0.35, 0.95)) if vivid else colour(rng, (0.0, 0.2), (0.12, 0.9))
    jeans, shoes = colour(rng, (0.05, 0.5), (0.15, 0.55)), colour(rng, (0.0, 0.3), (0.08, 0.6))
    stride, swing = rng.uniform(0.0, 0.13), rng.uniform(0.02, 0.1)
    build = rng.uniform(0.85, 1.2)
    skirt, coat, bag = rng.random() < 0.2, rng.random() < 0.3, rng.random() < 0.25
    legs = skin if skirt else jeans
    for side, shade in ((-1, 0.8), (1, 1.0)):
        foot = side * max(stride, 0.035)
        knee = foot * 0.6 + 0.015
        figure.limb([(side * 0.03, 0.52), (knee, 0.74), (foot, 0.95)], 0.075 * build, legs * shade)
        figure.limb([(foot, 0.965), (foot + 0.035, 0.975)], 0.04, shoes * shade)
    far_arm = [(-0.075 * build, 0.22), (-0.1 * build, 0.36), (-0.09 - swing, 0.49)]
    figure.limb(far_arm, 0.055 * build, top * 0.75)
    if bag:
        figure.part([(-0.15, 0.22), (-0.02, 0.2), (-0.02, 0.42), (-0.15, 0.42)], jeans * 0.7)
    hem, flare = (0.68, 0.11) if coat else (0.53, 0.08)
    torso = [(-0.09, 0.18), (0.09, 0.18), (0.085, 0.36), (flare, hem), (-flare, hem),
             (-0.085, 0.36)]  # fmt: skip
    figure.part(np.array(torso) * [build, 1], top)
    if skirt and not coat:
        figure.part([(-0.075, 0.5), (0.075, 0.5), (0.12, 0.72), (-0.12, 0.72)], jeans)
    figure.part(np.array([(0.03, 0.19), (0.09, 0.18), (flare, hem), (0.05, hem)]) * [build, 1],
                top * 0.85)  # fmt: skip
    near_arm = [(0.08 * build, 0.22), (0.1 * build, 0.37), (0.085 + swing, 0.49)]
    figure.limb(near_arm, 0.055 * build, top * 0.92)
    figure.ball((0.09 + swing, 0.51), (0.02, 0.022), skin)
    _draw_head(figure, rng, skin, hair)
    rows = np.flatnonzero(figure.pixels[..., 3].any(1))
    return figure.pixels[rows[0] : rows[-1] + 1]


def _draw_head(figure: Figure, rng: Generator, skin: Floats, hair: Floats) -> None:
    """Draw neck, face or the back of a head, hair or a cap."""
    style, cap = rng.integers(3), colour(rng, (0.2, 0.9), (0.2, 0.9))
    figure.limb([(0, 0.13), (0, 0.19)], 0.045, skin * 0.85)
    if style == 1:  # long hair
        figure.part([(-0.055, 0.07), (0.055, 0.07), (0.065, 0.2), (-0.065, 0.2)], hair)
    figure.ball((0, 0.085), (0.047, 0.06), skin)
    figure.ball((-0.006, 0.058), (0.052, 0.042), cap if style == 2 else hair)
    if rng.random() < 0.4:  # turned away
        figure.ball((0, 0.08), (0.05, 0.058), hair)
