"""Reads objects to paste, cut out beforehand: RGBA PNG files whose alpha channel is the object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from eomt_exp.contracts import DataError, OutlierPool
from eomt_exp.data.cutouts import extent
from eomt_exp.data.files.decode import decoded, existing_folder, natural_key, path_advice
from eomt_exp.data.files.tree import FileTree


class OutlierFolder(OutlierPool):
    """Reads cut-outs of a folder (or of its `rgba/`), cropped to their alpha and kept once read.

    That every file is RGBA is checked at the start from the headers alone: an hour into the
    training would be a poor moment to learn it.
    """

    reads_files = True

    def __init__(self, root: str | Path | None) -> None:
        advice = path_advice("outlier_objects")
        folder = existing_folder(root, "data.outliers", advice)
        folder = folder / "rgba" if (folder / "rgba").is_dir() else folder
        self._files = sorted(folder.glob("*.png"), key=lambda file: natural_key(file.name))
        if not self._files:
            raise DataError(
                f"No PNG files in {folder}; outlier objects are RGBA cut-outs named *.png. {advice}"
            )
        for file in self._files:
            _check_mode(file)
        self._cutouts: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """Name the file."""
        return self._files[index].name

    def __getitem__(self, index: int) -> np.ndarray:
        """Return (h, w, 4) uint8 RGBA, no empty rows or columns around the object."""
        if index not in self._cutouts:
            self._cutouts[index] = _cropped(self._files[index])
        return self._cutouts[index]


def _check_mode(file: Path) -> None:
    """Read the header; DataError unless it is RGBA."""
    try:
        with Image.open(file) as picture:
            mode = picture.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    if mode != "RGBA":
        raise DataError(f"{file} is {mode}, not RGBA: a cut-out needs an alpha channel.")


def _cropped(file: Path) -> np.ndarray:
    rgba = np.asarray(decoded(FileTree(file.parent).read(file.name), str(file))[0])
    most = rgba[..., 3].max()
    if most < 128:  # what is less than half opaque is no object to cutouts.scaled
        raise DataError(
            f"{file} has no object to paste: its alpha is {most} at most, and pixels from 128 on "
            "are the object. Save it with alpha 255 on the object and 0 beside it."
        )
    cropped = rgba[extent(rgba[..., 3] > 0)].copy()
    cropped.setflags(write=False)  # handed out many times
    return cropped
