"""Cuts objects to paste out of photographs with label maps: ADE20K, as EAM and UNO take them.

EAM (Grcic et al., 2023) pastes segments of any label, cars and sky among them; here labels may be
excluded, and an object is a connected region that the border of its photograph does not cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from eomt_exp.contracts import DataError, OutlierPool
from eomt_exp.data.cutouts import cut_out, is_truncated
from eomt_exp.data.files.decode import decode_image, decode_labels
from eomt_exp.data.files.label_values import Values, value_table
from eomt_exp.data.files.layout_search import SearchPaths, find_layout
from eomt_exp.data.files.layouts import Layout
from eomt_exp.ranges import Whole


class SegmentFolder(OutlierPool):
    """Offers `length` regions, drawn from photographs that are spread evenly over all there are.

    A region is a function of its index, whoever asks; files are decoded when asked for.
    """

    reads_files = True

    def __init__(
        self,
        root: str | Path | None,
        name: str,
        layouts: Mapping[str, Layout],
        split: str,
        excluded_values: Mapping[str, Values],
        allowed_values: Mapping[str, Values] | None = None,
        folders: Sequence[str] = (),
        min_area: Whole = 1000,
        length: int = 5000,
    ) -> None:
        """`layouts` and `folders` are as for a training set, whose folder is set by paths.<name>.

        Label values that may be pasted are `allowed_values`, None: all, without `excluded_values`;
        both map a class to values, whose names are for the reader alone. A region has at least
        `min_area` pixels. UserError, DataError: what is wrong and what to type.
        """
        paths = SearchPaths(root, None, ["", *folders], name, "outliers")
        self._found = find_layout(layouts, paths, {"split": split})
        excluded = _values(excluded_values, "excluded_values")
        allowed = set(range(256))
        if allowed_values is not None:
            allowed = _values(allowed_values, "allowed_values")
        self._values = sorted(allowed - excluded)
        self._min_area, self._length = min_area, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> np.ndarray:
        """Return (h, w, 4) uint8 RGBA, no empty rows or columns around the object."""
        position, _, region = self._region(index)
        file, tree = self._found.pairs[position].image, self._found.images
        image = decode_image(tree.read(file), tree.location(file))
        if image.shape[:2] != region.shape:
            raise DataError(f"{tree.location(file)} and its label map are not of one size.")
        return cut_out(image, region)

    def name(self, index: int) -> str:
        """Name the photograph and the label value of the region; this decodes the label map."""
        position, value, _ = self._region(index)
        return f"{self._found.pairs[position].name} {value}"

    def _region(self, index: int) -> tuple[int, int, np.ndarray]:
        """Draw a region (H, W) bool of the object's photograph, or of the next that has any.

        Returned with the photograph's position and the region's label value.
        """
        rng, count = np.random.default_rng(index), len(self._found.pairs)
        for step in range(count):
            position = (index * count // self._length + step) % count
            file = self._found.pairs[position].labels or ""
            tree = self._found.labels
            labels = decode_labels(tree.read(file), tree.location(file))
            for value in rng.permutation(np.intersect1d(labels, self._values)):
                if regions := self._regions(labels == value):
                    return position, int(value), regions[rng.integers(len(regions))]
        raise DataError(
            f"No region in {self._found.labels.root} can be pasted: lower "
            f"outliers.min_area={self._min_area}, or exclude fewer label values."
        )

    def _regions(self, mask: np.ndarray) -> list[np.ndarray]:
        count, numbers, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        return [
            numbers == number
            for number in range(1, count)
            if boxes[number, cv2.CC_STAT_AREA] >= self._min_area
            and not is_truncated(boxes[number, :4].tolist(), mask.shape)
        ]


def _values(named: Mapping[str, Values], key: str) -> set[int]:
    return set(value_table({f"outliers.{key}.{n}": (0, values) for n, values in named.items()}))
