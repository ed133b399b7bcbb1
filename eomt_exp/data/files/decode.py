"""Decodes pictures and label maps; what can be wrong with a file is said here, once."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from eomt_exp.contracts import DataError
from eomt_exp.data.files.label_values import spans

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

_END_OF_IMAGE, _START_OF_SCAN = b"\xff\xd9", b"\xff\xda"


def existing_folder(root: str | Path | None, option: str, advice: str, zips: bool = False) -> Path:
    """Return the folder as a Path; with `zips`, a zip archive is as good.

    `option` is what the user chose ("data=camvid"), `advice` says how its folder is set. DataError
    where there is none.
    """
    if root is None or not str(root).strip():
        raise DataError(f"{option} needs a folder: got {root!r}. {advice}")
    folder = Path(root).expanduser()
    if folder.is_dir() or (zips and folder.is_file() and folder.suffix.lower() == ".zip"):
        return folder
    kind = "a folder or a zip archive" if zips else "a folder"
    raise DataError(f"{option} needs {kind}: got {folder}, which is not one. {advice}")


def path_advice(key: str) -> str:
    """Say how the folder of `key` is set: the last sentence of an error."""
    return (
        f"Type paths.{key}=/path/to/{key} or set EOMT_{key.upper()}=/path/to/{key}; where a file "
        "of your own says root, correct it there."
    )


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Return a sorting key that puts 2.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", name)
    return [(True, int(part), "") if part.isdecimal() else (False, 0, part) for part in parts]


def decode_image(data: bytes, location: str) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB; DataError names the location of what is not whole."""
    return np.asarray(_decoded(data, location).convert("RGB"))


def decode_labels(data: bytes, location: str) -> np.ndarray:
    """Return (H, W) uint8, the values as stored; of a palette file the indices, not the colours."""
    picture = _decoded(data, location)
    values = np.asarray(picture)
    if values.ndim != 2:
        raise DataError(
            f"{location} has {values.shape[-1]} channels ({picture.mode}); a label map has one "
            "value a pixel. If this is the labels' coloured picture, point to the label files."
        )
    if values.dtype not in (np.uint8, np.bool_) and (values.min() < 0 or values.max() > 255):
        raise DataError(
            f"{location} holds label values from {values.min()} to {values.max()}; "
            "0 to 255 can be read."
        )
    return values.astype(np.uint8)


def remap_labels(
    values: np.ndarray, table: Mapping[int, int], location: str, advice: str = ""
) -> np.ndarray:
    """Return (H, W) uint8 in our values; DataError lists each value that `table` lacks.

    `advice` says what to do about it.
    """
    lookup = np.full(256, -1, dtype=np.int16)
    lookup[list(table)] = list(table.values())
    mapped = lookup[values]
    if mapped.min(initial=0) < 0:
        unknown = ", ".join(str(value) for value in np.unique(values[mapped < 0]))
        raise DataError(
            f"{location} holds label values {unknown}; "
            f"only {spans(table)} have a meaning here. {advice}".strip()
        )
    return mapped.astype(np.uint8)


def _decoded(data: bytes, location: str) -> Image.Image:
    """Load all pixels of the picture, so that a broken file fails here and by name."""
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{location} cannot be read: {error}.") from error
    # A download that stopped after its space was reserved ends in zeros, and those decode to
    # grey without an error; a whole JPEG has an end marker after its last scan.
    if picture.format == "JPEG" and data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
        raise DataError(
            f"{location} cannot be read: the JPEG data stop before the end of the image."
        )
    return picture
