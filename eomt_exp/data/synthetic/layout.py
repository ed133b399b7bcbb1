"""Composes a synthetic scene: furnishes the street, then draws it from far to near."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from eomt_exp.contracts import VOID
from eomt_exp.data.synthetic.cars import draw_car
from eomt_exp.data.synthetic.ground import Street, paint_distance, paint_ground, paint_sky
from eomt_exp.data.synthetic.houses import paint_hedges, paint_houses
from eomt_exp.data.synthetic.kerbside import (
    draw_bush,
    draw_flowers,
    draw_lamp,
    draw_pole,
    draw_poster,
    draw_sign,
    draw_traffic_light,
    draw_tree,
)
from eomt_exp.data.synthetic.light import Weather
from eomt_exp.data.synthetic.people import draw_person
from eomt_exp.data.synthetic.scene import FOREIGN, Camera, Scene
from eomt_exp.data.synthetic.textures import Bytes, jitter


class Thing(NamedTuple):
    """Stands at (x, z); half is half its width, reach half its depth, all in metres."""

    x: float
    z: float
    half: float
    reach: float
    draw: Callable[[], None]


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


def compose(
    camera: Camera,
    street: Street,
    weather: Weather,
    rng: np.random.Generator,
    anomalies: Sequence[PlacedAnomaly] = (),
) -> Scene:
    """Draw the whole scene but for its last pass; nothing else stands in front of anomalies."""
    scene = Scene(camera)
    paint_sky(scene, weather, rng)
    paint_distance(scene, street, weather, rng)
    paint_ground(scene, street, weather, rng)
    paint_houses(scene, street, weather, rng)
    paint_hedges(scene, street, rng)
    cars = _traffic(scene, street, weather, rng)
    things = [
        *cars,
        *_people(scene, street, cars, rng),
        *_greenery(scene, street, rng),
        *_furniture(scene, street, weather, rng),
    ]
    things = [thing for thing in things if not any(_hides(camera, thing, a) for a in anomalies)]
    things += [Thing(a.x, a.z, a.half, 0.0, partial(_draw_anomaly, scene, a)) for a in anomalies]
    for thing in sorted(things, key=lambda thing: -thing.z):
        if scene.sees(thing.x, thing.z, thing.half + thing.reach):
            thing.draw()
    _draw_bonnet(scene, rng)
    return scene


def _hides(camera: Camera, thing: Thing, item: PlacedAnomaly) -> bool:
    """Return whether a thing stands before an item, or where it does."""
    if thing.z - thing.reach > item.z + 0.7:
        return False
    near = max(thing.z - thing.reach, 1.0)
    here, there = camera.project([[thing.x, 0, near], [item.x, 0, item.z]])[:, 0]
    both = camera.focal * (thing.half / near + item.half / item.z)
    return bool(abs(here - there) < both + 0.02 * camera.width)


def _draw_anomaly(scene: Scene, item: PlacedAnomaly) -> None:
    """Draw an item with the shadow at its foot."""
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    for size, factor in ((1.15, 0.75), (0.85, 0.6)):
        across = item.x + size * item.half * np.cos(turn)
        along = item.z + size * min(item.half, 0.5) * 0.6 * np.sin(turn)
        scene.shade(np.stack([across, 0 * turn, along], -1), factor)
    scene.paste(item.sprite, item.x, item.z, item.height, FOREIGN)


def _traffic(
    scene: Scene, street: Street, weather: Weather, rng: np.random.Generator
) -> list[Thing]:
    """Put cars in every lane, cars parked at the kerb, now and then one that crosses."""
    spots: list[tuple[float, float, float, bool]] = []
    lane, busy = 2 * street.half / street.lanes, rng.uniform(12, 60)
    for k in range(street.lanes):
        ahead = 2 * k + 1 >= street.lanes
        z = rng.uniform(8, 13) + rng.exponential(busy * 0.4)
        while z < 70:
            x = -street.half + lane * (k + 0.5) + rng.normal(0, 0.15)
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
    kept: list[tuple[float, float, float, bool]] = []
    for x, z, yaw, parked in spots:  # no car may stand in another
        if all(abs(x - a) > 2.1 or abs(z - b) > 6.5 for a, b, *_ in kept):
            kept.append((x, z, yaw, parked))
    things = []
    for x, z, yaw, parked in kept:
        along = yaw + scene.camera.curvature * z  # cars follow the bend
        draw = partial(draw_car, scene, x, z, along, weather, rng, parked)
        things.append(Thing(x, z, 1.3 if abs(np.cos(yaw)) > 0.5 else 2.6, 2.5, draw))
    return things


def _people(
    scene: Scene, street: Street, cars: Sequence[Thing], rng: np.random.Generator
) -> list[Thing]:
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
        Thing(x, z, 0.4, 0.2, partial(draw_person, scene, x, z, rng))
        for x, z in spots
        if z > 3.5 and all(abs(x - car.x) > 1.3 or abs(z - car.z) > 2.8 for car in cars)
    ]


def _greenery(scene: Scene, street: Street, rng: np.random.Generator) -> list[Thing]:
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
    draw_low = draw_flowers if rng.random() < 0.4 else draw_bush
    return [
        *(Thing(x, z, 2.6, 0.3, partial(draw_tree, scene, x, z, rng)) for x, z in trees),
        *(Thing(x, z, 0.8, 0.3, partial(draw_low, scene, x, z, rng)) for x, z in bushes),
    ]


def _furniture(
    scene: Scene, street: Street, weather: Weather, rng: np.random.Generator
) -> list[Thing]:
    """Put up lamps in a row, masts or bollards, signs, traffic lights, boards."""
    things = []
    lamp_side = int(rng.choice([-1, 1]))

    def add(kind: Callable[[float, float], None], side: int, z: float, out: float = 0.0) -> None:
        x = side * (street.half + street.posts(side) + out)
        things.append(Thing(x, z, 0.4, 0.1, lambda: kind(x, z)))

    if rng.random() < (0.85 if street.style != "country" else 0.3):
        for z in np.arange(rng.uniform(6, 20), 110, rng.uniform(18, 30)):
            add(lambda x, z: draw_lamp(scene, x, z, weather, rng), lamp_side, float(z))
    if rng.random() < 0.5:
        for z in np.arange(rng.uniform(5, 15), 80, rng.uniform(9, 28)):
            add(lambda x, z: draw_pole(scene, x, z, rng), -lamp_side, float(z), 0.2)
    for _ in range(rng.poisson(2.0)):
        z = 6 + rng.exponential(11)
        add(lambda x, z: draw_sign(scene, x, z, rng), int(rng.choice([-1, 1])), z, 0.15)
    if rng.random() < (0.45 if street.style == "city" else 0.12):
        z = rng.uniform(8, 26)
        for side in (-1, 1):
            add(lambda x, z: draw_traffic_light(scene, x, z, weather, rng), side, z, 0.1)
    if rng.random() < 0.25:
        z = rng.uniform(14, 40)
        add(lambda x, z: draw_poster(scene, x, z, rng), int(rng.choice([-1, 1])), z, 1.2)
    return things


def _draw_bonnet(scene: Scene, rng: np.random.Generator) -> None:
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
