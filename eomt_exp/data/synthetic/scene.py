"""Defines the canvas of a scene: a pinhole camera, and paint on image, labels and depth.

World axes in metres: X to the right of the road's centre line, Y up from the ground, Z ahead. The
centre line bends sideways by curvature * Z^2 / 2, and everything bends with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from eomt_exp.data.synthetic.textures import Bytes, Floats

CLASS_NAMES = (
    "road", "pavement", "building", "vegetation", "sky", "car", "person", "pole", "sign",
)  # fmt: skip
ROAD, PAVEMENT, BUILDING, VEGETATION, SKY, CAR, PERSON, POLE, SIGN = range(9)
FOREIGN = 254
"""Label of anomalies while a scene is being drawn; no picture leaves the renderer with it."""

Colour = Sequence[float] | NDArray[np.floating]  # RGB in 0..255
FAR = 600.0  # metres; the depth of the sky
SUBPIXEL = 4  # bits of sub-pixel precision in cv2's drawing


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


class Glow(NamedTuple):
    """Describes a light added in the end: where and how wide (pixels), which colour (RGB)."""

    column: float
    row: float
    radius: float
    colour: tuple[float, float, float]


class Scene:
    """Holds image, labels and depth of one picture while it is drawn, far things first."""

    def __init__(self, camera: Camera) -> None:
        shape = (camera.height, camera.width)
        self.camera = camera
        self.image: Bytes = np.zeros((*shape, 3), np.uint8)
        self.labels: Bytes = np.full(shape, SKY, np.uint8)
        self.depth: Floats = np.full(shape, FAR, np.float32)
        self.glows: list[Glow] = []

    def fill(self, points: ArrayLike, colour: Colour, label: int | None = None) -> None:
        """Fill a polygon, (N, 3) in metres; without a label it is a detail of what it lies on."""
        points = np.asarray(points, np.float64)
        depth = float(points[:, 2].sum()) / len(points)
        self.fill_pixels(self.camera.project(points), colour, label, depth)

    def fill_pixels(
        self, corners: ArrayLike, colour: Colour, label: int | None = None, depth: float = FAR
    ) -> None:
        """Fill a polygon, (N, 2) in pixels; colour is RGB in 0..255."""
        fixed = _fixed(corners)
        rgb = [min(max(float(channel), 0.0), 255.0) for channel in colour]
        cv2.fillPoly(self.image, [fixed], rgb, cv2.LINE_AA, SUBPIXEL)
        if label is not None:
            cv2.fillPoly(self.labels, [fixed], label, cv2.LINE_8, SUBPIXEL)
            cv2.fillPoly(self.depth, [fixed], depth, cv2.LINE_8, SUBPIXEL)

    def bar(
        self,
        x: float,
        z: float,
        span: tuple[float, float],
        width: float,
        colour: Colour,
        label: int,
    ) -> None:
        """Draw an upright bar from span[0] to span[1] metres above (x, z), a pixel wide or more."""
        (column, low), (_, high) = self.camera.project([[x, span[0], z], [x, span[1], z]])
        half = max(0.5, self.camera.pixels_per_metre(z) * width / 2)
        corners = [(column - half, low), (column - half, high), (column + half, high),
                   (column + half, low)]  # fmt: skip
        self.fill_pixels(corners, colour, label, z)
        shaded = [(column, low), (column, high), *corners[2:]]
        self.fill_pixels(shaded, np.asarray(colour) * 0.75)

    def shade(self, points: ArrayLike, factor: float) -> None:
        """Darken a polygon, (N, 3) in metres, as a shadow does; labels stay."""
        corners = self.camera.project(points)
        box = self._clip(corners)
        if box is None or box[1] - box[0] < 4:  # far ones would not show
            return
        mask = np.zeros((box[1] - box[0], box[3] - box[2]), np.float32)
        cv2.fillPoly(mask, [_fixed(corners - [box[2], box[0]])], 1.0, cv2.LINE_8, SUBPIXEL)
        mask = 1 - (1 - factor) * cv2.blur(mask, (3, 3))
        region = self.image[box[0] : box[1], box[2] : box[3]]
        region[:] = region * mask[..., None]

    def warp(self, texture: Bytes, quad: ArrayLike, label: int) -> None:
        """Lay a texture on a wall: quad (4, 3) in metres, from top left clockwise."""
        quad = np.asarray(quad, np.float64)
        corners = self.camera.project(quad)
        box = self._clip(corners)
        if box is None:
            return
        top, bottom, left, right = box
        corners = corners - [left, top]
        h, w = texture.shape[:2]
        source = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
        matrix = cv2.getPerspectiveTransform(source, corners.astype(np.float32))
        size = (right - left, bottom - top)
        drawn = cv2.warpPerspective(texture, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        mask = np.zeros(size[::-1], np.uint8)
        cv2.fillPoly(mask, [_fixed(corners)], 1, cv2.LINE_8, SUBPIXEL)
        inside = mask.view(bool)
        np.copyto(self.image[top:bottom, left:right], drawn, where=inside[..., None])
        self.labels[top:bottom, left:right][inside] = label
        self.depth[top:bottom, left:right][inside] = quad[:, 2].mean()

    def paste(
        self,
        sprite: Bytes,
        x: float,
        z: float,
        height: float,
        label: int,
        lift: float = 0.0,
        spread: float = 1.0,
    ) -> None:
        """Stand an RGBA cut-out, (h, w, 4), `height` metres tall, on the ground at (x, z).

        lift raises it by metres, spread makes it wider. Its colours must be premultiplied by alpha
        (black where there is no object), or a fringe of the cut-out's own background would give
        pasted things away.
        """
        foot_column, foot_row = self.camera.project([x, lift, z])
        h = max(2, round(height * self.camera.pixels_per_metre(z)))
        w = max(2, round(spread * sprite.shape[1] * h / sprite.shape[0]))
        top, left = round(foot_row) - h, round(foot_column - w / 2)
        rows = slice(max(top, 0), min(top + h, self.camera.height))
        columns = slice(max(left, 0), min(left + w, self.camera.width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        sized = cv2.resize(sprite, (w, h), interpolation=cv2.INTER_AREA)
        sized = sized[rows.start - top :, columns.start - left :]
        sized = sized[: rows.stop - rows.start, : columns.stop - columns.start]
        region = self.image[rows, columns]
        behind = region * ((255 - sized[..., 3:]) * np.float32(1 / 255))
        region[:] = np.minimum(behind + sized[..., :3], 255)
        solid = sized[..., 3] > 127
        self.labels[rows, columns][solid] = label
        self.depth[rows, columns][solid] = z

    def sees(self, x: float, z: float, half: float) -> bool:
        """Return whether something at (x, z), `half` its width in metres, is inside the frame."""
        column = self.camera.project([x, 0.0, z])[0]
        pixels = half * self.camera.pixels_per_metre(z)
        return bool(-pixels < column < self.camera.width + pixels)

    def _clip(self, corners: NDArray[np.float64]) -> tuple[int, int, int, int] | None:
        """Return the box (top, bottom, left, right) inside the image, None if nothing is left."""
        (u_low, v_low), (u_high, v_high) = corners.min(0).tolist(), corners.max(0).tolist()
        left, top = max(floor(u_low), 0), max(floor(v_low), 0)
        right = min(ceil(u_high) + 1, self.camera.width)
        bottom = min(ceil(v_high) + 1, self.camera.height)
        return (top, bottom, left, right) if top < bottom and left < right else None


def _fixed(corners: ArrayLike) -> NDArray[np.int32]:
    """Convert pixels to cv2's fixed point; pixel i covers [i, i + 1), cv2 centres it at i."""
    # The half of a step in the offset makes the cast round.
    return (np.asarray(corners) * (1 << SUBPIXEL) - (1 << SUBPIXEL) / 2 + 0.5).astype(np.int32)


def box_side(x: float, z: tuple[float, float], y: tuple[float, float]) -> Sequence[Sequence[float]]:
    """Return (4, 3) corners of a wall along the road, clockwise from its far top as for warp()."""
    return [[x, y[1], z[1]], [x, y[1], z[0]], [x, y[0], z[0]], [x, y[0], z[1]]]
