"""Pairs images and label maps by their names, in the layout that a data set comes in."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from eomt_exp.contracts import DataError
from eomt_exp.data.files.patterns import FilePattern
from eomt_exp.data.files.tree import FileTree


class Pair(NamedTuple):
    """Names the two files of one image of a set."""

    image: str  # its file in the tree of images, which may be missing
    labels: str | None  # its file in the tree of labels; None: its truth is not published
    name: str  # unique in the set; tables, figures and exports call it so


class Found(NamedTuple):
    """Holds the images of a data set and where they and their label maps are."""

    images: FileTree
    labels: FileTree
    pairs: list[Pair]


class _Matches(NamedTuple):
    """Holds what fits a pattern, in one folder of one tree."""

    tree: FileTree
    base: str
    by_key: dict[str, list[str]]


class Layout:
    """Says where images and label maps lie, by two FilePatterns; {split}, {labels} are options."""

    def __init__(
        self,
        images: str,
        labels: str | None,
        every: Literal["images", "labels"] = "images",
        only: Mapping[str, str] | None = None,
        take: Mapping[str, Sequence[str]] | None = None,
        leave: Mapping[str, Sequence[str]] | None = None,
        published: Sequence[str] = ("",),
    ) -> None:
        """`labels` None: none are published. `every` is images where none may lack its label map,
        or labels where images may.

        No label map may lack its image. `only`: the options this layout has (split: validation).
        `take` and `leave`: split -> how the names of its images begin, or must not. `published`:
        how the names begin whose truth is; other images may lack label maps.
        """
        self.images, self.labels, self.every = images, labels, every
        self._only, self._take, self._leave = dict(only or {}), dict(take or {}), dict(leave or {})
        self._published = () if labels is None else tuple(published)
        for text in filter(None, (images, labels)):
            FilePattern(text)

    def describe(self, options: Mapping[str, str]) -> str:
        """Write the two patterns, and the options it is bound to, for messages."""
        bound = "".join(f" (only {key}={value})" for key, value in self._only.items())
        labels = f" with {self.labels}" if self.labels else ""
        return filled(f"{self.images}{labels}{bound}", options)

    def find(
        self,
        images_in: Sequence[FileTree],
        labels_in: Sequence[FileTree],
        folders: Sequence[str],
        options: Mapping[str, str],
        faults: list[str],
    ) -> Found | None:
        """Return the pairs, from the first of `folders` ("": the tree itself) that has them.

        None where there are none; if images fit, what they lack is added to `faults`. DataError
        where two label maps fit one image.
        """
        if not self._accepts(options):
            return None
        images = _matches(filled(self.images, options), images_in, folders)
        if images is None:
            return None
        if self.labels is None:
            labels: _Matches | None = images._replace(by_key={})
        else:
            labels = _matches(filled(self.labels, options), labels_in, folders, near=images)
        if labels is None or (self.labels and not self._have_a_pair(images, labels)):
            faults.append(self._without_labels(images, options))
            return None
        if pairs := self._pairs(images, labels, options):
            return Found(images.tree, labels.tree, pairs)
        folder = images.tree.location(images.base.rstrip("/"))
        faults.append(f"{folder} has this layout, but no image of the split asked for.")
        return None

    def _accepts(self, options: Mapping[str, str]) -> bool:
        if any(options.get(key) != value for key, value in self._only.items()):
            return False
        # Labels other than the usual ones must be asked for in the pattern, or they are not there.
        return options.get("labels", "labels") == "labels" or "{labels}" in (self.labels or "")

    def _have_a_pair(self, images: _Matches, labels: _Matches) -> bool:
        """Return whether an image of any split has a label map: else it is another data set."""
        return any(key in labels.by_key and self._is_published(key) for key in images.by_key)

    def _without_labels(self, images: _Matches, options: Mapping[str, str]) -> str:
        first = next(iter(images.by_key.values()))[0]
        begin = " or ".join(filter(None, self._published))
        which = f" whose name begins with {begin}" if begin else ""
        return (
            f"{len(images.by_key)} images such as {images.tree.location(first)} are there, but of "
            f"none{which} the label map {filled(self.labels or '', options)}."
        )

    def _pairs(self, images: _Matches, labels: _Matches, options: Mapping[str, str]) -> list[Pair]:
        truths = labels.by_key
        names = list(truths)
        if self.every == "images":
            names = [*images.by_key, *_lone_labels(truths, images.by_key)]
        keys = [key for key in names if self._is_in_split(key, options.get("split", ""))]
        image = FilePattern(filled(self.images, options))
        pairs = []
        for key in keys:
            is_published = self._is_published(key)
            # Of others there may be label maps, but dummies: all zero, which would count as normal.
            truth = _only_one(labels.tree, key, truths.get(key, []) if is_published else [])
            if truth is None and self.labels and is_published:
                truth = labels.base + FilePattern(filled(self.labels, options)).file(key)
            files = images.by_key.get(key, [images.base + image.file(key)])
            pairs += [Pair(file, truth, key) for file in files]
        return pairs

    def _is_in_split(self, key: str, split: str) -> bool:
        name = PurePosixPath(key).name
        taken = name.startswith(tuple(self._take.get(split, ("",))))
        return taken and not name.startswith(tuple(self._leave.get(split, ())))

    def _is_published(self, key: str) -> bool:
        return PurePosixPath(key).name.startswith(self._published)


def filled(text: str, options: Mapping[str, str]) -> str:
    """Replace {split} and the like in a text by what was chosen."""
    for key, value in options.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def _matches(
    text: str, trees: Iterable[FileTree], folders: Sequence[str], near: _Matches | None = None
) -> _Matches | None:
    """Find what fits the pattern in the folder of `near`, else in the first of `folders`."""
    pattern, best, best_rank = FilePattern(text), None, (True, len(folders))
    for tree in trees:
        found: dict[str, dict[str, list[str]]] = {}
        for file in tree.pictures:
            if (match := pattern.match(file)) is not None:
                base, key = match
                found.setdefault(base, {}).setdefault(key, []).append(file)
        for base, by_key in found.items():
            name = (PurePosixPath(base).name or tree.name).lower()
            is_far = near is None or (tree.root, base) != (near.tree.root, near.base)
            rank = (is_far, folders.index(name) if name in folders else len(folders))
            if name in folders and rank < best_rank:
                best, best_rank = _Matches(tree, base, by_key), rank
    return best


def _lone_labels(labels: Collection[str], images: Collection[str]) -> list[str]:
    """Return the names of label maps without an image.

    1_color beside 1 is no label map: it shows that of 1 in colours.
    """
    known = {*labels, *images}

    def is_coloured_copy(name: str) -> bool:
        endings = [match.start() for match in re.finditer(r"[_.-](?=[^0-9]+$)", name)]
        return any(name[:start] in known for start in endings)

    return [name for name in labels if name not in images and not is_coloured_copy(name)]


def _only_one(tree: FileTree, key: str, labels: list[str]) -> str | None:
    if len(labels) > 1:
        first, second = (tree.location(file) for file in labels[:2])
        raise DataError(f"Both {first} and {second} are label maps of {key}; keep one of the two.")
    return labels[0] if labels else None
