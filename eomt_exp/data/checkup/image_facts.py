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
from eomt_exp.data.files.decode import orientation, raw_mode
from eomt_exp.data.files.file_set import FileSet


class FileFacts(NamedTuple):
    """Holds what the first bytes of a picture file say; empty where they say nothing."""

    location: str = ""  # "" where there is no file: it is drawn, or the truth is not published
    format: str = ""  # as PIL calls it: "JPEG", "PNG"
    mode: str = ""  # as PIL calls how it is stored: "L", "L;4" (4 bits), "P" (palette), "I;16B"
    has_gamma: bool = False  # a PNG's gAMA chunk
    orientation: int = 1  # that of EXIF; 1 is upright

    @property
    def suffix(self) -> str:
        """Return ".png" and the like, whatever is inside."""
        return PurePosixPath(self.location).suffix.lower()


class ImageFacts(NamedTuple):
    """Holds what was seen of one image."""

    name: str  # its file's name, or what the set calls it
    size: tuple[int, int] | None = None  # height, width
    values: np.ndarray = np.zeros(256, np.uint32)  # (256,) pixels of each stored label value
    picture: bytes = b""  # digest of the pixels: equal for equal pictures, whatever the files
    label_map: bytes = b""  # digest of the label values
    image_file: FileFacts = FileFacts()
    label_file: FileFacts = FileFacts()
    fault: str = ""  # why it cannot be used

    @property
    def is_measured(self) -> bool:
        """Return whether it has a label map that can be read."""
        return bool(self.label_map)


def examine_files(images: FileSet, index: int) -> ImageFacts:
    """Look at the headers of both files, and decode them once."""
    location, label_location = images.locations(index)
    seen = ImageFacts(PurePosixPath(location).name, image_file=FileFacts(location))
    try:
        data, label_data = images.read_bytes(index)
        file, label_file = _file_facts(data, location), _file_facts(label_data, label_location)
        seen = seen._replace(image_file=file, label_file=label_file)
        return _measured(seen, *images.stored(index))
    except DataError as error:
        return seen._replace(fault=str(error))


def examine_drawn(drawn: LabelledImage, values: np.ndarray) -> ImageFacts:
    """Examine an image without files; `values` is its label or its anomaly map."""
    size = drawn.image.shape[:2]
    if size != values.shape:
        fault = f"{drawn.name}: the image is {size}, its map {values.shape}."
        return ImageFacts(drawn.name, size, fault=fault)
    return _measured(ImageFacts(drawn.name), drawn.image, values)


def _measured(seen: ImageFacts, pixels: np.ndarray, values: np.ndarray | None) -> ImageFacts:
    seen = seen._replace(size=pixels.shape[:2], picture=_digest(pixels))
    if values is None:
        return seen
    # PIL counts bytes as they are; numpy would first make 8-byte integers of them.
    counts = np.asarray(Image.fromarray(values).histogram(), dtype=np.uint32)
    return seen._replace(values=counts, label_map=_digest(values))


def _digest(array: np.ndarray) -> bytes:
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _file_facts(data: bytes | None, location: str | None) -> FileFacts:
    if data is None or location is None:
        return FileFacts()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            gamma = picture.format == "PNG" and "gamma" in picture.info
            kind, mode = picture.format or "", raw_mode(picture)
            return FileFacts(location, kind, mode, gamma, orientation(picture))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return FileFacts(location)
