"""Objects to paste, cut out beforehand: RGBA PNG files whose alpha channel is the object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from eomt_exp.contracts import DataError
from eomt_exp.data.files.decode import existing_folder, natural_key, read_cutout


class OutlierFolder:
    """Cut-outs of a folder (or of its `rgba/`), cropped to their alpha and kept once read.

    That every file is RGBA is checked at the start from the headers alone: an hour into the
    training would be a poor moment to learn it.
    """

    reads_files = True  # so that they can be checked before they are needed

    def __init__(self, root: str | Path | None) -> None:
        folder = existing_folder(root, option="data.outliers", key="outlier_objects")
        folder = folder / "rgba" if (folder / "rgba").is_dir() else folder
        self._files = sorted(folder.glob("*.png"), key=lambda file: natural_key(file.name))
        if not self._files:
            raise DataError(
                f"No PNG files in {folder}; outlier objects are RGBA cut-outs named *.png. "
                "Type paths.outlier_objects=/path/to/outlier_objects."
            )
        for file in self._files:
            _check_mode(file)
        self._cutouts: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        """(h, w, 4) uint8 RGBA, no empty rows or columns around the object."""
        if index not in self._cutouts:
            self._cutouts[index] = _cropped(self._files[index])
        return self._cutouts[index]


def _check_mode(file: Path) -> None:
    try:
        with Image.open(file) as picture:
            mode = picture.mode
    except (OSError, SyntaxError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    if mode != "RGBA":
        raise DataError(f"{file} is {mode}, not RGBA: a cut-out needs an alpha channel.")


def _cropped(file: Path) -> np.ndarray:
    rgba = read_cutout(file)
    rows, columns = rgba[..., 3].any(axis=1).nonzero()[0], rgba[..., 3].any(axis=0).nonzero()[0]
    if rows.size == 0:
        raise DataError(f"{file} is transparent everywhere; there is no object to paste.")
    cropped = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    cropped.setflags(write=False)  # handed out many times
    return cropped
