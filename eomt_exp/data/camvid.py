"""CamVid (Brostow et al., 2009) in the SegNet split: 11 known classes, seen from a car."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from eomt_exp.contracts import NORMAL, VOID, LabelledImage
from eomt_exp.data.image_files import existing_folder, remap_labels
from eomt_exp.data.labelled_folder import LabelledFolder, OnBroken

CLASS_NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree",
    "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip

_UNLABELLED = 11
_SPLITS = ("train", "val", "test")


class CamVid:
    """Images of one split, in folders {train,val,test} and labels in {train,val,test}annot.

    Label values 0..10 are the classes, 11 (unlabelled) becomes VOID. CamVid knows no anomalies:
    the anomaly map is 0 where a class is known and VOID elsewhere.
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES

    reads_files = True  # so that they can be checked before they are needed

    def __init__(
        self,
        root: str | Path | None,
        split: Literal["train", "val", "test"],
        on_broken: OnBroken = "error",
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}.")
        folder = existing_folder(root, option="data=camvid", key="camvid")
        self._files = LabelledFolder(
            folder / split, folder / f"{split}annot", on_broken, option="data"
        )
        self._table = {value: value for value in range(self.num_classes)} | {_UNLABELLED: VOID}

    @property
    def skipped(self) -> list[str]:
        """File names of the images left out by on_broken="skip"."""
        return self._files.skipped

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> LabelledImage:
        """One image in 480x360; DataError names a file that cannot be used."""
        image, values = self._files.read(index)
        labels = remap_labels(values, self._table, self._files.label_path(index))
        anomaly = np.where(labels == VOID, VOID, NORMAL).astype(np.uint8)
        return LabelledImage(image, labels, anomaly, self._files.files[index].stem)
