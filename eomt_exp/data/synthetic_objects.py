"""Draws the outliers of the embedded data, a pool of objects to paste into training images."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from eomt_exp.contracts import OutlierPool
from eomt_exp.data.synthetic.assemblies import draw_assembly
from eomt_exp.data.synthetic.objects import draw_blob
from eomt_exp.data.synthetic.textures import Bytes
from eomt_exp.ranges import Range, Share, Whole


class SyntheticOutliers(OutlierPool):
    """Offers `length` objects to paste into training images, drawn when first asked for and kept.

    The first of them, the share `assemblies`, are figures of several parts, the others blobs.
    """

    def __init__(
        self,
        length: int = 512,
        seed: Whole = 0,
        size: Annotated[int, Range(8)] = 96,
        assemblies: Share = 0.0,
    ) -> None:
        self.length, self.seed, self.size, self.assemblies = length, seed, size, assemblies
        self._drawn: dict[int, Bytes] = {}  # one costs as much as the rest of a pasting

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Bytes:
        """Return (h, w, 4) uint8 RGBA, alpha 255 on the object, from seed, index and size only."""
        if not 0 <= index < self.length:
            raise IndexError(f"Got outlier {index} of {self.length}; 0 to {self.length - 1} exist.")
        if index not in self._drawn:
            draw = draw_assembly if index < self.assemblies * self.length else draw_blob
            drawn = draw(np.random.default_rng([self.seed, 0x0B10B, index]), self.size)
            drawn.setflags(write=False)  # handed out many times
            self._drawn[index] = drawn
        return self._drawn[index]
