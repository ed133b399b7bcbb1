"""Score maps on disk between two passes: components want a threshold that only all pixels tell."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

PREFIX = ".scores-"


class ScoreStore:
    """Maps of images by their position, until `limit` bytes are full; later ones are not kept.

    A context manager: the folder it makes under `parent` is gone afterwards.
    """

    def __init__(self, parent: Path, limit: int) -> None:
        self._parent, self._left = parent, limit
        self._kept: set[int] = set()

    def __enter__(self) -> ScoreStore:
        self._parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, position: int, maps: dict[str, np.ndarray]) -> None:
        """Keep (H, W) maps by name, if there is room."""
        size = sum(array.nbytes for array in maps.values())
        if size > self._left:
            self._left = 0  # what comes later would fit by chance only
            return
        self._left -= size
        np.savez(self._folder / f"{position}.npz", **maps)  # type: ignore[arg-type]
        self._kept.add(position)

    def has(self, position: int) -> bool:
        """Whether this image was kept."""
        return position in self._kept

    def get(self, position: int) -> dict[str, np.ndarray]:
        """The maps of an image that was kept."""
        with np.load(self._folder / f"{position}.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
