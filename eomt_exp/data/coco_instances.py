"""Cuts objects to paste out of COCO's photographs (Lin et al., ECCV 2014) by their outlines.

Published recipes leave out photographs with road users in them, since a network must not learn that
cars are anomalies (Meta-OoD, Chan et al., ICCV 2021).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from eomt_exp.contracts import DataError, OutlierPool, UserError
from eomt_exp.data.coco_panoptic import annotation_file
from eomt_exp.data.cutouts import cut_out, is_truncated
from eomt_exp.data.files.decode import decode_image
from eomt_exp.data.files.layout_search import SearchPaths, find_layout
from eomt_exp.data.files.layouts import Layout
from eomt_exp.ranges import Whole

_LAYOUT = Layout("[images/]{split}2017/{id}.jpg", None)
_FOLDERS = ("", "coco", "images", "{split}2017")
_UNZIP = "Unzip annotations_trainval2017.zip there."


class _Instance(NamedTuple):
    """Holds what the JSON file says of one object."""

    id: int
    image_id: int
    category_id: int
    is_crowd: bool
    area: float
    box: tuple[float, float, float, float]  # left, top, width, height
    outline: Any  # polygons [x, y, x, y, …], or a run-length code


class CocoInstances(OutlierPool):
    """Offers objects that are whole, no crowds and not small; each is decoded when asked for."""

    reads_files = True

    def __init__(
        self,
        root: str | Path | None,
        split: Literal["train", "val"],
        excluded_images: Sequence[str],
        excluded_objects: Sequence[str],
        min_area: Whole = 1000,
        length: int | None = None,
    ) -> None:
        """`root` holds train2017/ or train2017.zip (val likewise) and annotations/.

        Left out are photographs with an `excluded_images` class in them, and all objects of an
        `excluded_objects` class; `length` are taken of the rest, spread evenly. UserError,
        DataError: what is wrong and what to type.
        """
        self._masks = _mask_library()
        paths = SearchPaths(root, None, _FOLDERS, "coco", "outliers")
        found = find_layout({"published": _LAYOUT}, paths, {"split": split})
        name = f"instances_{split}2017.json"
        self._json = annotation_file(Path(str(root)), name, "outliers=coco", _UNZIP)
        images, self._classes, instances = _read(self._json)
        refused = _ids(excluded_images, self._classes, "excluded_images")
        not_wanted = _ids(excluded_objects, self._classes, "excluded_objects")
        not_shown = {one.image_id for one in instances if one.category_id in refused}
        left = [
            one
            for one in instances
            if one.image_id not in not_shown
            and not one.is_crowd
            and one.category_id not in not_wanted
            and one.area >= min_area
            and not is_truncated(one.box, images[one.image_id][1])
        ]
        if not left:
            raise DataError(
                f"None of the {len(instances)} objects of {self._json} is left: lower "
                f"outliers.min_area={min_area}, or exclude fewer classes."
            )
        count = len(left) if length is None else min(length, len(left))
        self._instances = [left[position * len(left) // count] for position in range(count)]
        self._images, self._about = found.images, images
        self._files = {PurePosixPath(pair.image).name: pair.image for pair in found.pairs}
        shown = dict.fromkeys(images[one.image_id][0] for one in self._instances)
        if missing := [name for name in shown if name not in self._files]:
            raise DataError(
                f"{len(missing)} images that {self._json.name} names are not in "
                f"{self._images.root}, the first is {missing[0]}. Unpack {split}2017.zip again."
            )

    def __len__(self) -> int:
        return len(self._instances)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return (h, w, 4) uint8 RGBA, no empty rows or columns around the object."""
        one = self._instances[index]
        name, (height, width) = self._about[one.image_id]
        location = self._images.location(self._files[name])
        image = decode_image(self._images.read(self._files[name]), location)
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{location} is {image.shape[1]}x{image.shape[0]} pixels (width x height), and "
                f"{self._json.name} says {width}x{height}."
            )
        code = self._masks.frPyObjects(one.outline, height, width)
        code = self._masks.merge(code) if isinstance(code, list) else code
        return cut_out(image, self._masks.decode(code) > 0)

    def name(self, index: int) -> str:
        """Name photograph, class and annotation id."""
        one = self._instances[index]
        return f"{self._about[one.image_id][0]} {self._classes[one.category_id]} {one.id}"


def _mask_library() -> ModuleType:
    """Return pycocotools.mask, which draws outlines as COCO does; UserError without it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "outliers=coco needs pycocotools, and that cannot be imported; "
            'type: pip install -e ".[coco]"'
        ) from error
    return mask


def _read(
    path: Path,
) -> tuple[dict[int, tuple[str, tuple[int, int]]], dict[int, str], list[_Instance]]:
    """Read images (id -> file name, (H, W)), classes (id -> name) and objects."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=_compact)
        images = {
            image["id"]: (image["file_name"], (image["height"], image["width"]))
            for image in content["images"]
        }
        classes = {entry["id"]: entry["name"] for entry in content["categories"]}
        instances: list[_Instance] = content["annotations"]
        lost = [one.id for one in instances if one.image_id not in images]
        strange = [one.id for one in instances if one.category_id not in classes]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as COCO's instances: {type(error).__name__}: {error}. {_UNZIP}"
        ) from error
    if wrong := lost or strange:
        raise DataError(f"{path}: object {wrong[0]} has an image or class that is not listed.")
    return images, classes, instances


def _compact(entry: dict[str, Any]) -> Any:
    """Shorten an object of the JSON as it is parsed: polygons as Python numbers are gigabytes."""
    if "segmentation" not in entry:
        return entry
    outline = entry["segmentation"]
    if isinstance(outline, list):
        outline = [np.array(polygon, np.float64) for polygon in outline]
    return _Instance(
        entry["id"], entry["image_id"], entry["category_id"], bool(entry.get("iscrowd", 0)),
        entry["area"], tuple(entry["bbox"]), outline,
    )  # fmt: skip


def _ids(names: Sequence[str], classes: dict[int, str], key: str) -> set[int]:
    if strange := sorted(set(names) - set(classes.values())):
        raise UserError(
            f"outliers.{key} names {', '.join(strange)}, which is none of COCO's classes: "
            f"{', '.join(classes.values())}."
        )
    return {number for number, name in classes.items() if name in names}
