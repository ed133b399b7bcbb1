"""Pairs images with the label maps that belong to them, for all data sets of files."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, get_args

import numpy as np

from eomt_exp.contracts import DataError, UserError
from eomt_exp.data.files.decode import decode_image, decode_labels
from eomt_exp.data.files.tree import FileTree

# keep: as error, but not even missing files are named before they are read; for task=doctor.
OnBroken = Literal["error", "skip", "keep"]

_log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """Names the two files of one image of a set."""

    image: str  # its file in the tree of images, which may be missing
    labels: str | None  # its file in the tree of labels; None: its truth is not published
    name: str  # unique in the set; tables, figures and exports call it so


class PairedFiles:
    """Reads images and label maps from one tree (or two: data sets come in several archives).

    That each image and each label map is there is checked at once and costs no decoding. With
    on_broken="error" a file that cannot be used is named when it is read; with "skip" every file is
    decoded once, here, and the images that cannot be used are left out, counted in `skipped`, with
    their `reasons`, and warned about once. DataError where no pair is left, or two have one name.
    """

    def __init__(
        self,
        images: FileTree,
        labels: FileTree,
        pairs: Sequence[Pair],
        on_broken: OnBroken,
        option: str,
    ) -> None:
        """`option` is the key whose .on_broken the user may set: "data", "benchmark.x"."""
        if on_broken not in get_args(OnBroken):
            raise UserError(f"on_broken must be error or skip, got {on_broken!r}.")
        if not pairs:
            raise DataError(f"No images in {images.root}; see the layout in conf/ for {option}.")
        self._images, self._labels, self._option = images, labels, option
        self.pairs = list(pairs)
        self.skipped: list[str] = []  # file names of images left out
        self.reasons: dict[str, str] = {}  # name of the pair -> why it is left out
        self._check_names()
        if on_broken == "skip":
            self._leave_out_broken()
        elif on_broken == "error":
            self._check_pairing()

    def __len__(self) -> int:
        return len(self.pairs)

    def locations(self, index: int) -> tuple[str, str | None]:
        """Say where image and label map lie, for messages."""
        pair = self.pairs[index]
        labels = None if pair.labels is None else self._labels.location(pair.labels)
        return self._images.location(pair.image), labels

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (H, W, 3) uint8 RGB and (H, W) uint8 labels as stored; DataError when unusable.

        None for labels that are not published.
        """
        try:
            return self._read(self.pairs[index])
        except DataError as error:
            raise DataError(f"{error} {self._advice()}") from error

    def read_bytes(self, index: int) -> tuple[bytes, bytes | None]:
        """Return both files undecoded, for checks of the files."""
        pair = self.pairs[index]
        self._check_there(pair)
        labels = None if pair.labels is None else self._labels.read(pair.labels)
        return self._images.read(pair.image), labels

    def _decoded_labels(self, pair: Pair, data: bytes, location: str) -> np.ndarray:
        """Return (H, W) uint8; sets whose label files are no grey pictures override this."""
        return decode_labels(data, location)

    def _advice(self) -> str:
        return f"Fix the file, or leave such files out with {self._option}.on_broken=skip."

    def _check_names(self) -> None:
        seen: dict[str, Pair] = {}
        for pair in self.pairs:
            if pair.name in seen:
                first, second = (self._images.location(p.image) for p in (seen[pair.name], pair))
                raise DataError(f"There are both {first} and {second}; keep one of the two.")
            seen[pair.name] = pair

    def _check_pairing(self) -> None:
        alone = [pair for pair in self.pairs if not self._is_paired(pair)]
        if alone:
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise DataError(f"{self._missing(alone[0])}{more}. {self._advice()}")

    def _is_paired(self, pair: Pair) -> bool:
        has_labels = pair.labels is None or self._labels.has(pair.labels)
        return has_labels and self._images.lists(pair.image)

    def _check_there(self, pair: Pair) -> None:
        has_labels = pair.labels is None or self._labels.has(pair.labels)
        if not has_labels or not self._images.has(pair.image):
            raise DataError(f"{self._missing(pair)}.")

    def _missing(self, pair: Pair) -> str:
        image = self._images.location(pair.image)
        if pair.labels is None:
            return f"{image} is missing"
        labels = self._labels.location(pair.labels)
        if not self._images.has(pair.image):
            return f"{labels} has no image: {image} is missing"
        return f"{image} has no label map: {labels} is missing"

    def _leave_out_broken(self) -> None:
        with ThreadPoolExecutor(max_workers=4) as pool:
            reasons = list(pool.map(self._fault, self.pairs))
        broken = [(p, r) for p, r in zip(self.pairs, reasons, strict=True) if r is not None]
        good = [p for p, r in zip(self.pairs, reasons, strict=True) if r is None]
        self.skipped = [PurePosixPath(pair.image).name for pair, _ in broken]
        self.reasons = {pair.name: reason for pair, reason in broken}
        if not broken:
            return
        if not good:
            raise DataError(
                f"None of the {len(self.pairs)} images can be used. First: {broken[0][1]}"
            )
        _log.warning(
            "Left out %d of %d images that cannot be used: %s. First: %s",
            len(broken), len(self.pairs), ", ".join(self.skipped), broken[0][1],
        )  # fmt: skip
        self.pairs = good

    def _fault(self, pair: Pair) -> str | None:
        try:
            self._read(pair)
        except DataError as error:
            return str(error)
        return None

    def _read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray | None]:
        self._check_there(pair)
        image = decode_image(self._images.read(pair.image), self._images.location(pair.image))
        if pair.labels is None:
            return image, None
        location = self._labels.location(pair.labels)
        labels = self._decoded_labels(pair, self._labels.read(pair.labels), location)
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"{location} is {_size(labels)} pixels (width x height), "
                f"its image {PurePosixPath(pair.image).name} is {_size(image)}."
            )
        return image, labels


def lone_labels(labels: Collection[str], images: Collection[str]) -> list[str]:
    """Return the names of label maps without an image.

    1_color beside 1 is no label map: it shows that of 1 in colours.
    """
    known = {*labels, *images}

    def is_coloured_copy(name: str) -> bool:
        endings = [match.start() for match in re.finditer(r"[_.-](?=[^0-9]+$)", name)]
        return any(name[:start] in known for start in endings)

    return [name for name in labels if name not in images and not is_coloured_copy(name)]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
