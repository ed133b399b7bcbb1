"""Decodes pictures and label maps; what can be wrong with a file is said here, once."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from eomt_exp.contracts import DataError
from eomt_exp.data.files.label_values import spans

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

_PICTURES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB")
_SIXTEEN_BITS, _DEEP = re.compile("I;16[BLN]?"), re.compile("(?<!BGR);16")  # raw modes
_PACKED = re.compile("L;([24])")  # 2 or 4 bits a value
_LOSSY = {"JPEG", "MPO", "jpeg", "tiff_jpeg"}  # formats of files and of TIFF's content
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
    """Return (H, W, 3) uint8 RGB, turned as EXIF says; DataError names what cannot be read.

    Alpha is dropped, and of 16 bits the upper 8 are taken.
    """
    picture, raw = decoded(data, location)
    if _SIXTEEN_BITS.fullmatch(raw):  # Pillow would cut them at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode not in _PICTURES:
        raise DataError(
            f"{location} is a picture of mode {raw or picture.mode}, and no file says how bright "
            f"its values are; allowed are {', '.join(_PICTURES)} and I;16. Save it as 8-bit RGB."
        )
    pixels = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    if _DEEP.search(raw) and pixels.max() < 16:
        raise DataError(
            f"{location} has 16 bits a value, all below a sixteenth of what that allows: they must "
            "be values of 8 to 12 bits, and the file does not say which. Save it as 8-bit RGB."
        )
    return pixels


def decode_labels(data: bytes, location: str) -> np.ndarray:
    """Return (H, W) uint8, the values as stored, turned as EXIF says.

    Of a palette file these are the indices, not the colours. DataError names what cannot be read.
    """
    picture, raw = decoded(data, location)
    if lossy := _LOSSY & {picture.format, picture.info.get("compression")}:
        raise DataError(
            f"{location} holds {lossy.pop()} data, which blur values into those beside them: these "
            "are not what was labelled. Take the label map, a PNG mostly, from the set's archive."
        )
    values = np.asarray(picture)
    if values.ndim != 2:
        raise DataError(
            f"{location} has {values.shape[-1]} channels ({picture.mode}); a label map has one "
            "value a pixel, as a PNG of mode L or P has. If this is the labels' coloured picture, "
            "point to the label files."
        )
    if packed := _PACKED.match(raw):  # Pillow has scaled them to 255, as is right for pictures
        values = values // (255 // (2 ** int(packed[1]) - 1))
    with np.errstate(invalid="ignore"):  # NaN
        labels = values.astype(np.uint8)
    if values.dtype not in (np.uint8, np.bool_) and (labels != values).any():
        raise DataError(
            f"{location} holds label values from {values.min()} to {values.max()}; "
            "whole numbers from 0 to 255 can be read."
        )
    return labels


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


def raw_mode(picture: Image.Image) -> str:
    """Say how the pixels of a file that is not loaded yet are stored: "L;4" are 4 bits of grey.

    "" where its format has but one way.
    """
    tiles = getattr(picture, "tile", ())
    options = tiles[0][3] if tiles else ""
    return options if isinstance(options, str) else str(options[0])


def orientation(picture: Image.Image) -> int:
    """Return the orientation of EXIF, 1 to 8; 1 is upright, as is what cannot be read."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1  # Pillow would decode the picture to look behind its pixels
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of damaged EXIF, anything; viewers show such a picture as it is
        return 1


def decoded(data: bytes, location: str) -> tuple[Image.Image, str]:
    """Load all pixels, so that a broken file fails here and by name, and turn them upright.

    Returns the picture and its raw mode.
    """
    try:
        picture = Image.open(io.BytesIO(data))
        raw = raw_mode(picture)
        picture.load()
        if orientation(picture) != 1:  # of a TIFF file Pillow has done so itself
            ImageOps.exif_transpose(picture, in_place=True)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "Pillow knows no such kind of picture" if unknown else error
        raise DataError(f"{location} cannot be read: {reason}.") from error
    # A download that stopped after its space was reserved ends in zeros, and those decode to
    # grey without an error; a whole JPEG has an end marker after its last scan.
    if picture.format == "JPEG" and data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
        raise DataError(
            f"{location} cannot be read: the JPEG data stop before the end of the image."
        )
    return picture, raw
