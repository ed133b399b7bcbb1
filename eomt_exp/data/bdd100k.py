"""BDD100K (Yu et al., CVPR 2020): the 10K images with semantic labels, in Cityscapes' classes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

from eomt_exp.contracts import VOID
from eomt_exp.data.cityscapes import CLASS_CATEGORIES, CLASS_NAMES
from eomt_exp.data.file_set import KnownClassSet
from eomt_exp.data.paired_files import OnBroken, Pair, PairedFiles
from eomt_exp.data.published_files import Part, find_part

_SPLITS = {"train": 7000, "val": 1000, "test": 2000}  # images of each, as published
_IMAGES, _LABELS = "images/10k", "labels/sem_seg/masks"


class BDD100K(KnownClassSet):
    """Images of one split, 1280x720 by day and night; label values are train ids, 255 is VOID.

    The labels of the test split are not published.
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES
    class_categories = CLASS_CATEGORIES

    def __init__(
        self,
        root: str | Path | None,
        split: Literal["train", "val", "test"],
        on_broken: OnBroken = "error",
    ) -> None:
        """`root` holds images/10k/ and labels/sem_seg/masks/, bdd100k/ with them, or the zips."""
        if split not in _SPLITS:
            raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}.")
        images = _part(root, f"{_IMAGES}/{split}", "bdd100k_images_10k.zip")
        labels = None
        if split != "test":
            labels = _part(root, f"{_LABELS}/{split}", "bdd100k_sem_seg_labels_trainval.zip")
        pairs = [_pair(file, labels) for file in images.files(".jpg")]
        super().__init__(
            PairedFiles(images.tree, (labels or images).tree, pairs, on_broken, option="data"),
            {value: value for value in range(self.num_classes)} | {VOID: VOID},
            "Point to labels/sem_seg/masks as published.",
        )
        self.expected_images = _SPLITS[split]


def _part(root: str | Path | None, folder: str, archive: str) -> Part:
    return find_part(root, "bdd100k", [folder, f"bdd100k/{folder}"], [archive])


def _pair(file: str, labels: Part | None) -> Pair:
    stem = PurePosixPath(file).stem
    return Pair(file, None if labels is None else labels.inside(f"{stem}.png"), stem)
