"""Draws the outliers of the embedded data, a pool of objects to paste into training images."""

from __future__ import annotations

import numpy as np

from eomt_exp.contracts import OutlierPool, UserError
from eomt_exp.data.synthetic.assemblies import draw_assembly
from eomt_exp.data.synthetic.objects import draw_blob
from eomt_exp.data.synthetic.textures import Bytes


class SyntheticOutliers(OutlierPool):
    """Offers `length` objects to paste into training images, drawn when first asked for and kept.

    The first of them, the share `assemblies`, are figures of several parts, the others blobs.
    """

    def __init__(
        self, length: int = 512, seed: int = 0, size: int = 96, assemblies: float = 0.0
    ) -> None:
        if length < 1 or seed < 0 or size < 8 or not 0 <= assemblies <= 1:
            raise UserError(
                f"Got length={length}, seed={seed}, size={size}, assemblies={assemblies}; allowed "
                "are length >= 1, seed >= 0, size >= 8 pixels and assemblies between 0 and 1."
            )
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
