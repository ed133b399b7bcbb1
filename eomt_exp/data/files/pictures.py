"""Finds the pictures that a user points at: files, folders, archives or patterns."""

from __future__ import annotations

from collections.abc import Iterable
from glob import glob
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from eomt_exp.contracts import DataError
from eomt_exp.data.files.decode import IMAGE_SUFFIXES, decode_image, natural_key
from eomt_exp.data.files.tree import FileTree


class PictureFile(NamedTuple):
    """Is a picture of a folder or archive, not read yet."""

    name: str  # of the folder's or archive's files, with / between folders; no two have one
    tree: FileTree
    path: str  # in the tree

    @property
    def location(self) -> str:
        """Say where it lies."""
        return self.tree.location(self.path)

    def decoded(self) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB; DataError names what cannot be read."""
        return decode_image(self.tree.read(self.path), self.location)


def find_pictures(where: Iterable[str]) -> list[PictureFile]:
    """Find the pictures of paths: files, folders with all below them, zip archives, glob patterns.

    They are named by their paths below what was given, without endings where these tell nothing
    apart; DataError where something does not exist, or no picture is there.
    """
    found: dict[str, PictureFile] = {}
    for text in where:
        for picture in _in_one(Path(text).expanduser()):
            found.setdefault(picture.location, picture)
    if not found:
        raise DataError(f"there is no picture in {', '.join(where) or 'an empty list'}.")
    return _named([*found.values()])


def _in_one(path: Path) -> list[PictureFile]:
    if path.is_dir() or path.suffix.lower() == ".zip":
        if not path.exists():
            raise DataError(f"{path} does not exist.")
        tree = FileTree(path)
        return [PictureFile(name, tree, name) for name in tree.pictures]
    if path.is_file():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(
                f"{path} is no picture by its name; allowed are "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}, folders, .zip archives, patterns such as "
                "'*.jpg', and one video."
            )
        return [PictureFile(path.name, FileTree(path.parent), path.name)]
    matches = sorted(glob(str(path), recursive=True), key=natural_key)
    if not matches:
        raise DataError(f"{path} does not exist, nor does anything match it as a pattern.")
    return [picture for match in matches for picture in _in_one(Path(match))]


def _named(pictures: list[PictureFile]) -> list[PictureFile]:
    """Make names files can have in one folder: without endings, or numbered where two are alike."""
    taken: dict[str, int] = {}
    named = []
    for picture in pictures:
        stem = str(PurePosixPath(picture.name).with_suffix(""))
        taken[stem] = number = taken.get(stem, 0) + 1
        named.append(picture._replace(name=stem if number == 1 else f"{stem}~{number}"))
    return named
