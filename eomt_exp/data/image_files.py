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


def existing_folder(root: str | Path | None, option: str, key: str) -> Path:
    """The folder as a Path.

    `option` is what the user chose ("data=camvid"), `key` where its folder is set
    ("paths.camvid", or the environment variable EOMT_CAMVID). DataError where there is none.
    """
    variable = "EOMT_" + key.upper()
    mend = f"Type paths.{key}=/path/to/{key} or set {variable}=/path/to/{key}."
    if root is None or not str(root).strip():
        raise DataError(f"{option} needs a folder: got {root!r}. {mend}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{option} needs a folder: got {folder}, which is not one. {mend}")
    return folder


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorting key that puts 2.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", name)
    return [(True, int(part), "") if part.isdecimal() else (False, 0, part) for part in parts]


def list_images(folder: Path) -> list[Path]:
    """Images directly in the folder, numbers in names counted as numbers.

    DataError when the folder is missing or empty, or when two images share a stem, since both
    would be measured against the same label.
    """
    if not folder.is_dir():
        raise DataError(f"No folder {folder}; the images are expected there.")
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        allowed = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"No images in {folder}; files ending in {allowed} are looked for.")
    by_stem: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: natural_key(file.name)):
        if file.stem in by_stem:
            twin = by_stem[file.stem].name
            raise DataError(f"{folder} holds both {twin} and {file.name}; keep one of the two.")
        by_stem[file.stem] = file
    return list(by_stem.values())


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB; DataError naming the file when it cannot be decoded to the end."""
    return np.asarray(_decoded(path).convert("RGB"))


def read_cutout(path: Path) -> np.ndarray:
    """(h, w, 4) uint8 RGBA; DataError when the file has no alpha channel of its own."""
    picture = _decoded(path)
    if picture.mode != "RGBA":
        raise DataError(f"{path} is {picture.mode}, not RGBA: a cut-out needs an alpha channel.")
    return np.asarray(picture)


def read_labels(path: Path) -> np.ndarray:
    """(H, W) uint8, the values as stored; of a palette file, the indices and not the colours."""
    picture = _decoded(path)
    values = np.asarray(picture)
    if values.ndim != 2:
        raise DataError(
            f"{path} has {values.shape[-1]} channels ({picture.mode}); a label map has one value "
            "a pixel. If this is the coloured picture of the labels, point to the label files."
        )
    if values.dtype not in (np.uint8, np.bool_) and (values.min() < 0 or values.max() > 255):
        raise DataError(
            f"{path} holds label values from {values.min()} to {values.max()}; "
            "0 to 255 can be read."
        )
    return values.astype(np.uint8)


def remap_labels(
    values: np.ndarray, table: Mapping[int, int], path: Path, mend: str = ""
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
            f"{path} holds label values {unknown}; only {known} have a meaning here. {mend}".strip()
        )
    return mapped.astype(np.uint8)


def _decoded(path: Path) -> Image.Image:
    """The picture with all its pixels in memory, so that a broken file fails here and by name."""
    try:
        data = path.read_bytes()
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    # A download that stopped after its space was reserved ends in zeros, and those decode to
    # grey without an error; a whole JPEG has an end marker after its last scan.
    if picture.format == "JPEG" and data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
        raise DataError(f"{path} cannot be read: the JPEG data stop before the end of the image.")
    return picture
