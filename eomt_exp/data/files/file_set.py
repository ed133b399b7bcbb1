"""Defines a data set of image files: pairs of files, and what each stored label value means."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

import numpy as np

from eomt_exp.contracts import NORMAL, VOID, DataError, ImageSet, LabelledImage, UserError
from eomt_exp.data.files.decode import decode_image, decode_labels, remap_labels
from eomt_exp.data.files.layouts import Found
from eomt_exp.data.files.pairs import Pair

# keep: as error, but not even missing files are named before they are read; for task=doctor.
OnBroken = Literal["error", "skip", "keep"]

_log = logging.getLogger(__name__)


class FileSet(ImageSet):
    """Reads an image set from files; its kinds differ in what a label value stands for.

    That each image and each label map is there is checked at once and costs no decoding. With
    on_broken="error" a file that cannot be used is named when it is read; with "skip" every file is
    decoded once, here, and the images that cannot be used are left out, counted in `skipped`, with
    their `reasons`, and warned about once. DataError where no pair is left, or two have one name.
    """

    reads_files = True
    unmapped: Collection[int] = ()  # values that are void for want of a meaning

    def __init__(
        self,
        found: Found,
        meaning: Mapping[int, int],
        on_broken: OnBroken,
        option: str,
        advice: str = "",
    ) -> None:
        """`meaning` maps values of the files to ours; `advice` ends the error about any others.

        `option` is the key whose .on_broken the user may set: "data", "benchmark.x".
        """
        if on_broken not in get_args(OnBroken):
            raise UserError(f"on_broken must be error or skip, got {on_broken!r}.")
        self.room = 0  # bytes of memory for the images that are read now
        self._kept: dict[int, LabelledImage] = {}
        self._images, self._labels, self.pairs = found.images, found.labels, list(found.pairs)
        self.meaning, self._advice, self._option = meaning, advice, option
        if not self.pairs:
            raise DataError(
                f"No images in {self._images.root}; see the layout in conf/ for {option}."
            )
        self.reasons: dict[str, str] = {}  # name of the pair -> why it is left out
        self._check_names()
        if on_broken == "skip":
            self._leave_out_broken()
        elif on_broken == "error":
            self._check_pairing()

    def __len__(self) -> int:
        return len(self.pairs)

    def locations(self, index: int) -> tuple[str, str | None]:
        """Say where an image and its label map lie; None where its truth is not published."""
        pair = self.pairs[index]
        labels = None if pair.labels is None else self._labels.location(pair.labels)
        return self._images.location(pair.image), labels

    def read_bytes(self, index: int) -> tuple[bytes, bytes | None]:
        """Return both files as they are."""
        pair = self.pairs[index]
        self._check_there(pair)
        labels = None if pair.labels is None else self._labels.read(pair.labels)
        return self._images.read(pair.image), labels

    def stored(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (H, W, 3) uint8 RGB and (H, W) uint8 label values before they get a meaning.

        None for labels that are not published. DataError when a file cannot be used.
        """
        try:
            return self._read(self.pairs[index])
        except DataError as error:
            raise DataError(f"{error} {self._skip_advice()}") from error

    def __getitem__(self, index: int) -> LabelledImage:
        """Return one image in native size; DataError names a file that cannot be used.

        What is read while there is `room` stays in memory, and must not be written to.
        """
        if (item := self._kept.get(index)) is None:
            item = self._labelled(index)
            size = item.image.nbytes + item.labels.nbytes + item.anomaly.nbytes
            if size <= self.room:
                self._kept[index], self.room = item, self.room - size
        return item

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}  # a spawned worker reads its own

    def _labelled(self, index: int) -> LabelledImage:
        image, values = self.stored(index)
        name = self.pairs[index].name
        if values is None:
            unknown = np.full(image.shape[:2], VOID, np.uint8)
            return LabelledImage(image, unknown, unknown, name)
        ours = remap_labels(values, self.meaning, self.locations(index)[1] or "", self._advice)
        return LabelledImage(image, *self._truth(ours), name)

    def _truth(self, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels and anomaly, both (H, W) uint8, from values in our meaning."""
        raise NotImplementedError

    def _decoded_labels(self, pair: Pair, data: bytes, location: str) -> np.ndarray:
        """Return (H, W) uint8; sets whose label files are no grey pictures override this."""
        return decode_labels(data, location)

    def _skip_advice(self) -> str:
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
            raise DataError(f"{self._missing(alone[0])}{more}. {self._skip_advice()}")

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


def published_size(sizes: Mapping[str, int], split: str | None, option: str = "split") -> int:
    """Return how many images a split has as published; UserError names the splits there are."""
    if split is None or split not in sizes:
        raise UserError(f"{option} must be one of {', '.join(sizes)}, got {split!r}.")
    return sizes[split]


def checked_component_sizes(sizes: Sequence[int] | None) -> tuple[int, int] | None:
    """Check [smallest predicted, smallest true] component in pixels; None measures none."""
    if sizes is None:
        return None
    if len(sizes) != 2 or not all(type(size) is int and size >= 1 for size in sizes):
        raise UserError(
            "component_sizes holds two whole numbers of pixels from 1 on, of the smallest "
            f"predicted and the smallest true component, or is null; got {sizes}."
        )
    return sizes[0], sizes[1]


class KnownClassSet(FileSet):
    """Has known classes, no anomalies: the anomaly map is 0 on known classes, VOID elsewhere."""

    def _truth(self, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return ours, np.where(ours == VOID, VOID, NORMAL).astype(np.uint8)


class AnomalySet(FileSet):
    """Has anomalies, no known classes: values are NORMAL, ANOMALY or VOID, labels all VOID."""

    labels_anomalies = True

    def _truth(self, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full_like(ours, VOID), ours


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
