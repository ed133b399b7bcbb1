"""Reads Cityscapes (Cordts et al., CVPR 2016): the 19 known classes of the road benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from eomt_exp.contracts import VOID
from eomt_exp.data.files.file_set import KnownClassSet, published_size
from eomt_exp.data.files.pairs import OnBroken
from eomt_exp.data.files.subfolder import Subfolder, find_subfolder, paired_files

CLASS_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip

CLASS_CATEGORIES = (
    *("flat",) * 2, *("construction",) * 3, *("object",) * 3, *("nature",) * 2, "sky",
    *("human",) * 2, *("vehicle",) * 6,
)  # fmt: skip

# In the order of CLASS_NAMES, what labels.py of cityscapesScripts calls the id of a train id.
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_MEANING = {value: VOID for value in range(34)} | {
    value: index for index, value in enumerate(_LABEL_IDS)
}
_SPLITS = {"train": 2975, "val": 500, "test": 1525}  # images of each, as published
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


class Cityscapes(KnownClassSet):
    """Reads the finely annotated images of one split, 2048x1024, from folders or the archives.

    Of the 34 label ids, 19 are classes and the others VOID. The test split comes without labels:
    what its label files hold are place-holders.
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES
    class_categories = CLASS_CATEGORIES  # of each class, for the category IoU

    def __init__(
        self,
        root: str | Path | None,
        split: Literal["train", "val", "test"],
        on_broken: OnBroken = "error",
    ) -> None:
        """`root` holds leftImg8bit/ and gtFine/, or the zips that begin so, or one of each."""
        self.expected_images = published_size(_SPLITS, split)

        def split_of(kind: str) -> Subfolder:
            archive = f"{kind}_trainvaltest.zip"
            return find_subfolder(root, "cityscapes", [f"{kind}/{split}"], [archive])

        images = split_of("leftImg8bit")
        labels = None if split == "test" else split_of("gtFine")
        super().__init__(
            paired_files(images, _IMAGE, labels, _LABELS, on_broken),
            _MEANING,
            "Point to the *_gtFine_labelIds.png files as published.",
        )
