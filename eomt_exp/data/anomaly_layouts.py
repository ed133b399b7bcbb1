"""A layout a benchmark comes in: which image goes with which label map, seen from their names."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from eomt_exp.contracts import DataError
from eomt_exp.data.files.pairs import Pair, lone_labels
from eomt_exp.data.files.patterns import FilePattern
from eomt_exp.data.files.tree import FileTree

_log = logging.getLogger(__name__)


class Place:
    """Where to look: a folder or an archive."""

    def __init__(self, tree: FileTree, name: str = "") -> None:
        """`name`: "" for what the user pointed at; an archive inside it counts as a folder."""
        self.tree, self.name = tree, name

    @cached_property
    def files(self) -> list[str]:
        """All images and label maps, listed once: several patterns are held against them."""
        return self.tree.files()


class Found(NamedTuple):
    """The images of a benchmark and where they and their label maps are."""

    images: FileTree
    labels: FileTree
    pairs: list[Pair]
    lack: str = ""  # why there are none although images fit, for messages


class _Files(NamedTuple):
    """What fits a pattern, in one folder of one tree."""

    tree: FileTree
    base: str
    by_key: dict[str, list[str]]


class Layout:
    """Where images and label maps lie, as two FilePatterns; {split} and {labels} are options."""

    def __init__(
        self,
        images: str,
        labels: str,
        every: Literal["images", "labels"] = "images",
        only: Mapping[str, str] | None = None,
        take: Mapping[str, Sequence[str]] | None = None,
        leave: Mapping[str, Sequence[str]] | None = None,
        published: Sequence[str] = ("",),
    ) -> None:
        """`every`: images, and each of the two must have its partner, or labels, and there may be
        images without.

        `only`: the options this layout has (split: validation). `take` and `leave`: split -> how
        the names of its images begin, or must not. `published`: how the names begin whose truth
        is; other images may lack label maps.
        """
        if every not in ("images", "labels"):
            raise ValueError(f"every must be images or labels, got {every!r}.")
        self.images, self.labels, self.every = images, labels, every
        self._only, self._take, self._leave = dict(only or {}), dict(take or {}), dict(leave or {})
        self._published = tuple(published)
        for text in (images, labels):
            FilePattern(text)

    def describe(self, options: Mapping[str, str]) -> str:
        """For messages: the two patterns, and the options it is bound to."""
        bound = "".join(f" (only {key}={value})" for key, value in self._only.items())
        return filled(f"{self.images} with {self.labels}{bound}", options)

    def find(
        self,
        images_in: Sequence[Place],
        labels_in: Sequence[Place],
        folders: Sequence[str],
        options: Mapping[str, str],
    ) -> Found | None:
        """The pairs, from the first of `folders` ("": the place itself) that has them.

        None where no image fits, no pairs where images do and more does not. DataError where two
        label maps fit one image.
        """
        if not self._has(options):
            return None
        images = _files(filled(self.images, options), images_in, folders)
        if images is None:
            return None
        labels = _files(filled(self.labels, options), labels_in, folders, near=images)
        found = Found(images.tree, (labels or images).tree, [])
        if labels is None or not self._meet(images, labels):
            return found._replace(lack=self._without_labels(images, options))
        pairs = self._pairs(images, labels, options)
        folder = images.tree.place(images.base.rstrip("/"))
        none = "" if pairs else f"{folder} has this layout, but no image of the split asked for."
        return found._replace(pairs=pairs, lack=none)

    def _has(self, options: Mapping[str, str]) -> bool:
        if any(options.get(key) != value for key, value in self._only.items()):
            return False
        # Labels other than the usual ones must be asked for in the pattern, or they are not there.
        return options.get("labels", "labels") == "labels" or "{labels}" in self.labels

    def _meet(self, images: _Files, labels: _Files) -> bool:
        """Whether an image has a label map, of whatever split: else it is another benchmark."""
        return any(key in labels.by_key and self._is_published(key) for key in images.by_key)

    def _without_labels(self, images: _Files, options: Mapping[str, str]) -> str:
        first = next(iter(images.by_key.values()))[0]
        begin = " or ".join(filter(None, self._published))
        which = f" whose name begins with {begin}" if begin else ""
        return (
            f"{len(images.by_key)} images such as {images.tree.place(first)} are there, but of none"
            f"{which} the label map {filled(self.labels, options)}."
        )

    def _pairs(self, images: _Files, labels: _Files, options: Mapping[str, str]) -> list[Pair]:
        truths = labels.by_key
        names = list(truths)
        if self.every == "images":
            names = [*images.by_key, *lone_labels(truths, images.by_key)]
        keys = [key for key in names if self._is_of(key, options.get("split", ""))]
        pictures = _without_copies(images)
        image, label = (FilePattern(filled(t, options)) for t in (self.images, self.labels))
        pairs = []
        for key in keys:
            truth = _only_one(labels.tree, key, truths.get(key, []))
            if truth is None and self._is_published(key):
                truth = labels.base + label.file(key)
            files = pictures.get(key, [images.base + image.file(key)])
            pairs += [Pair(file, truth, key) for file in files]
        return pairs

    def _is_of(self, key: str, split: str) -> bool:
        name = PurePosixPath(key).name
        taken = name.startswith(tuple(self._take.get(split, ("",))))
        return taken and not name.startswith(tuple(self._leave.get(split, ())))

    def _is_published(self, key: str) -> bool:
        return PurePosixPath(key).name.startswith(self._published)


def filled(text: str, options: Mapping[str, str]) -> str:
    """The text with {split} and the like replaced by what was chosen."""
    for key, value in options.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def _files(
    text: str, places: Iterable[Place], folders: Sequence[str], near: _Files | None = None
) -> _Files | None:
    """What fits the pattern in the best folder: the one of `near`, else the first of `folders`."""
    pattern, best, best_rank = FilePattern(text), None, (True, len(folders))
    for place in places:
        found: dict[str, dict[str, list[str]]] = {}
        for file in place.files:
            if (match := pattern.match(file)) is not None:
                found.setdefault(match.base, {}).setdefault(match.key, []).append(file)
        for base, by_key in found.items():
            name = (PurePosixPath(base).name or place.name).lower()
            is_far = near is None or (place.tree.root, base) != (near.tree.root, near.base)
            rank = (is_far, folders.index(name) if name in folders else len(folders))
            if name in folders and rank < best_rank:
                best, best_rank = _Files(place.tree, base, by_key), rank
    return best


def _without_copies(images: _Files) -> dict[str, list[str]]:
    """One file a key: where somebody converted a few images, those of the others' kind.

    Two stay where neither kind is the usual one; that is an error further on.
    """
    kinds = Counter(_kind(file) for files in images.by_key.values() for file in files)
    chosen, left = {}, []
    for key, files in images.by_key.items():
        most = max(kinds[_kind(file)] for file in files)
        chosen[key] = [file for file in files if kinds[_kind(file)] == most]
        left += [file for file in files if file not in chosen[key]]
    if left:
        _log.warning(
            "%d images are there twice, in two formats; left out are %s and such.",
            len(left), images.tree.place(left[0]),
        )  # fmt: skip
    return chosen


def _kind(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _only_one(tree: FileTree, key: str, labels: list[str]) -> str | None:
    if len(labels) > 1:
        first, second = (tree.place(file) for file in labels[:2])
        raise DataError(f"Both {first} and {second} are label maps of {key}; keep one of the two.")
    return labels[0] if labels else None
