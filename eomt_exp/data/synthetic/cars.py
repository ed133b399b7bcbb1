"""Draws cars: side profiles are pulled to a width, turned, and drawn face by face."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from eomt_exp.data.synthetic.scene import CAR, Colour, Scene
from eomt_exp.data.synthetic.textures import Floats, colour, jitter


class Body(NamedTuple):
    """Describes a kind of car, from its rear (u = 0) to its nose; all in metres.

    glass says which edges of the outline are panes; wheels are the positions of the axles; outline
    goes from the rear's foot over the roof to the nose's foot; side_panes are on the flank.
    """

    glass: tuple[int, ...]
    wheels: tuple[float, ...]
    width: float
    outline: tuple[tuple[float, float], ...]
    side_panes: tuple[tuple[tuple[float, float], ...], ...]


BODIES = {
    "sedan": Body(
        (3, 5), (0.85, 3.55), 1.78,
        ((0.05, 0.3), (0, 0.75), (0.1, 0.98), (0.75, 1.02), (1.45, 1.42), (2.6, 1.45),
         (3.35, 1.0), (4.3, 0.86), (4.45, 0.6), (4.4, 0.28)),
        (((1.05, 1.02), (1.55, 1.36), (2.05, 1.38), (2.05, 1.02)),
         ((2.15, 1.02), (2.15, 1.38), (2.58, 1.38), (3.1, 1.02)))),
    "hatchback": Body(
        (2, 4), (0.7, 3.15), 1.7,
        ((0.05, 0.3), (0, 0.8), (0.12, 1.0), (0.55, 1.44), (2.2, 1.5), (2.95, 1.04), (3.75, 0.9),
         (3.95, 0.62), (3.9, 0.28)),
        (((0.45, 1.04), (0.68, 1.38), (1.4, 1.42), (1.4, 1.04)),
         ((1.5, 1.04), (1.5, 1.42), (2.18, 1.42), (2.75, 1.04)))),
    "estate": Body(
        (2, 4), (0.9, 3.65), 1.88,
        ((0.05, 0.36), (0, 0.9), (0.08, 1.12), (0.4, 1.68), (2.9, 1.74), (3.55, 1.18), (4.4, 1.06),
         (4.6, 0.7), (4.55, 0.34)),
        (((0.35, 1.16), (0.52, 1.6), (1.5, 1.64), (1.5, 1.16)),
         ((1.6, 1.16), (1.6, 1.64), (2.85, 1.64), (3.35, 1.16)))),
    "van": Body(
        (1, 4), (0.95, 4.3), 2.0,
        ((0.0, 0.35), (0, 1.15), (0.06, 2.1), (0.25, 2.3), (3.9, 2.3), (4.6, 1.4), (5.2, 1.15),
         (5.3, 0.35)),
        (((3.2, 1.35), (3.2, 2.0), (3.9, 2.0), (4.4, 1.35)),)),
    "lorry": Body(
        (4,), (1.1, 2.2, 6.1), 2.4,
        ((0.0, 0.6), (0, 3.3), (5.2, 3.3), (5.25, 2.7), (6.8, 2.65), (7.0, 1.5), (7.05, 0.4)),
        (((5.6, 1.6), (5.6, 2.3), (6.7, 2.3), (6.8, 1.6)),)),
    "bus": Body(
        (1, 5), (2.2, 8.3), 2.45,
        ((0.0, 0.35), (0, 1.3), (0.02, 2.6), (0.1, 3.0), (10.4, 3.0), (10.6, 2.7), (10.7, 1.2),
         (10.7, 0.35)),
        tuple(((u, 1.3), (u, 2.4), (v, 2.4), (v, 1.3))
              for u, v in ((0.4 + 1.7 * k, 1.95 + 1.7 * k) for k in range(6)))),
}  # fmt: skip
KINDS = tuple(BODIES)
PARKED_SHARES = (0.32, 0.34, 0.26, 0.08, 0.0, 0.0)
SHARES = (0.3, 0.28, 0.22, 0.11, 0.05, 0.04)
TYRE, GLASS, DARK = (24, 24, 26), (38, 46, 56), (30, 30, 32)
FINE = 4.0  # pixels a metre; cars further off than that lose their small parts
TURN = np.linspace(0, 2 * np.pi, 14, endpoint=False)


class Car:
    """Draws itself where it stands; maps its own (along, across, up) to the scene's metres."""

    def __init__(self, scene: Scene, kind: str, x: float, z: float, yaw: float, paint: Floats):
        self.scene, self.body, self.paint = scene, BODIES[kind], paint
        self.outline = np.array(self.body.outline)
        self.half, self.length = self.body.width / 2, float(self.outline[:, 0].max())
        self.base, self.high = float(self.outline[0, 1]), self.outline[:, 1].max()
        self.x, self.z, self.sin, self.cos = x, z, np.sin(yaw), np.cos(yaw)
        self.near = scene.camera.pixels_per_metre(z) >= FINE

    def place(self, along: ArrayLike, across: ArrayLike, up: ArrayLike) -> NDArray[np.float64]:
        """Return (..., 3) scene metres; across runs from -1 (left flank) to 1 (right flank)."""
        u = np.asarray(along, np.float64) - self.length / 2
        w = np.asarray(across, np.float64) * self.half
        up = np.asarray(up, np.float64)
        points = np.empty((*max(u.shape, w.shape, up.shape, key=len), 3))
        points[..., 0] = self.x + u * self.sin + w * self.cos
        points[..., 1] = up
        points[..., 2] = self.z + u * self.cos - w * self.sin
        return points

    def fill(
        self, along: ArrayLike, across: ArrayLike, up: ArrayLike, tone: Colour,
        label: int | None = None,
    ) -> None:  # fmt: skip
        """Fill a polygon of the car's own coordinates, as Scene.fill does."""
        self.scene.fill(self.place(along, across, up), tone, label)

    def draw(self, rng: Generator) -> None:
        """Draw shadow, treads, sheets and panes, the flank in sight, then lamps and plate."""
        back, front = -0.1, self.length + 0.1
        foot = self.place([back, back, front, front], [-1.15, 1.15, 1.15, -1.15], 0)
        self.scene.shade(foot, 0.38)
        if self.near:
            self._draw_wheel_ends()
        self._draw_skin()
        for flank in (-1, 1):
            side = self.place(self.outline[:, 0], flank, self.outline[:, 1])
            if _front_facing(self.scene.camera.project(side[::flank])):
                self._draw_flank(flank, side)
                break
        self._draw_lights(rng)

    def _draw_wheel_ends(self) -> None:
        """Draw the treads seen under the car from ahead or behind."""
        up = [self.base + 0.2, self.base + 0.2, 0, 0]
        for along in (self.body.wheels[-1], self.body.wheels[0])[:: 1 if self.cos > 0 else -1]:
            for side in (-1.0, 0.7):
                self.fill(along, [side, side + 0.3, side + 0.3, side], up, TYRE, CAR)

    def _draw_skin(self) -> None:
        """Draw rear, panes, roof, bonnet and nose: strips that face the camera, far ones first."""
        weather, start, stop = self.scene.weather, self.outline[:-1], self.outline[1:]
        # (strips, 4, 2), the strips' corners in along and up
        corners = np.stack([start, stop, stop, start], 1)
        # The cabin of a low car is narrower than its body.
        cabin = (start[:, 1] > 1.05) & (stop[:, 1] > 1.05) & (self.high < 2)
        across = np.array([-1, -1, 1, 1]) * np.where(cabin, 0.93, 1.0)[:, None]
        quads = self.place(corners[..., 0], across, corners[..., 1])
        seen = np.flatnonzero(_front_facing(self.scene.camera.project(quads)))
        rise = np.abs(stop - start)
        flat = rise[:, 0] / (rise.sum(1) + 1e-6)  # 1 for a roof, 0 for a tail
        for index in sorted(seen.tolist(), key=lambda k: -quads[k, :, 2].sum()):
            quad = quads[index]
            if index in self.body.glass:
                self.scene.fill(quad, self.paint * 0.7, CAR)
                middle = quad.mean(0)
                pane = np.array(GLASS) + (weather.haze - GLASS) * 0.22 * (1 - 0.7 * weather.night)
                self.scene.fill(middle + (quad - middle) * [0.88, 0.86, 0.88], pane)
            else:
                bright = 0.78 + 0.42 * flat[index] * (0.6 + 0.4 * weather.sun)
                self.scene.fill(quad, self.paint * bright, CAR)

    def _draw_flank(self, flank: int, side: NDArray[np.float64]) -> None:
        """Draw the side: sheet, panes, a door seam, a dark sill and the wheels."""
        weather, base = self.scene.weather, self.base
        lit = 1.0 if (flank * self.cos > 0) == (weather.side > 0) else 0.86 - 0.16 * weather.sun
        self.scene.fill(side, self.paint * lit, CAR)
        for pane in self.body.side_panes:
            along, up = np.array(pane).T
            self.fill(along, flank, up, np.array(GLASS) * 1.1)
        radius = 0.5 if self.high > 2.5 else 0.33
        parts = ((1.0, TYRE, CAR), (0.62, (138, 140, 144), None), (0.22, DARK, None))
        for axle in self.body.wheels:
            for size, tone, label in parts[: 3 if self.near else 1]:
                along = axle + size * radius * np.cos(TURN)
                self.fill(along, flank, radius * (1 + size * np.sin(TURN)), tone, label)
        if not self.near:
            return
        middle = self.length / 2
        for start, stop, low, high, paint in (
            (0.1, self.length - 0.1, base, base + 0.1, self.paint * 0.4),  # sill
            (0.2, self.length - 0.3, base + 0.42, 0.04 + base + 0.42, self.paint * lit * 0.82),
            (middle, middle + 0.04, base + 0.1, 0.95, self.paint * 0.55),  # seam of the doors
        ):
            self.fill([start, stop, stop, start], flank, [low, low, high, high], paint)

    def _draw_lights(self, rng: Generator) -> None:
        """Draw head or tail lamps, bumper and number plate on the end that faces the camera."""
        rear, weather = self.cos > 0.5, self.scene.weather
        braking = rear and rng.random() < 0.3
        if abs(self.cos) < 0.5:
            return
        at = -0.01 if rear else self.length + 0.01
        high = 0.72 if self.body.width < 2.0 else 1.0
        tone = (225, 40, 30) if braking else (150, 24, 26) if rear else (246, 244, 226)
        up = high + np.array([0.09, 0.09, -0.09, -0.09])
        for side in (-0.82, 0.82):
            self.fill(at, side + np.array([-0.15, 0.15, 0.15, -0.15]), up, tone)
            if weather.night > 0.35 or braking or (weather.kind in ("fog", "rain") and not rear):
                light = 0.7 * np.array(tone) * (0.5 + 0.5 * weather.night)
                reach = 0.22 * self.scene.camera.pixels_per_metre(self.z) * (1 + weather.night)
                self.scene.glow(self.place(at, side, high), reach, light)
        if self.near:
            bumper, plate = np.array([0.18, 0.18, 0.04, 0.04]), np.array([0.32, 0.32, 0.2, 0.2])
            self.fill(at, [-0.95, 0.95, 0.95, -0.95], self.base + bumper, DARK)
            self.fill(at, [-0.28, 0.28, 0.28, -0.28], self.base + plate, (228, 228, 214))


def draw_car(scene: Scene, x: float, z: float, rng: Generator, yaw: float, parked: bool) -> None:
    """Draw a car with its middle at (x, z); yaw 0 drives away from the camera, pi towards it."""
    kind = KINDS[rng.choice(len(KINDS), p=PARKED_SHARES if parked else SHARES)]
    car = Car(scene, kind, x, z, yaw, _paint(rng, kind))
    if z - car.length / 2 - 1 >= 1.2:  # or it would reach behind the camera
        car.draw(rng)


def _paint(rng: Generator, kind: str) -> Floats:
    """Draw mostly greys, as on the road, but reds and blues and now and then anything else."""
    greys = [(232, 232, 230), (186, 190, 194), (112, 116, 122), (44, 46, 50)]
    hues = [(168, 30, 34), (34, 70, 142), (40, 92, 74), (198, 168, 120)]
    if rng.random() < 0.1 or kind in ("bus", "lorry"):
        return colour(rng, (0.2, 0.9), (0.45, 0.95))
    return jitter(rng, (greys + hues)[rng.choice(8, p=[0.17] * 4 + [0.11, 0.11, 0.05, 0.05])], 10)


def _front_facing(corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether polygons, (..., N, 2) pixels, run clockwise on the image."""
    u, v = corners[..., 0], corners[..., 1]
    twice = (u[..., :-1] * v[..., 1:] - u[..., 1:] * v[..., :-1]).sum(-1)
    return twice + u[..., -1] * v[..., 0] - u[..., 0] * v[..., -1] > 0
