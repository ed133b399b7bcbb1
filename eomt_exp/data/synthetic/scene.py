"""Defines the canvas of a scene: paint on image, labels and depth, seen by its camera.

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

from eomt_exp.data.synthetic.setting import Camera, Street, Weather
from eomt_exp.data.synthetic.textures import Bytes, Floats, Span

CLASS_NAMES = (
    "road", "pavement", "building", "vegetation", "sky", "car", "person", "pole", "sign",
)  # fmt: skip
ROAD, PAVEMENT, BUILDING, VEGETATION, SKY, CAR, PERSON, POLE, SIGN = range(9)
FOREIGN = 254
"""Label of anomalies while a scene is being drawn; no picture leaves the renderer with it."""

Colour = Sequence[float] | NDArray[np.floating]  # RGB in 0..255
FAR = 600.0  # metres; the depth of the sky
SUBPIXEL = 4  # bits of sub-pixel precision in cv2's drawing


class Glow(NamedTuple):
    """Describes a light added in the end: where and how wide (pixels), which colour (RGB)."""

    column: float
    row: float
    radius: float
    colour: Colour


class Scene:
    """Holds image, labels and depth of one picture while it is drawn, far things first."""

    def __init__(self, camera: Camera, street: Street, weather: Weather) -> None:
        shape = (camera.height, camera.width)
        self.camera, self.street, self.weather = camera, street, weather
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

    def bar(self, x: float, z: float, span: Span, width: float, colour: Colour, label: int) -> None:
        """Draw an upright bar from span[0] to span[1] metres above (x, z), a pixel wide or more."""
        (column, low), (_, high) = self.camera.project([[x, span[0], z], [x, span[1], z]])
        half = max(0.5, self.camera.pixels_per_metre(z) * width / 2)
        right = [(column + half, high), (column + half, low)]
        self.fill_pixels([(column - half, low), (column - half, high), *right], colour, label, z)
        self.fill_pixels([(column, low), (column, high), *right], np.asarray(colour) * 0.75)

    def shade(self, points: ArrayLike, factor: float) -> None:
        """Darken a polygon, (N, 3) in metres, as a shadow does; labels stay."""
        corners = self.camera.project(points)
        top, bottom, left, right = self._box(corners)
        if bottom - top < 4 or left >= right:  # far ones would not show
            return
        mask = np.zeros((bottom - top, right - left), np.float32)
        cv2.fillPoly(mask, [_fixed(corners - [left, top])], 1.0, cv2.LINE_8, SUBPIXEL)
        mask = 1 - (1 - factor) * cv2.blur(mask, (3, 3))
        region = self.image[top:bottom, left:right]
        region[:] = region * mask[..., None]

    def glow(self, point: ArrayLike, radius: float, colour: Colour) -> None:
        """Add a lamp, `radius` pixels wide, at a point (3,) in metres, to be lit in the end."""
        column, row = self.camera.project(point)
        self.glows.append(Glow(column, row, radius, colour))

    def warp(self, texture: Bytes, quad: ArrayLike, label: int) -> None:
        """Lay a texture on a wall: quad (4, 3) in metres, from top left clockwise."""
        quad = np.asarray(quad, np.float64)
        corners = self.camera.project(quad)
        top, bottom, left, right = self._box(corners)
        if top >= bottom or left >= right:
            return
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
        self, sprite: Bytes, x: float, z: float, height: float, label: int,
        lift: float = 0.0, spread: float = 1.0,
    ) -> None:  # fmt: skip
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

    def _box(self, corners: NDArray[np.float64]) -> tuple[int, int, int, int]:
        """Return top, bottom, left, right of the part inside the image, which may be empty."""
        (u_low, v_low), (u_high, v_high) = corners.min(0).tolist(), corners.max(0).tolist()
        bottom = min(ceil(v_high) + 1, self.camera.height)
        right = min(ceil(u_high) + 1, self.camera.width)
        return max(floor(v_low), 0), bottom, max(floor(u_low), 0), right


def _fixed(corners: ArrayLike) -> NDArray[np.int32]:
    """Convert pixels to cv2's fixed point; pixel i covers [i, i + 1), cv2 centres it at i."""
    # The half of a step in the offset makes the cast round.
    return (np.asarray(corners) * (1 << SUBPIXEL) - (1 << SUBPIXEL) / 2 + 0.5).astype(np.int32)


def box_side(x: float, z: Span, y: Span) -> Sequence[Sequence[float]]:
    """Return (4, 3) corners of a wall along the road, clockwise from its far top as for warp()."""
    return [[x, y[1], z[1]], [x, y[1], z[0]], [x, y[0], z[0]], [x, y[0], z[1]]]


def box_end(x: Span, z: float, y: Span) -> Sequence[Sequence[float]]:
    """Return (4, 3) corners of a wall across the road, from the top of x[0] to the top of x[1]."""
    return [[x[0], y[1], z], [x[1], y[1], z], [x[1], y[0], z], [x[0], y[0], z]]


def ellipse(
    x: float, z: float, across: float, along: float, y: float = 0, up: float = 0, corners: int = 14
) -> Floats:
    """Return (corners, 3): an ellipse around (x, y, z) with these half axes, in metres."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([x + across * cos, y + up * sin, z + along * sin], -1)
