"""Draws road scenes, the data set the suite carries with it, and the two benchmarks on it.

A scene is a function of (seed, split, index) alone: whoever draws it, in whatever order, sees the
same one. The anomalies come from families of objects that training never shows.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from eomt_exp.contracts import VOID, ImageSet, LabelledImage, UserError
from eomt_exp.data.files.file_set import checked_component_sizes
from eomt_exp.data.synthetic.anomalies import PAINTERS
from eomt_exp.data.synthetic.layout import PlacedAnomaly, compose
from eomt_exp.data.synthetic.light import finish
from eomt_exp.data.synthetic.scene import CLASS_NAMES, FOREIGN, ROAD, Scene
from eomt_exp.data.synthetic.setting import Camera, Street, draw_camera, draw_street, draw_weather
from eomt_exp.ranges import Share, Whole

SPLITS = ("train", "val", "test")
KINDS = ("anomaly", "obstacle")


class _Rendered(ImageSet):
    """Draws images one by one, each from its own stream of random numbers."""

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES

    def __init__(self, length: int, height: int, width: int, seed: int) -> None:
        if min(height, width) < 32 or max(height, width) > 4096 or height > width:
            raise UserError(
                f"Got height={height}, width={width}; allowed are 32 to 4096 pixels, not taller "
                "than wide. Scenes are composed for height=128 width=256 and the like."
            )
        self.length, self.height, self.width, self.seed = length, height, width, seed

    def __len__(self) -> int:
        return self.length

    def _stream(self, name: str, index: int) -> Generator:
        """Seed the random numbers of one scene, shared with no other split, benchmark or index."""
        if not 0 <= index < self.length:
            raise IndexError(f"Got image {index} of {self.length}; 0 to {self.length - 1} exist.")
        return np.random.default_rng([self.seed, zlib.crc32(name.encode()), index])

    def _render(self, rng: Generator, kind: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (H, W, 3) RGB, and labels (H, W) with FOREIGN where anomalies of the kind are."""
        street, weather = draw_street(rng), draw_weather(rng)
        camera = draw_camera(rng, street, self.height, self.width)
        draw = {"anomaly": _large_anomalies, "obstacle": _small_anomalies}.get(kind or "")
        anomalies = draw(camera, street, rng) if draw else []
        scene = Scene(camera, street, weather)
        compose(scene, rng, anomalies)
        return finish(scene, rng), scene.labels


class SyntheticRoads(_Rendered):
    """Draws street scenes with exact labels of nine classes and nothing anomalous in them."""

    def __init__(
        self, split: str, length: int, height: int = 128, width: int = 256, seed: Whole = 0
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"Got split={split!r}; allowed are {', '.join(SPLITS)}.")
        super().__init__(length, height, width, seed)
        self.split = split

    def __getitem__(self, index: int) -> LabelledImage:
        """Return (H, W, 3) RGB, (H, W) labels 0..8 and anomaly 0; both VOID on one's own bonnet."""
        image, labels = self._render(self._stream(self.split, index))
        anomaly = np.where(labels == VOID, VOID, 0).astype(np.uint8)
        return LabelledImage(image, labels, anomaly, f"synthetic_roads/{self.split}/{index:06d}")


class SyntheticBenchmark(_Rendered):
    """Draws scenes that nobody trains on, most with objects that belong to no known class.

    Kind "anomaly": one or two large ones anywhere on the ground, every pixel counts. Kind
    "obstacle": one to three small ones on the road, and only road and obstacles count.
    """

    labels_anomalies = True

    def __init__(
        self,
        kind: str,
        length: int = 60,
        height: int = 128,
        width: int = 256,
        seed: Whole = 0,
        empty_fraction: Share = 0.1,
        component_sizes: Sequence[int] | None = None,
    ) -> None:
        """`component_sizes` are pixels of the smallest predicted and true component, or None."""
        if kind not in KINDS:
            raise UserError(f"Got kind={kind!r}; allowed are {', '.join(KINDS)}.")
        super().__init__(length, height, width, seed)
        self.kind, self.empty_fraction = kind, empty_fraction
        self.component_sizes = checked_component_sizes(component_sizes)

    def __getitem__(self, index: int) -> LabelledImage:
        """Return (H, W, 3) RGB, (H, W) labels, VOID on anomalies, and anomaly 0, 1 or VOID."""
        rng = self._stream(f"synth_{self.kind}", index)
        empty = rng.random() < self.empty_fraction
        image, labels = self._render(rng, None if empty else self.kind)
        counted = labels == ROAD if self.kind == "obstacle" else labels != VOID
        anomaly = np.where(labels == FOREIGN, 1, np.where(counted, 0, VOID)).astype(np.uint8)
        labels = np.where(labels == FOREIGN, VOID, labels).astype(np.uint8)
        return LabelledImage(image, labels, anomaly, f"synth_{self.kind}/{index:06d}")


def _large_anomalies(camera: Camera, street: Street, rng: Generator) -> list[PlacedAnomaly]:
    """Draw one or two, 25 to 60 % of the image's height, beside each other on any ground."""
    count = int(rng.choice([1, 2], p=[0.7, 0.3]))
    anomalies = []
    for k in range(count):
        z, share = rng.uniform(3.6, 7.0), rng.uniform(0.25, 0.6 if count == 1 else 0.45)
        low, high = (0.12, 0.88) if count == 1 else ((0.1, 0.42), (0.58, 0.9))[k]
        x = _x_of(camera, camera.width * rng.uniform(low, high), z)
        x = float(np.clip(x, street.front(-1) + 0.7, street.front(1) - 0.7))
        anomalies.append(_placed_anomaly(camera, x, z, share, rng))
    return anomalies


def _small_anomalies(camera: Camera, street: Street, rng: Generator) -> list[PlacedAnomaly]:
    """Draw one to three, 5 to 15 % of the image's height, on the road, far ones looking smaller."""
    kept: list[PlacedAnomaly] = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))):
        z, metres = rng.uniform(4.5, 13.0), rng.uniform(0.35, 1.0)
        share = float(np.clip(metres * camera.focal / camera.height / z, 0.05, 0.15))
        drawn = _placed_anomaly(camera, 0.0, z, share, rng)
        sides = [_x_of(camera, column, z) for column in (0.06 * camera.width, 0.94 * camera.width)]
        reach = street.half - 0.15 - drawn.half
        low, high = max(-reach, sides[0] + drawn.half), min(reach, sides[1] - drawn.half)
        drawn = drawn._replace(x=rng.uniform(low, max(low, high)))
        apart = [abs(drawn.x / z - k.x / k.z) * camera.focal > 0.16 * camera.width for k in kept]
        if all(apart):
            kept.append(drawn)
    return kept


def _x_of(camera: Camera, column: float, z: float) -> float:
    """Return X in metres of what stands at depth z and is seen in a column."""
    across = (column - camera.centre) / camera.focal - camera.curvature * z / 2
    return across * z + camera.offset


def _placed_anomaly(
    camera: Camera, x: float, z: float, share: float, rng: Generator
) -> PlacedAnomaly:
    """Draw an object of any family whose height fills that share of the image's."""
    draw = PAINTERS[rng.integers(len(PAINTERS))]
    # Drawn finer than shown, from its own stream: noise cut to another size draws other numbers.
    own = np.random.default_rng(int(rng.integers(2**32)))
    sprite = draw(own, int(np.clip(2 * share * camera.height, 64, 512)))
    return PlacedAnomaly(x, z, share * camera.height / camera.focal * z, sprite)
