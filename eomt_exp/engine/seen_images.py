"""Records by content which images a model has seen, so that none of them can be its test.

An image is named by a hash of its decoded pixels: renaming it, or saving a JPEG as PNG, does not
make it another one. Resizing or compressing it anew does, and that is not noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eomt_exp.contracts import ANOMALY, ImageSet, LabelledImage, OutlierPool
from eomt_exp.files import write_text

FILE_NAME = "images.json"
Digests = tuple[str, str, str, bool]
_HEX = 32  # 128 bits of SHA-256: two images will not meet by chance


class Contents(NamedTuple):
    """Identifies what a set holds."""

    images: dict[str, str]  # digest of the pixels -> name
    sha256: str  # of all images and labels, whatever their order
    has_anomaly: bool  # whether a pixel of any image is labelled one


class Overlap(NamedTuple):
    """Names an image that was seen before it was to be the test."""

    name: str  # in the set that is evaluated
    use: str  # what it was used for
    seen_as: str  # its name there


def digest(array: np.ndarray) -> str:
    """Hash an array's shape and values."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(repr((array.shape, array.dtype.str)).encode() + array.data).hexdigest()


def read_digests(
    images: ImageSet, positions: Sequence[int], advance: Callable[[], object] = lambda: None
) -> list[Digests]:
    """Read these items of a set once; DataError names the first that is broken."""
    found = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for entry in pool.map(lambda index: digests_of(images[index]), positions):
            found.append(entry)
            advance()
    return found


def digests_of(item: LabelledImage) -> Digests:
    """Return (digest of the pixels, digest of the truth, name, has an anomaly) of one image."""
    truth = hashlib.sha256((digest(item.labels) + digest(item.anomaly)).encode()).hexdigest()
    return digest(item.image)[:_HEX], truth, item.name, bool((item.anomaly == ANOMALY).any())


def contents_of(found: Sequence[Digests]) -> Contents:
    """Sum up the digests of single images."""
    text = "\n".join(sorted(f"{image} {truth}" for image, truth, *_ in found))
    return Contents(
        {image: name for image, _, name, _ in found},
        hashlib.sha256(text.encode()).hexdigest(),
        any(has_anomaly for *_, has_anomaly in found),
    )


def verify(pool: OutlierPool, advance: Callable[[], object]) -> None:
    """Read every object of a pool once, so that a broken file is found before training."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for _ in threads.map(pool.__getitem__, range(len(pool))):
            advance()


@dataclass
class SeenImages:
    """Records what a model has seen, the models it began with included."""

    uses: dict[str, dict[str, str]] = field(default_factory=dict)  # use -> digest -> name
    unknown: list[str] = field(default_factory=list)  # weights whose images are not on record

    def add(self, use: str, images: Mapping[str, str]) -> None:
        """Note images, digest -> name, under a use such as training, validation or tuning."""
        self.uses.setdefault(use, {}).update(images)

    def include(self, earlier: SeenImages) -> None:
        """Add what the model that this one began with had seen."""
        for use, images in earlier.uses.items():
            self.add(use, images)
        self.unknown = list(dict.fromkeys([*self.unknown, *earlier.unknown]))

    def overlap(self, contents: Contents, besides: Sequence[str] = ()) -> list[Overlap]:
        """Return the images of a set that were seen in a use that is not one of `besides`."""
        return [
            Overlap(contents.images[image], use, known[image])
            for use, known in self.uses.items()
            if use not in besides
            for image in contents.images.keys() & known.keys()
        ]

    def save(self, folder: Path) -> None:
        """Write images.json of a run folder."""
        content = {"uses": self.uses, "unknown": self.unknown}
        write_text(folder / FILE_NAME, json.dumps(content, indent=0) + "\n")

    @classmethod
    def load(cls, folder: Path) -> SeenImages:
        """Read the record of a run folder; one without a record is named as unknown."""
        path = folder / FILE_NAME
        if not path.is_file():
            return cls(unknown=[str(folder)])
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def in_words(overlaps: Sequence[Overlap], where: str) -> str:
    """Return "3 images of road_anomaly were seen before: a.jpg (training, as b.jpg), …"."""
    shown = ", ".join(f"{o.name} ({o.use}, as {o.seen_as})" for o in overlaps[:3])
    more = f" and {len(overlaps) - 3} more" if len(overlaps) > 3 else ""
    images, were = ("image", "was") if len(overlaps) == 1 else ("images", "were")
    return f"{len(overlaps)} {images} of {where} {were} seen before: {shown}{more}"
