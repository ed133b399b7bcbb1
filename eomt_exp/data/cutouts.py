"""Prepares a cut-out for pasting: varies it, scales it, softens its edge, matches its colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np


class Patch(NamedTuple):
    """Holds an object at its final size, ready to be blended."""

    colours: np.ndarray  # (h, w, 3) float32 RGB in [0, 255]
    mask: np.ndarray  # (h, w) bool, the object; touches all four sides


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return (h, w, 4) uint8 RGBA: what an image (H, W, 3) shows under a mask (H, W) bool."""
    box = extent(mask)
    return np.dstack([image[box], np.where(mask[box], np.uint8(255), np.uint8(0))])


def is_truncated(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Return whether a box (left, top, width, height) touches the border of an (H, W) image."""
    left, top, width, height = box
    return min(left, top) < 1 or left + width > size[1] - 1 or top + height > size[0] - 1


def vary(
    rgba: np.ndarray, rng: np.random.Generator, flip: bool, rotation: float, brightness: float
) -> np.ndarray:
    """Turn (h, w, 4) uint8 into (h', w', 4) float32 with colours multiplied by alpha.

    It is flipped half of the time, turned by up to `rotation` degrees either way and lightened or
    darkened by up to the share `brightness`. The draws are the same in number whatever the options.
    """
    mirrored, angle, light = rng.random() < 0.5, rng.uniform(-1, 1), rng.uniform(-1, 1)
    alpha = rgba[..., 3:].astype(np.float32) / 255
    colours = np.minimum(rgba[..., :3] * np.float32(1 + brightness * light), 255)
    varied = np.concatenate([colours * alpha, alpha], axis=2)
    if flip and mirrored:
        varied = np.ascontiguousarray(varied[:, ::-1])
    return _rotated(varied, rotation * angle) if rotation else varied


def scaled(varied: np.ndarray, longer_side: int) -> Patch | None:
    """Scale the longer side of the object to about `longer_side`; None if nothing is left."""
    varied = varied[extent(varied[..., 3] > 0.5)]
    height, width = varied.shape[:2]
    if not height or not width:
        return None
    factor = longer_side / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(varied, size, interpolation=method)
    mask = resized[..., 3] > 0.5
    box = extent(mask)  # thin ends may have faded under one half
    resized, mask = resized[box], mask[box]
    if not mask.any():
        return None
    return Patch(resized[..., :3] / np.maximum(resized[..., 3:], 1e-6), mask)


def padded(patch: Patch, margin: int) -> Patch:
    """Add a margin for the soft edge, where pixels take the colour of the nearest object pixel.

    Without that the edge would fade through whatever the PNG holds under alpha 0, often black.
    """
    mask = np.pad(patch.mask, margin)
    colours = np.pad(patch.colours, ((margin, margin), (margin, margin), (0, 0)))
    _, nearest = cv2.distanceTransformWithLabels(
        (~mask).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    by_label = np.zeros((nearest.max() + 1, 3), dtype=np.float32)
    by_label[nearest[mask]] = colours[mask]
    return Patch(by_label[nearest], mask)


def soft_alpha(mask: np.ndarray, feather: float) -> np.ndarray:
    """Return (h, w) float32 that ramps over `feather` pixels on either side of the outline.

    It crosses 0.5 on the outline, so alpha > 0.5 is the mask whatever the feather, and pixels
    deeper than `feather` are solid. On thin objects the ramp narrows, so that they stay solid too.
    """
    if not feather:
        return mask.astype(np.float32)
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # The distance is to the middle of the nearest pixel of the other side; the outline is between.
    signed = np.where(mask, inside - 0.5, 0.5 - outside)
    reach = max(min(feather, float(signed.max())), 0.5)
    return np.clip(0.5 + signed / (2 * reach), 0, 1).astype(np.float32)


def colour_matched(
    colours: np.ndarray, mask: np.ndarray, behind: np.ndarray, strength: float
) -> np.ndarray:
    """Move the object's mean colour in LAB towards that of the pixels behind it.

    Args:
        colours, behind: (h, w, 3) float32 RGB in [0, 255].
        mask: (h, w) bool, where the two are compared.
        strength: 0 leaves the colours, 1 makes the two means equal.
    """
    if not strength or not mask.any():
        return colours
    lab = cv2.cvtColor(colours / np.float32(255), cv2.COLOR_RGB2LAB)
    lab_behind = cv2.cvtColor(behind / np.float32(255), cv2.COLOR_RGB2LAB)
    lab += np.float32(strength) * (lab_behind[mask].mean(axis=0) - lab[mask].mean(axis=0))
    return np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1) * np.float32(255)


def extent(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the smallest box around the mask; an empty one where the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _rotated(varied: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate about the middle, on a canvas that holds all of it."""
    height, width = varied.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    cosine, sine = abs(turn[0, 0]), abs(turn[0, 1])
    new_width = math.ceil(width * cosine + height * sine) + 1
    new_height = math.ceil(width * sine + height * cosine) + 1
    turn[:, 2] += (new_width - width) / 2, (new_height - height) / 2
    return cv2.warpAffine(varied, turn, (new_width, new_height), flags=cv2.INTER_LINEAR)
