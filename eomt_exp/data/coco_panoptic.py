"""Reads COCO panoptic 2017 (Kirillov et al., CVPR 2019) as semantic classes, things and stuff.

Its label pictures hold an id of each segment, as a colour; a JSON file says which class a segment
has.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from eomt_exp.contracts import VOID, DataError
from eomt_exp.data.files.decode import decode_image
from eomt_exp.data.files.file_set import KnownClassSet, OnBroken, published_size
from eomt_exp.data.files.layout_search import SearchPaths, find_layout
from eomt_exp.data.files.layouts import Layout, Pair

# 80 things up to category 90, 53 kinds of stuff above, as in panoptic_coco_categories.json of the
# COCO panoptic API; the gaps are classes that were never annotated or were merged into others.
_NAMES = json.loads(files(__package__).joinpath("coco_classes.json").read_text(encoding="utf-8"))
_CLASS_OF = {int(category): index for index, category in enumerate(_NAMES)}
_SPLITS = {"train": 118287, "val": 5000}  # images of each, as published
# The inner archive must be a file of its own: read through the outer one, each picture would cost
# unpacking all that lie before it.
_LAYOUT = Layout("[images/]{split}2017/{id}.jpg", "[annotations/]panoptic_{split}2017/{id}.png")
_FOLDERS = ("", "coco", "images", "annotations", "{split}2017", "panoptic_{split}2017")
_UNZIP = "Of panoptic_annotations_trainval2017.zip, unzip at least the outer layer: annotations/."


class CocoPanoptic(KnownClassSet):
    """Reads one split, about 640x480; classes 0..132 follow the order of COCO's category ids.

    VOID are pixels without a segment and crowds, whose single members nobody told apart.
    """

    num_classes = len(_NAMES)
    class_names = tuple(_NAMES.values())

    def __init__(
        self, root: str | Path | None, split: Literal["train", "val"], on_broken: OnBroken = "error"
    ) -> None:
        """`root` holds train2017/ or train2017.zip (val likewise) and annotations/.

        In annotations/ are panoptic_train2017.json and panoptic_train2017/ or its zip.
        """
        self.expected_images = published_size(_SPLITS, split)
        paths = SearchPaths(root, None, _FOLDERS, "coco", "data")
        try:
            found = find_layout({"published": _LAYOUT}, paths, {"split": split})
        except DataError as error:
            raise DataError(f"{error} {_UNZIP}") from error
        name = f"panoptic_{split}2017.json"
        self._json = annotation_file(Path(str(root)), name, "data=coco", _UNZIP)
        self._segments = _segments(self._json)
        # The JSON says which images there are; a file it names and nobody has is named by it.
        there = {pair.name: pair for pair in found.pairs}
        pairs = [there.get(n, Pair(f"{n}.jpg", f"{n}.png", n)) for n in self._segments]
        meaning = {index: index for index in range(self.num_classes)} | {VOID: VOID}
        super().__init__(found._replace(pairs=pairs), meaning, on_broken, "data")

    def _decoded_labels(self, index: int, data: bytes, location: str) -> np.ndarray:
        """Turn colours into classes or VOID: a segment's id is R + 256 G + 65536 B.

        DataError lists ids that the JSON file says nothing about.
        """
        no_segment = np.array([(0, VOID)], np.uint32)
        segments = np.concatenate([no_segment, self._segments[self.pairs[index].name]])
        ids, classes = segments[segments[:, 0].argsort()].T
        colours = decode_image(data, location).astype(np.uint32)
        values = colours @ np.array([1, 256, 65536], np.uint32)
        slot = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
        strange = ids[slot] != values
        if strange.any():
            listed = ", ".join(str(value) for value in np.unique(values[strange])[:5])
            raise DataError(f"{location} shows segments {listed}, which {self._json.name} lacks.")
        return classes.astype(np.uint8)[slot]


def annotation_file(root: Path, name: str, option: str, advice: str) -> Path:
    """Find a JSON file of COCO; DataError says what `option` needs, and how to have it."""
    for path in (root / "annotations" / name, root / name):
        if path.is_file():
            return path
    raise DataError(f"{option} needs annotations/{name}, and {root} has none. {advice}")


def _segments(path: Path) -> dict[str, np.ndarray]:
    """Read id and class of each picture's segments, (S, 2) uint32, by its name without the ending.

    All are parts of one array: over a million segments as Python objects would be a gigabyte, and
    every worker would come to own a copy of it.
    """
    pictures = _pictures(path)
    rows = np.concatenate([rows for _, rows in pictures])
    table = np.stack([rows[:, 0], _classes(rows[:, 1], rows[:, 2], path)], axis=1).astype(np.uint32)
    parts = np.split(table, np.cumsum([len(rows) for _, rows in pictures])[:-1])
    return {PurePosixPath(f).stem: part for (f, _), part in zip(pictures, parts, strict=True)}


def _pictures(path: Path) -> list[tuple[str, np.ndarray]]:
    """Read name and segments (S, 3) int64 (id, category, crowd or not) of each label picture."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=_compact)
        pictures = [(name, segments) for name, segments in content["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as COCO panoptic annotations: {type(error).__name__}: {error}. "
            "Unpack it again."
        ) from error
    if not pictures:
        raise DataError(f"{path} has no annotations. Unpack it again.")
    return pictures


def _compact(entry: dict[str, Any]) -> Any:
    """Shorten an object of the JSON as it is parsed: 400 MB of text never become dicts at once."""
    if "category_id" in entry:
        return entry["id"], entry["category_id"], entry.get("iscrowd", 0)
    if "segments_info" in entry:
        return entry["file_name"], np.array(entry["segments_info"], np.int64).reshape(-1, 3)
    return None if "file_name" in entry else entry


def _classes(categories: np.ndarray, is_crowd: np.ndarray, path: Path) -> np.ndarray:
    unknown = sorted(set(np.unique(categories).tolist()) - _CLASS_OF.keys())
    if unknown:
        listed = ", ".join(str(category) for category in unknown)
        raise DataError(f"{path} has categories {listed}, which are none of COCO's 133.")
    table = np.full(max(_CLASS_OF) + 1, VOID, np.uint8)
    table[list(_CLASS_OF)] = list(_CLASS_OF.values())
    return np.where(is_crowd != 0, VOID, table[categories]).astype(np.uint8)
