"""Reads CamVid (Brostow et al., 2009) in the SegNet split: 11 known classes, seen from a car."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from eomt_exp.contracts import VOID
from eomt_exp.data.files.decode import existing_folder
from eomt_exp.data.files.file_set import KnownClassSet, published_size
from eomt_exp.data.files.pairs import OnBroken, PairedFiles, pairs_by_stem
from eomt_exp.data.files.tree import FileTree

CLASS_NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree",
    "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip

_UNLABELLED = 11
_SPLITS = {"train": 367, "val": 101, "test": 233}  # images of each, as published


class CamVid(KnownClassSet):
    """Reads one split, 480x360, in folders {train,val,test} and {train,val,test}annot.

    Label values 0..10 are the classes, 11 (unlabelled) becomes VOID.
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES

    def __init__(
        self,
        root: str | Path | None,
        split: Literal["train", "val", "test"],
        on_broken: OnBroken = "error",
    ) -> None:
        self.expected_images = published_size(_SPLITS, split)
        tree = FileTree(existing_folder(root, option="data=camvid", key="camvid", zips=True))
        pairs = pairs_by_stem(tree, split, tree, f"{split}annot")
        super().__init__(
            PairedFiles(tree, tree, pairs, on_broken, option="data"),
            {value: value for value in range(self.num_classes)} | {_UNLABELLED: VOID},
        )
