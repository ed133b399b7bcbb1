"""Examines one image of a set: its two files, its pixels, its label values.

Nothing here raises for a bad file: what is wrong with it becomes part of what was seen.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from eomt_exp.contracts import DataError, LabelledImage
from eomt_exp.data.files.file_set import FileSet


class FileFacts(NamedTuple):
    """Holds what the first bytes of a picture file say; empty where they say nothing."""

    location: str
    format: str = ""  # as PIL calls it: "JPEG", "PNG"
    mode: str = ""  # "L", "P" (palette), "I;16"
    size: tuple[int, int] | None = None  # height, width
    has_gamma: bool = False  # a PNG's gAMA chunk

    @property
    def suffix(self) -> str:
        """Return ".png" and the like, whatever is inside."""
        return PurePosixPath(self.location).suffix.lower()

    @property
    def is_sixteen_bit(self) -> bool:
        """Return whether it has more than 8 bits a pixel."""
        return self.mode.startswith("I")


class ImageFacts(NamedTuple):
    """Holds what was seen of one image."""

    name: str  # its file's name, or what the set calls it
    size: tuple[int, int] | None = None  # height, width
    values: np.ndarray | None = None  # (256,) uint32, pixels of each stored label value
    picture: bytes = b""  # digest of the pixels: equal for equal pictures, whatever the files
    label_map: bytes = b""  # digest of the label values
    image_file: FileFacts | None = None  # None: drawn
    label_file: FileFacts | None = None  # None: drawn, or the truth is not published
    fault: str = ""  # why it cannot be used
    has_other_size: bool = False  # the fault is that label map and image differ in size


def examine_files(images: FileSet, index: int) -> ImageFacts:
    """Read and decode both files once."""
    location, label_location = images.locations(index)
    name = PurePosixPath(location).name
    try:
        data, label_data = images.read_bytes(index)
    except DataError as error:
        return ImageFacts(name, image_file=FileFacts(location), fault=str(error))
    file = _file_facts(data, location)
    label_file = None if label_data is None else _file_facts(label_data, label_location or "")
    try:
        pixels, values = images.stored(index)
    except DataError as error:
        other = label_file is not None and _differ(file.size, label_file.size)
        return ImageFacts(
            name, file.size, None, b"", b"", file, label_file, str(error), has_other_size=other
        )
    return _facts(name, pixels, values)._replace(image_file=file, label_file=label_file)


def examine_drawn(drawn: LabelledImage, values: np.ndarray) -> ImageFacts:
    """Examine an image without files; `values` is its label or its anomaly map."""
    size, label_size = drawn.image.shape[:2], values.shape
    if size != label_size:
        fault = f"{drawn.name}: the image is {size}, its map {label_size}."
        return ImageFacts(drawn.name, size, fault=fault, has_other_size=True)
    return _facts(drawn.name, drawn.image, values)


def _facts(name: str, pixels: np.ndarray, values: np.ndarray | None) -> ImageFacts:
    facts = ImageFacts(name, pixels.shape[:2], picture=_digest(pixels))
    if values is None:
        return facts
    # PIL counts bytes as they are; numpy would first make 8-byte integers of them.
    counts = np.asarray(Image.fromarray(values).histogram(), dtype=np.uint32)
    return facts._replace(values=counts, label_map=_digest(values))


def _digest(array: np.ndarray) -> bytes:
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _file_facts(data: bytes, location: str) -> FileFacts:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            size = picture.size[::-1]
            gamma = picture.format == "PNG" and "gamma" in picture.info
            return FileFacts(location, picture.format or "", picture.mode, size, gamma)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return FileFacts(location)


def _differ(size: tuple[int, int] | None, other: tuple[int, int] | None) -> bool:
    return size is not None and other is not None and size != other
