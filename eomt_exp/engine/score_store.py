"""Keeps score maps between two passes: components need a threshold over all pixels."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PREFIX = ".scores-"
MEMORY = 1 << 30  # bytes that stay in memory; what comes later goes to disk


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
        self._memory, self._held = MEMORY, dict[int, tuple[Sequence[np.ndarray], np.ndarray]]()
        self._shapes: dict[int, tuple[int, int, int]] = {}  # (maps, H, W) by position

    def __enter__(self) -> ScoreStore:
        self._parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
        return self

    def __exit__(self, *raised: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, position: int, maps: Sequence[np.ndarray], anomaly: np.ndarray) -> None:
        """Keep an image's maps, (H, W) float32 each, and its truth (H, W) uint8, if they fit."""
        arrays = [*maps, anomaly]
        size = sum(array.nbytes for array in arrays)
        if size > self._left:
            self._left = 0  # what comes later would fit by chance only
            return
        self._left -= size
        if size <= self._memory:
            self._memory -= size
            self._held[position] = maps, anomaly
            return
        path = self._folder / str(position)
        try:
            with path.open("wb") as file:
                for array in arrays:
                    file.write(np.ascontiguousarray(array).data)
        except OSError:  # the disk is full: what is not kept is scored again
            path.unlink(missing_ok=True)
            self._left = 0
            return
        self._shapes[position] = (len(maps), *anomaly.shape)

    def has(self, position: int) -> bool:
        """Return whether this image was kept."""
        return position in self._held or position in self._shapes

    def get(self, position: int) -> tuple[Sequence[np.ndarray], np.ndarray]:
        """Return the maps, (H, W) float32 each, and the truth (H, W) of an image that was kept."""
        if position in self._held:
            return self._held[position]
        shape = self._shapes[position]
        content = np.asarray(np.memmap(self._folder / str(position), np.uint8, "r"))
        end = 4 * math.prod(shape)
        return [*content[:end].view(np.float32).reshape(shape)], content[end:].reshape(shape[1:])
