"""Pictures and label maps from disk: what can be wrong with a file is said here, once."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from eomt_exp.contracts import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

_END_OF_IMAGE, _START_OF_SCAN = b"\xff\xd9", b"\xff\xda"


def existing_folder(root: str | Path | None, option: str, key: str, zips: bool = False) -> Path:
    """The folder as a Path; with `zips`, a zip archive is as good.

    `option` is what the user chose ("data=camvid"), `key` where its folder is set
    ("paths.camvid", or the environment variable EOMT_CAMVID). DataError where there is none.
    """
    variable = "EOMT_" + key.upper()
    mend = f"Type paths.{key}=/path/to/{key} or set {variable}=/path/to/{key}."
    if root is None or not str(root).strip():
        raise DataError(f"{option} needs a folder: got {root!r}. {mend}")
    folder = Path(root).expanduser()
    if folder.is_dir() or (zips and folder.is_file() and folder.suffix.lower() == ".zip"):
        return folder
    kind = "a folder or a zip archive" if zips else "a folder"
    raise DataError(f"{option} needs {kind}: got {folder}, which is not one. {mend}")


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorting key that puts 2.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", name)
    return [(True, int(part), "") if part.isdecimal() else (False, 0, part) for part in parts]


def decode_image(data: bytes, place: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB; DataError naming the place when it cannot be decoded to the end."""
    return np.asarray(_decoded(data, place).convert("RGB"))


def read_cutout(path: Path) -> np.ndarray:
    """(h, w, 4) uint8 RGBA; DataError when the file has no alpha channel of its own."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    picture = _decoded(data, str(path))
    if picture.mode != "RGBA":
        raise DataError(f"{path} is {picture.mode}, not RGBA: a cut-out needs an alpha channel.")
    return np.asarray(picture)


def decode_labels(data: bytes, place: str) -> np.ndarray:
    """(H, W) uint8, the values as stored; of a palette file, the indices and not the colours."""
    picture = _decoded(data, place)
    values = np.asarray(picture)
    if values.ndim != 2:
        raise DataError(
            f"{place} has {values.shape[-1]} channels ({picture.mode}); a label map has one value "
            "a pixel. If this is the coloured picture of the labels, point to the label files."
        )
    if values.dtype not in (np.uint8, np.bool_) and (values.min() < 0 or values.max() > 255):
        raise DataError(
            f"{place} holds label values from {values.min()} to {values.max()}; "
            "0 to 255 can be read."
        )
    return values.astype(np.uint8)


def remap_labels(
    values: np.ndarray, table: Mapping[int, int], place: str, mend: str = ""
) -> np.ndarray:
    """(H, W) uint8 in our values; DataError with every value of the file that `table` lacks.

    `mend` says what to do about it.
    """
    lookup = np.full(256, -1, dtype=np.int16)
    lookup[list(table)] = list(table.values())
    mapped = lookup[values]
    if mapped.min(initial=0) < 0:
        unknown = ", ".join(str(value) for value in np.unique(values[mapped < 0]))
        known = ", ".join(str(value) for value in sorted(table))
        raise DataError(
            f"{place} holds label values {unknown}; "
            f"only {known} have a meaning here. {mend}".strip()
        )
    return mapped.astype(np.uint8)


def _decoded(data: bytes, place: str) -> Image.Image:
    """The picture with all its pixels in memory, so that a broken file fails here and by name."""
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{place} cannot be read: {error}.") from error
    # A download that stopped after its space was reserved ends in zeros, and those decode to
    # grey without an error; a whole JPEG has an end marker after its last scan.
    if picture.format == "JPEG" and data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
        raise DataError(f"{place} cannot be read: the JPEG data stop before the end of the image.")
    return picture
