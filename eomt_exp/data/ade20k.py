"""Reads ADE20K (Zhou et al., CVPR 2017) of the scene parsing challenge: 150 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from eomt_exp.contracts import VOID
from eomt_exp.data.files.file_set import KnownClassSet, published_size
from eomt_exp.data.files.pairs import OnBroken
from eomt_exp.data.files.subfolder import find_subfolder, paired_files

# The first of the names each class has in objectInfo150.txt, in its order.
CLASS_NAMES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass",
    "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain",
    "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field",
    "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub", "railing",
    "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand", "sink",
    "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case",
    "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind",
    "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
    "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth",
    "television", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator",
    "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt",
    "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall",
    "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name",
    "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture",
    "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen",
    "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip

_ROOT = "ADEChallengeData2016"
_FOLDERS = {"train": "training", "val": "validation"}
_SPLITS = {"train": 20210, "val": 2000}  # images of each, as published


class ADE20K(KnownClassSet):
    """Reads one split, of many sizes; label 0 (none of the 150) is VOID, 1..150 are 0..149."""

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES

    def __init__(
        self,
        root: str | Path | None,
        split: Literal["train", "val"],
        on_broken: OnBroken = "error",
    ) -> None:
        """`root` is ADEChallengeData2016, as a folder or a zip, or a folder that holds either."""
        self.expected_images = published_size(_SPLITS, split)
        below = (f"{kind}/{_FOLDERS[split]}" for kind in ("images", "annotations"))
        images, labels = (
            find_subfolder(root, "ade20k", [folder, f"{_ROOT}/{folder}"], [f"{_ROOT}.zip"])
            for folder in below
        )
        super().__init__(
            paired_files(images, ".jpg", labels, ".png", on_broken),
            {0: VOID} | {index + 1: index for index in range(self.num_classes)},
            f"Point to the annotations of {_ROOT}: those of the full ADE20K are others.",
        )
