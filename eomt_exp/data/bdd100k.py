"""Reads BDD100K (Yu et al., CVPR 2020): the 10K labelled images, in Cityscapes' classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from eomt_exp.contracts import VOID
from eomt_exp.data.cityscapes import CLASS_CATEGORIES, CLASS_NAMES
from eomt_exp.data.files.file_set import KnownClassSet, published_size
from eomt_exp.data.files.pairs import OnBroken
from eomt_exp.data.files.subfolder import Subfolder, find_subfolder, paired_files

_SPLITS = {"train": 7000, "val": 1000, "test": 2000}  # images of each, as published
# As published, without the folder above, and as it was called at first.
_IMAGES = ("images/10k", "10k", "seg/images")
_LABELS = ("labels/sem_seg/masks", "seg/labels")
_FIRST_ENDING = "_train_id.png"  # of the label maps in seg/


class BDD100K(KnownClassSet):
    """Reads one split, 1280x720 by day and night; label values are train ids, 255 is VOID.

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
        self.expected_images = published_size(_SPLITS, split)

        def split_of(kinds: Sequence[str], archive: str) -> Subfolder:
            below = [f"{kind}/{split}" for kind in kinds]
            folders = [*below, *(f"bdd100k/{folder}" for folder in below)]
            return find_subfolder(root, "bdd100k", folders, [archive])

        images, labels, ending = split_of(_IMAGES, "bdd100k_images_10k.zip"), None, ".png"
        if split != "test":
            labels = split_of(_LABELS, "bdd100k_sem_seg_labels_trainval.zip")
            ending = _FIRST_ENDING if labels.files(_FIRST_ENDING) else ".png"
        super().__init__(
            paired_files(images, ".jpg", labels, ending, on_broken),
            {value: value for value in range(self.num_classes)} | {VOID: VOID},
            "Point to labels/sem_seg/masks as published.",
        )
