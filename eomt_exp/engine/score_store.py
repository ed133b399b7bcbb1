"""Keeps score maps on disk between two passes: components need a threshold over all pixels."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

PREFIX = ".scores-"


def remove_left_over(parent: Path) -> None:
    """Remove what a killed command left in its run folder; the lock there keeps others out."""
    for folder in parent.glob(f"{PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)


class ScoreStore:
    """Keeps maps of images by their position until `limit` bytes are full; later ones are not kept.

    It is a context manager; the folder that each process makes under `parent` is gone afterwards.
    """

    def __init__(self, parent: Path, limit: int) -> None:
        self._parent, self._left = parent, limit
        self._kept: set[int] = set()

    def __enter__(self) -> ScoreStore:
        self._parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
        return self

    def __exit__(self, *raised: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, position: int, maps: dict[str, np.ndarray]) -> None:
        """Keep (H, W) maps by name, if they fit."""
        size = sum(array.nbytes for array in maps.values())
        if size > self._left:
            self._left = 0  # what comes later would fit by chance only
            return
        self._left -= size
        path = self._folder / f"{position}.npz"
        try:
            np.savez(path, **maps)  # type: ignore[arg-type]
        except OSError:  # the disk is full: what is not kept is scored again
            path.unlink(missing_ok=True)
            self._left = 0
            return
        self._kept.add(position)

    def has(self, position: int) -> bool:
        """Return whether this image was kept."""
        return position in self._kept

    def get(self, position: int) -> dict[str, np.ndarray]:
        """Return the maps of an image that was kept."""
        with np.load(self._folder / f"{position}.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
