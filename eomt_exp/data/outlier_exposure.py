"""Exposes training to outliers by cut and paste: sets foreign objects into known road scenes.

The parts follow AnomalyMix (PEBAL, Tian et al., ECCV 2022) and what came after it: four target
policies are in use (EAM ignores, UNO adds a class, others leave no-object), and soft edges, colour
matching and perspective keep the network from learning the paste instead of the object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

import numpy as np

from eomt_exp.contracts import (
    ANOMALY,
    VOID,
    LabelledImage,
    OutlierPool,
    OutlierTarget,
    Pasted,
    UserError,
)
from eomt_exp.data.cutouts import Patch, colour_matched, extent, padded, scaled, soft_alpha, vary
from eomt_exp.data.domain_shift import shifted
from eomt_exp.ranges import NotNegative, Range, Share

_ATTEMPTS = 10  # spots tried for one object before the image goes without it
_FOOT_SHARE = 0.08  # the lowest share of an object's height is what it stands on
Placement = Literal["anywhere", "road", "mixed"]


@dataclass(frozen=True, eq=False)
class CutPaste:
    """Paste outlier objects into an image and write them into its truth, as an Exposure does.

    UserError for numbers that cannot work.
    """

    pool: OutlierPool
    _: KW_ONLY
    num_classes: int
    paste_probability: Share = 0.6
    min_objects: int = 1
    max_objects: int = 3
    min_scale: float = 0.09  # longer side over image height; every ratio of sizes as likely
    max_scale: float = 0.55
    placement: Placement = "anywhere"  # road: its foot stands on road_classes; mixed: half of them
    road_classes: Annotated[Sequence[int], Range(0)] = (0,)
    min_support: Share = 0.8  # share of the foot that must be on the road
    perspective: bool = False  # the drawn scale holds at the lower edge, min_scale at the horizon
    feather: NotNegative = 1.5  # pixels on either side of the outline over which the edge fades
    colour_match: Share = 0.2  # share of the way to the mean colour (LAB) of what is behind
    flip: bool = True
    rotation: NotNegative = 8.0  # degrees either way
    brightness: Share = 0.15  # share lighter or darker
    target: OutlierTarget = "outlier_class"
    shifted_copy: Literal["none", "photometric", "weather"] = "none"
    copy_probability: Share = 1.0  # share of the images that have such a copy

    def __post_init__(self) -> None:
        if not 1 <= self.min_objects <= self.max_objects:
            raise UserError(
                "min_objects must be at least 1 and not over max_objects, got "
                f"min_objects={self.min_objects}, max_objects={self.max_objects}; "
                "outlier_exposure=none pastes nothing."
            )
        if not 0 < self.min_scale <= self.max_scale:
            raise UserError(
                "min_scale must be above 0 and not over max_scale, got "
                f"min_scale={self.min_scale}, max_scale={self.max_scale}."
            )
        if self.placement == "road" and not self.road_classes:
            raise UserError("placement=road needs road_classes, the label ids to stand on.")
        if not self.pool:  # or none: data.outliers is null
            raise UserError("The pool has no objects; outlier_exposure=none pastes nothing.")

    def __call__(self, image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        """Return the image with objects, or as it came; the arrays handed in are not written to."""
        if rng.random() >= self.paste_probability:
            return image
        pixels, labels, anomaly = map(np.array, (image.image, image.labels, image.anomaly))
        scene = LabelledImage(pixels, labels, anomaly, image.name)
        count = rng.integers(self.min_objects, self.max_objects + 1)
        pasted = [self._paste_one(scene, rng) for _ in range(count)]
        return scene._replace(pasted=tuple(one for one in pasted if one and one.pixels))

    def shifted(self, image: LabelledImage, rng: np.random.Generator) -> LabelledImage | None:
        """Return the scene without objects under other light or weather, where it has a copy."""
        if self.shifted_copy == "none" or rng.random() >= self.copy_probability:
            return None
        return shifted(image, self.shifted_copy, rng)

    def _paste_one(self, scene: LabelledImage, rng: np.random.Generator) -> Pasted | None:
        """Paste an object into the arrays of a scene, which is one's own to write to.

        None where it finds no place.
        """
        number = int(rng.integers(len(self.pool)))
        rgba = np.asarray(self.pool[number])
        varied = vary(rgba, rng, self.flip, self.rotation, self.brightness)
        scale = math.exp(rng.uniform(math.log(self.min_scale), math.log(self.max_scale)))
        road = np.isin(scene.labels, self.road_classes)
        mixed = self.placement == "mixed"
        on_road = bool(road.any()) and rng.random() < 0.5 if mixed else self.placement == "road"
        for _ in range(_ATTEMPTS):
            foot = _draw_foot(road, on_road, rng)
            if foot is None:
                return None
            longer_side = self._scale_at(foot[0], scale, road) * road.shape[0]
            patch = scaled(varied, max(round(longer_side), 1))
            if patch is None:
                return None
            corner = _corner(patch.mask, foot)
            if not on_road:
                corner = _moved_inside(corner, patch.mask.shape, road.shape)
            elif _support(patch.mask, corner, road) < self.min_support:
                continue
            top, left, mask = self._blend(scene, patch, corner)
            rows, columns = extent(mask)
            return Pasted(
                number, top + rows.start, left + columns.start,
                rows.stop - rows.start, columns.stop - columns.start, int(mask.sum()),
            )  # fmt: skip
        return None

    def _scale_at(self, row: int, scale: float, road: np.ndarray) -> float:
        """Sizes on flat ground fall linearly from the lower edge of the image to the horizon."""
        if not self.perspective:
            return scale
        height = road.shape[0]
        rows = np.flatnonzero(road.any(axis=1))
        horizon = int(rows[0]) if rows.size else height // 2
        nearness = (row - horizon) / max(height - 1 - horizon, 1)
        return max(scale * nearness, self.min_scale)

    def _blend(
        self, scene: LabelledImage, patch: Patch, corner: tuple[int, int]
    ) -> tuple[int, int, np.ndarray]:
        """Return row and column of the pasted mask, and the mask, as far as it is in the image."""
        margin = math.ceil(self.feather) + 1
        patch = padded(patch, margin)
        alpha = soft_alpha(patch.mask, self.feather)
        corner = corner[0] - margin, corner[1] - margin
        there, here = _overlap(corner, alpha.shape, scene.labels.shape)
        mask, alpha = patch.mask[here], alpha[here][..., None]
        behind = scene.image[there].astype(np.float32)
        colours = colour_matched(patch.colours[here], mask, behind, self.colour_match)
        blended = behind + alpha * (colours - behind)
        scene.image[there] = np.round(blended).astype(np.uint8)
        is_class = self.target == "outlier_class"
        scene.labels[there][mask] = self.num_classes if is_class else VOID
        scene.anomaly[there][mask] = ANOMALY
        return there[0].start, there[1].start, mask


def _draw_foot(road: np.ndarray, on_road: bool, rng: np.random.Generator) -> tuple[int, int] | None:
    """Draw (row, column) of the point an object stands on; None without road to stand on."""
    if not on_road:
        return int(rng.integers(road.shape[0])), int(rng.integers(road.shape[1]))
    spots = np.flatnonzero(road)
    if not spots.size:
        return None
    row, column = divmod(int(spots[rng.integers(spots.size)]), road.shape[1])
    return row, column


def _corner(mask: np.ndarray, foot: tuple[int, int]) -> tuple[int, int]:
    """Return the top left of the box whose lowest object pixel, the middle one, is at `foot`."""
    lowest = np.flatnonzero(mask[-1])
    return foot[0] - mask.shape[0] + 1, foot[1] - int(lowest[len(lowest) // 2])


def _moved_inside(
    corner: tuple[int, int], size: tuple[int, ...], frame: tuple[int, ...]
) -> tuple[int, int]:
    """Move the corner until the box is inside; one too large sticks out below or to the right."""
    row, column = (
        max(min(start, whole - part), 0)
        for start, part, whole in zip(corner, size, frame, strict=True)
    )
    return row, column


def _support(mask: np.ndarray, corner: tuple[int, int], road: np.ndarray) -> float:
    """Return the share of the object's foot on road; what hangs out of the image is not on it."""
    height = max(round(_FOOT_SHARE * mask.shape[0]), 1)
    rows, columns = mask[-height:].nonzero()
    rows, columns = rows + corner[0] + mask.shape[0] - height, columns + corner[1]
    inside = (rows >= 0) & (columns >= 0) & (columns < road.shape[1])
    return float(road[rows[inside], columns[inside]].sum() / rows.size)


def _overlap(
    corner: tuple[int, int], size: tuple[int, ...], frame: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of a box inside the image, in image coordinates and in the box's own."""
    there, here = [], []
    for start, part, whole in zip(corner, size, frame, strict=True):
        first, last = max(start, 0), min(start + part, whole)
        there.append(slice(first, last))
        here.append(slice(first - start, last - start))
    return (there[0], there[1]), (here[0], here[1])
