"""BDD100K (Yu et al., CVPR 2020): the 10K images with semantic labels, in Cityscapes' classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from eomt_exp.contracts import VOID
from eomt_exp.data.cityscapes import CLASS_CATEGORIES, CLASS_NAMES
from eomt_exp.data.files.file_set import KnownClassSet
from eomt_exp.data.files.pairs import OnBroken, PairedFiles
from eomt_exp.data.files.published import Part, find_part, pairs_of

_SPLITS = {"train": 7000, "val": 1000, "test": 2000}  # images of each, as published
# As published, without the folder above, and as it was called at first.
_IMAGES = ("images/10k", "10k", "seg/images")
_LABELS = ("labels/sem_seg/masks", "seg/labels")
_FIRST_ENDING = "_train_id.png"  # of the label maps in seg/


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
        """`root` holds images/10k/ and labels/sem_seg/masks/, bdd100k/ with them, or the zips.

        10k/ is as good as images/10k/; so is the older seg/ with images/ and labels/.
        """
        if split not in _SPLITS:
            raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}.")
        images, labels, ending = _part(root, _IMAGES, split, "bdd100k_images_10k.zip"), None, ".png"
        if split != "test":
            labels = _part(root, _LABELS, split, "bdd100k_sem_seg_labels_trainval.zip")
            ending = _FIRST_ENDING if labels.files(_FIRST_ENDING) else ".png"
        pairs = pairs_of(images, ".jpg", labels, ending)
        super().__init__(
            PairedFiles(images.tree, (labels or images).tree, pairs, on_broken, option="data"),
            {value: value for value in range(self.num_classes)} | {VOID: VOID},
            "Point to labels/sem_seg/masks as published.",
        )
        self.expected_images = _SPLITS[split]


def _part(root: str | Path | None, folders: Sequence[str], split: str, archive: str) -> Part:
    below = [f"{folder}/{split}" for folder in folders]
    return find_part(root, "bdd100k", [*below, *(f"bdd100k/{f}" for f in below)], [archive])
