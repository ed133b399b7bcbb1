"""Squeezes images and labels to one size, for protocols that measure at the model's own."""

from __future__ import annotations

import numpy as np
from PIL import Image

from eomt_exp.contracts import ImageSet, LabelledImage
from eomt_exp.data.wrapped_set import WrappedSet


class Resized(WrappedSet):
    """Resizes another image set: pictures bilinear (Pillow's, which averages what it shrinks),
    labels by the nearest pixel. The aspect ratio is not kept."""

    def __init__(self, images: ImageSet, size: tuple[int, int]) -> None:
        """`size` is (H, W)."""
        super().__init__(images)
        self._size = (size[1], size[0])  # Pillow counts columns first

    def __getitem__(self, index: int) -> LabelledImage:
        """Return the image in the given size."""
        item = self._images[index]
        picture = Image.fromarray(item.image).resize(self._size, Image.Resampling.BILINEAR)
        return LabelledImage(
            np.asarray(picture), self._nearest(item.labels), self._nearest(item.anomaly), item.name
        )

    def _nearest(self, values: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(values))
        return np.asarray(picture.resize(self._size, Image.Resampling.NEAREST))
