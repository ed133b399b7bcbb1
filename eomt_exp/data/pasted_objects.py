"""Pastes objects into known scenes, as an anomaly set to tune by.

Real anomaly sets are few and are the test; a choice of hyper-parameters wants anomalies too. As in
outlier exposure objects are cut and pasted, here into scenes that nobody trains on; the truth is
exact.
"""

from __future__ import annotations

import zlib

import numpy as np

from eomt_exp.contracts import Exposure, ImageSet, LabelledImage, UserError
from eomt_exp.ranges import Whole


class PastedObjects(ImageSet):
    """Pastes objects into every image of another set, always the same ones.

    What is pasted is a function of the seed and the index of the scene in its set, so that `length`
    changes which scenes there are and never what they show.
    """

    labels_anomalies = True

    def __init__(
        self, images: ImageSet | None, paste: Exposure, seed: Whole = 0, length: int | None = None
    ) -> None:
        """`length` scenes are taken, spread evenly; None: all. UserError for more than exist."""
        if images is None:
            raise UserError(
                "PastedObjects has no scenes to paste into: data.val is null. Type another "
                "data=…, or take a set of its own: benchmark@tuning=road_anomaly, say."
            )
        if length is not None and not 1 <= length <= len(images):
            raise UserError(
                f"Got length={length}; allowed are 1 to {len(images)}, the scenes there are, "
                "or null for all."
            )
        self.num_classes, self.class_names = images.num_classes, images.class_names
        self.reads_files = images.reads_files
        self._images, self._paste, self._seed = images, paste, seed
        count = len(images) if length is None else length
        self._indices = [position * len(images) // count for position in range(count)]

    def locations(self, index: int) -> tuple[str, str | None]:
        """Say where a scene of files lies, as its own set does."""
        return self._images.locations(self._indices[index])

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> LabelledImage:
        """Return image (H, W, 3) RGB; where an object covers it, anomaly is 1 and labels VOID."""
        if not 0 <= index < len(self):
            raise IndexError(f"Got image {index} of {len(self)}; 0 to {len(self) - 1} exist.")
        scene = self._indices[index]
        rng = np.random.default_rng([self._seed, zlib.crc32(b"pasted objects"), scene])
        item = self._paste(self._images[scene], rng)
        return item._replace(name=f"pasted/{item.name}")
