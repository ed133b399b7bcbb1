"""Score maps on disk between two passes: components want a threshold that only all pixels tell."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

PREFIX = ".scores-"


def remove_left_over(parent: Path) -> None:
    """Remove the folders of processes of this machine that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).rpartition("-")[0]
        pid = owner.rpartition("-")[2]
        if pid.isdecimal() and owner == _owner(int(pid)) and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _owner(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class ScoreStore:
    """Maps of images by their position, until `limit` bytes are full; later ones are not kept.

    A context manager: the folder it makes under `parent` is gone afterwards.
    """

    def __init__(self, parent: Path, limit: int) -> None:
        self._parent, self._left = parent, limit
        self._kept: set[int] = set()

    def __enter__(self) -> ScoreStore:
        self._parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(
            tempfile.mkdtemp(prefix=f"{PREFIX}{_owner(os.getpid())}-", dir=self._parent)
        )
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
        path = self._folder / f"{position}.npz"
        try:
            np.savez(path, **maps)  # type: ignore[arg-type]
        except OSError:  # the disk is full: what is not kept is scored again
            path.unlink(missing_ok=True)
            self._left = 0
            return
        self._kept.add(position)

    def has(self, position: int) -> bool:
        """Whether this image was kept."""
        return position in self._kept

    def get(self, position: int) -> dict[str, np.ndarray]:
        """The maps of an image that was kept."""
        with np.load(self._folder / f"{position}.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
