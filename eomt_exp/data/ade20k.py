"""Reads ADE20K (Zhou et al., CVPR 2017) of the scene parsing challenge: 150 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from eomt_exp.data.files.file_set import OnBroken
from eomt_exp.data.files.layouts import Layout
from eomt_exp.data.known_class_folder import KnownClassFolder

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

_LAYOUTS = {
    split: Layout(f"images/{folder}/{{id}}.jpg", f"annotations/{folder}/{{id}}.png",
                  only={"split": split})
    for split, folder in (("train", "training"), ("val", "validation"))
}  # fmt: skip


class ADE20K(KnownClassFolder):
    """Reads one split, of many sizes; label 0 (none of the 150) is VOID, 1..150 are 0..149."""

    def __init__(
        self,
        root: str | Path | None,
        split: Literal["train", "val"],
        on_broken: OnBroken = "error",
    ) -> None:
        """`root` is ADEChallengeData2016, as a folder or a zip, or a folder that holds either."""
        super().__init__(
            root,
            name="ade20k",
            classes=CLASS_NAMES,
            layouts=_LAYOUTS,
            split=split,
            folders=["ADEChallengeData2016"],
            label_values={name: index for index, name in enumerate(CLASS_NAMES, start=1)},
            void_values=0,
            unmapped_values="error",
            expected_images={"train": 20210, "val": 2000},
            on_broken=on_broken,
        )
