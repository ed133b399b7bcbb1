"""Draws where and when a scene is, before anything is painted: street, camera and weather."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from eomt_exp.data.synthetic.textures import Floats, jitter


class Street(NamedTuple):
    """Describes the cross-section of a street; widths in metres, pairs are (left, right)."""

    style: str  # city, suburb or country
    half: float  # half the width of the road
    lanes: int
    pavements: tuple[float, float]
    setbacks: tuple[float, float]  # from the back of the pavement to the houses
    parking: tuple[bool, bool]  # cars stand half on the pavement

    @property
    def lane(self) -> float:
        """Return the width of a lane."""
        return 2 * self.half / self.lanes

    def edge(self, side: int) -> float:
        """Return X where the pavement of a side (-1 left, 1 right) ends."""
        return side * (self.half + self.pavements[side > 0])

    def posts(self, side: int) -> float:
        """Return metres from the kerb where lamps and signs stand, clear of parked cars."""
        return 1.2 if self.parking[side > 0] else 0.4

    def front(self, side: int) -> float:
        """Return X of the houses of a side."""
        return self.edge(side) + side * self.setbacks[side > 0]


class Camera(NamedTuple):
    """Describes a pinhole camera over a road; lengths in pixels unless said otherwise."""

    height: int
    width: int
    focal: float
    horizon: float  # image row of the horizon
    centre: float  # image column of the vanishing point
    elevation: float  # metres above the ground
    offset: float  # metres right of the centre line
    curvature: float  # 1/metres, positive bends right

    def project(self, points: ArrayLike) -> NDArray[np.float64]:
        """Project (..., 3) metres to (..., 2) pixels (column, row). Z must be positive."""
        points = np.asarray(points, np.float64)
        z = points[..., 2]
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = (points[..., 0] - self.offset) / z + self.curvature / 2 * z
        pixels[..., 1] = (self.elevation - points[..., 1]) / z
        pixels *= self.focal
        pixels += (self.centre, self.horizon)
        return pixels

    def ground(self) -> tuple[int, Floats, Floats]:
        """Return the first row under the horizon; X and Z in metres of all pixels from there."""
        first = int(np.ceil(self.horizon + 0.004 * self.height))
        rows = np.arange(first, self.height) + 0.5
        z = (self.focal * self.elevation / (rows - self.horizon))[:, None]
        columns = (np.arange(self.width) + 0.5 - self.centre)[None]
        x = columns * z / self.focal + self.offset - self.curvature * z**2 / 2
        return first, x.astype(np.float32), np.broadcast_to(z, x.shape).astype(np.float32)

    def pixels_per_metre(self, z: float) -> float:
        """Return how large a metre is on the image at depth z."""
        return self.focal / z


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
WEATHERS = {
    "clear": (0.34, 1.0, (70, 125, 205), (190, 214, 236), 0.25, 0.0012, 0, 0.0, (1.04, 1.0, 0.95)),
    "cloudy": (0.18, 0.6, (96, 140, 196), (206, 216, 224), 0.6, 0.002, 0, 0.0, (1.0, 1.0, 1.0)),
    "overcast": (0.16, 0, (166, 172, 180), (208, 210, 212), 0.9, 0.004, 0, 0.0, (0.9, 0.92, 0.95)),
    "fog": (0.09, 0.0, (188, 192, 196), (205, 207, 209), 0.3, 0.026, 0, 0.1, (0.94, 0.95, 0.97)),
    "rain": (0.09, 0.0, (112, 120, 132), (158, 164, 172), 0.8, 0.009, 1, 0.25, (0.74, 0.78, 0.84)),
    "dusk": (0.09, 0.35, (74, 88, 150), (250, 170, 110), 0.45, 0.003, 0, 0.5, (0.9, 0.72, 0.66)),
    "night": (0.05, 0.0, (28, 34, 66), (72, 70, 92), 0.3, 0.003, 0, 1.0, (0.44, 0.46, 0.62)),
}  # fmt: skip


def draw_street(rng: Generator) -> Street:
    """Draw a street of a random style."""
    style = str(rng.choice(["city", "suburb", "country"], p=[0.5, 0.3, 0.2]))
    lanes = int(rng.choice([2, 2, 3, 4])) if style == "city" else 2
    widths = {"city": (1.8, 4.5), "suburb": (1.3, 2.6), "country": (0.0, 1.6)}[style]
    setbacks = {"city": (0.0, 0.8), "suburb": (2.5, 7.0), "country": (8.0, 22.0)}[style]
    pavements = rng.uniform(*widths, 2) * (rng.random(2) > (0.5 if style == "country" else 0.0))
    pavements = np.where(pavements > 0.4, pavements, 0.0)
    parking = (pavements > 2.2) & (rng.random(2) < 0.65)
    return Street(
        style=style,
        half=lanes * rng.uniform(2.9, 3.5) / 2 + rng.uniform(0.2, 0.9),
        lanes=lanes,
        pavements=tuple(pavements.tolist()),
        setbacks=tuple(rng.uniform(*setbacks, 2).tolist()),
        parking=tuple(parking.tolist()),
    )


def draw_camera(rng: Generator, street: Street, height: int, width: int) -> Camera:
    """Draw a dash-board camera in the right-hand lane (or another one) that looks ahead."""
    chosen = rng.integers(street.lanes // 2, street.lanes)
    bends = rng.random() < 0.5
    return Camera(
        height=height,
        width=width,
        focal=height * rng.uniform(0.95, 1.35),
        horizon=height * rng.uniform(0.36, 0.5),
        centre=width * (0.5 + rng.normal(0, 0.035)),
        elevation=rng.uniform(1.25, 1.9),
        offset=-street.half + street.lane * (chosen + 0.5) + rng.normal(0, 0.25),
        curvature=bends * rng.normal(0, 0.004),
    )


def draw_weather(rng: Generator) -> Weather:
    """Draw a kind of weather by its share, every number of it moved a little."""
    shares = np.array([row[0] for row in WEATHERS.values()])
    kind = str(rng.choice(list(WEATHERS), p=shares / shares.sum()))
    _, sun, zenith, haze, clouds, fog, rain, night, tint = WEATHERS[kind]
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
