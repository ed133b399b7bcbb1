"""Composes a synthetic scene: furnishes the street, then draws it from far to near."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from eomt_exp.contracts import VOID
from eomt_exp.data.synthetic import kerbside
from eomt_exp.data.synthetic.cars import draw_car
from eomt_exp.data.synthetic.ground import paint_distance, paint_ground, paint_sky
from eomt_exp.data.synthetic.houses import paint_hedges, paint_houses
from eomt_exp.data.synthetic.people import draw_person
from eomt_exp.data.synthetic.scene import FOREIGN, Scene, ellipse
from eomt_exp.data.synthetic.setting import Camera, Street
from eomt_exp.data.synthetic.textures import Bytes, jitter

Painter = Callable[[Scene, float, float, Generator], None]
"""(scene, x, z, rng) -> None; draws something that stands at (x, z) metres."""


class Thing(NamedTuple):
    """Stands at (x, z); half is half its width, reach half its depth, all in metres."""

    x: float
    z: float
    half: float
    reach: float
    draw: Painter


class PlacedAnomaly(NamedTuple):
    """Stands at (x, z) metres and is `height` metres tall."""

    x: float
    z: float
    height: float
    sprite: Bytes  # (h, w, 4)

    @property
    def half(self) -> float:
        """Return half its width in metres."""
        return self.height * self.sprite.shape[1] / self.sprite.shape[0] / 2


def compose(scene: Scene, rng: Generator, anomalies: Sequence[PlacedAnomaly]) -> None:
    """Draw the whole scene but for its last pass; nothing else stands in front of anomalies."""
    for paint in (paint_sky, paint_distance, paint_ground, paint_houses, paint_hedges):
        paint(scene, rng)
    street, camera = scene.street, scene.camera
    things = _traffic(street, camera.curvature, rng)
    things += _people(street, things, rng)
    things += _greenery(street, rng)
    things += _furniture(street, rng)
    things = [thing for thing in things if not any(_hides(camera, thing, a) for a in anomalies)]
    things += [Thing(a.x, a.z, a.half, 0.0, partial(_draw_anomaly, a)) for a in anomalies]
    for thing in sorted(things, key=lambda thing: -thing.z):
        if scene.sees(thing.x, thing.z, thing.half + thing.reach):
            thing.draw(scene, thing.x, thing.z, rng)
    _draw_bonnet(scene, rng)


def _hides(camera: Camera, thing: Thing, item: PlacedAnomaly) -> bool:
    """Return whether a thing stands before an item, or where it does."""
    if thing.z - thing.reach > item.z + 0.7:
        return False
    near = max(thing.z - thing.reach, 1.0)
    here, there = camera.project([[thing.x, 0, near], [item.x, 0, item.z]])[:, 0]
    both = camera.focal * (thing.half / near + item.half / item.z)
    return bool(abs(here - there) < both + 0.02 * camera.width)


def _draw_anomaly(item: PlacedAnomaly, scene: Scene, x: float, z: float, rng: Generator) -> None:
    """Draw an item with the shadow at its foot."""
    for size, factor in ((1.15, 0.75), (0.85, 0.6)):
        along = size * min(item.half, 0.5) * 0.6
        scene.shade(ellipse(x, z, size * item.half, along, corners=20), factor)
    scene.paste(item.sprite, x, z, item.height, FOREIGN)


def _traffic(street: Street, curvature: float, rng: Generator) -> list[Thing]:
    """Put cars in every lane, cars parked at the kerb, now and then one that crosses."""
    spots: list[tuple[float, float, float, bool]] = []
    busy = rng.uniform(12, 60)
    for k in range(street.lanes):
        ahead = 2 * k + 1 >= street.lanes
        z = rng.uniform(8, 13) + rng.exponential(busy * 0.4)
        while z < 70:
            x = -street.half + street.lane * (k + 0.5) + rng.normal(0, 0.15)
            spots.append((x, z, (0.0 if ahead else np.pi) + rng.normal(0, 0.03), False))
            z += 8 + rng.exponential(busy)
    for side in (-1, 1):
        z = rng.uniform(5, 9)
        while street.parking[side > 0] and z < 60:
            spots.append((side * (street.half - 0.1), z, (0.0, np.pi)[int(side < 0)], True))
            z += 6.0 + rng.exponential(7)
    if rng.random() < 0.08:
        yaw = rng.choice([-1, 1]) * np.pi / 2
        spots.append((rng.uniform(-3, 3), rng.uniform(12, 35), yaw, False))
    things: list[Thing] = []
    for x, z, yaw, parked in spots:
        if all(abs(x - car.x) > 2.1 or abs(z - car.z) > 6.5 for car in things):  # none in another
            draw = partial(draw_car, yaw=yaw + curvature * z, parked=parked)  # along the bend
            things.append(Thing(x, z, 1.3 if abs(np.cos(yaw)) > 0.5 else 2.6, 2.5, draw))
    return things


def _people(street: Street, cars: Sequence[Thing], rng: Generator) -> list[Thing]:
    """Put people on the pavements, alone and in groups, and some who cross, none inside a car."""
    spots = []
    crowd = {"city": 4.0, "suburb": 2.0, "country": 0.5}[street.style]
    for _ in range(rng.poisson(crowd)):
        side = int(rng.choice([-1, 1]))
        out = street.posts(side)
        free = max(street.pavements[side > 0] - 0.3 - out, 0.3)
        z = 4.5 + rng.exponential(13)
        for _ in range(rng.choice([1, 2, 3], p=[0.7, 0.22, 0.08])):
            x = side * (street.half + out + rng.random() * free)
            spots.append((x, z + rng.normal(0, 0.5)))
    if rng.random() < 0.2:
        z = rng.uniform(7, 28)
        for _ in range(rng.integers(1, 4)):
            spots.append((rng.uniform(-1, 1) * street.half, z + rng.normal(0, 0.6)))
    return [
        Thing(x, z, 0.4, 0.2, draw_person)
        for x, z in spots
        if z > 3.5 and all(abs(x - car.x) > 1.3 or abs(z - car.z) > 2.8 for car in cars)
    ]


def _greenery(street: Street, rng: Generator) -> list[Thing]:
    """Plant an avenue, garden trees, or the trees of the open country, with bushes."""
    trees: list[tuple[float, float]] = []
    bushes: list[tuple[float, float]] = []
    for side in (-1, 1):
        if street.style != "country" and rng.random() < (0.4 if street.style == "city" else 0.5):
            gap = rng.uniform(7, 13)
            row = np.arange(rng.uniform(4, 12), 75, gap)
            trees += [(side * (abs(street.edge(side)) - 0.3), z) for z in row]
        if street.style != "city":
            count = rng.integers(3, 9) if street.style == "suburb" else rng.integers(6, 22)
            wide = 4.0 if street.style == "suburb" else 16.0
            for _ in range(count):
                x = street.edge(side) + side * (1.6 + wide * rng.random() ** 1.5)
                trees.append((x, rng.uniform(7, 90)))
            for _ in range(rng.integers(0, 8)):
                bushes.append((street.edge(side) + side * rng.uniform(1, 5), rng.uniform(5, 40)))
    draw_low = kerbside.draw_flowers if rng.random() < 0.4 else kerbside.draw_bush
    return [
        *(Thing(x, z, 2.6, 0.3, kerbside.draw_tree) for x, z in trees),
        *(Thing(x, z, 0.8, 0.3, draw_low) for x, z in bushes),
    ]


def _furniture(street: Street, rng: Generator) -> list[Thing]:
    """Put up lamps in a row, masts or bollards, signs, traffic lights, boards."""
    things = []
    lamp_side = int(rng.choice([-1, 1]))

    def add(draw: Painter, side: int, z: float, out: float = 0.0) -> None:
        x = side * (street.half + street.posts(side) + out)
        things.append(Thing(x, z, 0.4, 0.1, draw))

    if rng.random() < (0.85 if street.style != "country" else 0.3):
        for z in np.arange(rng.uniform(6, 20), 110, rng.uniform(18, 30)):
            add(kerbside.draw_lamp, lamp_side, float(z))
    if rng.random() < 0.5:
        for z in np.arange(rng.uniform(5, 15), 80, rng.uniform(9, 28)):
            add(kerbside.draw_pole, -lamp_side, float(z), 0.2)
    for _ in range(rng.poisson(2.0)):
        z = 6 + rng.exponential(11)
        add(kerbside.draw_sign, int(rng.choice([-1, 1])), z, 0.15)
    if rng.random() < (0.45 if street.style == "city" else 0.12):
        z = rng.uniform(8, 26)
        for side in (-1, 1):
            add(kerbside.draw_traffic_light, side, z, 0.1)
    if rng.random() < 0.25:
        z = rng.uniform(14, 40)
        add(kerbside.draw_poster, int(rng.choice([-1, 1])), z, 1.2)
    return things


def _draw_bonnet(scene: Scene, rng: Generator) -> None:
    """Draw the rim of one's own car in some scenes; it has no label, as in the real sets."""
    present, tone = rng.random() < 0.1, jitter(rng, (52, 54, 60), 14)
    rise, shift = rng.uniform(0.02, 0.05), rng.uniform(-0.1, 0.1)
    if not present:
        return
    h, w = scene.camera.height, scene.camera.width
    along = np.linspace(-0.15, 1.15, 30)
    tops = h * (1 - rise * (1 - (1.6 * (along - 0.5 - shift)) ** 4))
    corners = [*zip(along * w, tops, strict=True), (1.2 * w, h + 5), (-0.2 * w, h + 5)]
    scene.fill_pixels(corners, tone, VOID, 1.0)
