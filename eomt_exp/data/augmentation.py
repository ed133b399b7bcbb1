"""Augments training images: scale, crop and flip first, colour last, all from a seed.

There are two steps because objects are pasted in between: they stand in the final frame, and share
its light and noise with everything else in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing must not ask the network

import albumentations as A
import cv2
import numpy as np

from eomt_exp.contracts import VOID, LabelledImage, UserError
from eomt_exp.ranges import Range, Share


class ScaledCrop(A.DualTransform):
    """Cuts a window of `size` after scaling to `scale` times the size that just covers it.

    Cropping first and resizing the window once is the same picture for less work. Below scale 1
    the frame is filled up with black that is VOID in every label map.
    """

    def __init__(
        self, size: tuple[int, int], scale: tuple[float, float], random_crop: bool
    ) -> None:
        super().__init__(p=1.0)
        self.size, self.scale, self.random_crop = size, scale, random_crop

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the window in pixels of the source: first row, first column, height, width."""
        source = params["shape"][:2]
        cover = max(self.size[0] / source[0], self.size[1] / source[1])
        factor = cover * self.py_random.uniform(*self.scale)
        height, width = (max(round(side / factor), 1) for side in self.size)
        row, column = (
            self._start(whole - part) for whole, part in zip(source, (height, width), strict=True)
        )
        return {"window": (row, column, height, width)}

    def _start(self, slack: int) -> int:
        """Draw where the window begins; slack is negative when it is larger than the source."""
        share = self.py_random.random() if self.random_crop else 0.5
        return min(int(share * (abs(slack) + 1)), abs(slack)) * (1 if slack >= 0 else -1)

    def apply(
        self, img: np.ndarray, window: tuple[int, int, int, int], **params: Any
    ) -> np.ndarray:
        """Cut (H, W, 3) uint8 out of (h, w, 3) uint8."""
        shrinks = window[2] > self.size[0]
        return self._cut(img, window, 0, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def apply_to_mask(
        self, mask: np.ndarray, window: tuple[int, int, int, int], **params: Any
    ) -> np.ndarray:
        """Cut (H, W) uint8 out of (h, w) uint8; each value is one of the source, or VOID."""
        # NEAREST (not EXACT) would sit half a pixel off the image's own grid.
        return self._cut(mask, window, VOID, cv2.INTER_NEAREST_EXACT)

    def _cut(
        self, array: np.ndarray, window: tuple[int, int, int, int], fill: int, method: int
    ) -> np.ndarray:
        row, column, height, width = window
        above, left = max(-row, 0), max(-column, 0)
        part = array[max(row, 0) : row + height, max(column, 0) : column + width]
        below, right = height - above - part.shape[0], width - left - part.shape[1]
        if above or left or below or right:
            part = cv2.copyMakeBorder(
                part, above, below, left, right, cv2.BORDER_CONSTANT, value=(fill,) * 3
            )
        if part.shape[:2] == self.size:
            return np.ascontiguousarray(part)
        return cv2.resize(part, self.size[::-1], interpolation=method)


class Augmentation:
    """Frames and colours at random, each a function of the image and one integer seed."""

    def __init__(
        self,
        image_size: Sequence[int],
        scale: Sequence[float] = (0.9, 1.8),
        random_crop: bool = True,
        flip: Share = 0.5,
        brightness: Share = 0.3,
        contrast: Share = 0.3,
        saturation: Share = 0.3,
        hue: Annotated[float, Range(0, 0.5)] = 0.02,
        blur: Share = 0.05,
        noise: Share = 0.05,
    ) -> None:
        """`image_size` is (H, W); `scale` counts from the size that just covers it.

        `flip`, `blur` and `noise` are probabilities; `brightness`, `contrast` and `saturation` say
        by what share a factor may leave 1, `hue` how far the colour circle may turn (0.5 = half).
        UserError for what cannot work.
        """
        if len(image_size) != 2 or min(image_size) < 1:
            raise UserError(f"image_size must be [height, width] in pixels, got {image_size}.")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise UserError(f"scale must be [lowest, highest], both above 0, got {scale}.")
        colours = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        self.image_size = int(image_size[0]), int(image_size[1])
        crop = ScaledCrop(self.image_size, (float(scale[0]), float(scale[1])), random_crop)
        self._frame = A.Compose(
            [crop, A.HorizontalFlip(p=flip)],
            additional_targets={"labels": "mask", "anomaly": "mask"},
        )
        jitter = A.ColorJitter(**colours, hue=hue, p=float(any((*colours.values(), hue))))
        soften = A.GaussianBlur(sigma_limit=(0.3, 1.2), p=blur)
        grain = A.GaussNoise(std_range=(0.01, 0.04), p=noise)
        self._colour = A.Compose([jitter, soften, grain])

    def geometric(self, image: LabelledImage, seed: int) -> LabelledImage:
        """Scale, crop and flip to image_size; labels and anomaly follow by nearest pixel."""
        _seed_each(self._frame, seed)
        moved = self._frame(image=image.image, labels=image.labels, anomaly=image.anomaly)
        return LabelledImage(moved["image"], moved["labels"], moved["anomaly"], image.name)

    def photometric(self, image: LabelledImage, seed: int) -> LabelledImage:
        """Change colours, blur and add noise; labels and anomaly are the same arrays as before."""
        _seed_each(self._colour, seed)
        return image._replace(image=self._colour(image=image.image)["image"])


def _seed_each(compose: A.Compose, seed: int) -> None:
    """Seed every transform on its own.

    Compose.set_random_seed gives one seed to all of them, and then their first draws agree: blur
    and noise would always come together, and a flip would determine the scale.
    """
    compose.set_random_seed(seed)
    seeds = np.random.SeedSequence(seed).generate_state(len(compose.transforms))
    for transform, own in zip(compose.transforms, seeds, strict=True):
        transform.set_random_seed(int(own))
