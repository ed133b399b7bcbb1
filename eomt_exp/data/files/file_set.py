"""Defines a data set of image files: pairs of files, and what each stored label value means."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from eomt_exp.contracts import NORMAL, VOID, DataError, ImageSet, LabelledImage, UserError
from eomt_exp.data.files.decode import decode_image, decode_labels, remap_labels
from eomt_exp.data.files.layouts import Found, Pair

# keep: as error, but not even missing files are named before they are read; for task=doctor.
OnBroken = Literal["error", "skip", "keep"]

_log = logging.getLogger(__name__)


class FileSet(ImageSet):
    """Reads an image set from files; its kinds differ in what a label value stands for.

    That each image and each label map is there is checked at once and costs no decoding. With
    on_broken="error" a file that cannot be used is named when it is read; with "skip" every file is
    decoded once, here, and the images that cannot be used are left out, listed in `skipped`, and
    warned about once. DataError where no pair is left, or two have one name.
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
        self.room = 0  # bytes of memory for the images that are read now
        self._kept: dict[int, LabelledImage] = {}
        self._images, self._labels, self.pairs = found.images, found.labels, list(found.pairs)
        self.meaning, self._advice, self._option = meaning, advice, option
        if not self.pairs:
            raise DataError(
                f"No images in {self._images.root}; see the layout in conf/ for {option}."
            )
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
        """Return both files as they are; DataError where one is missing or cannot be read."""
        pair = self.pairs[index]
        if missing := self._missing(pair):
            raise DataError(f"{missing}.")
        labels = None if pair.labels is None else self._labels.read(pair.labels)
        return self._images.read(pair.image), labels

    def stored(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (H, W, 3) uint8 RGB and (H, W) uint8 label values before they get a meaning.

        None for labels that are not published. DataError when a file cannot be used.
        """
        try:
            return self._decoded(index)
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

    def _decoded_labels(self, index: int, data: bytes, location: str) -> np.ndarray:
        """Return (H, W) uint8; sets whose label files are no grey pictures override this."""
        return decode_labels(data, location)

    def _skip_advice(self) -> str:
        return f"Fix the file, or leave such files out with {self._option}.on_broken=skip."

    def _check_names(self) -> None:
        seen: dict[str, Pair] = {}
        for pair in self.pairs:
            if (other := seen.setdefault(pair.name, pair)) is not pair:
                first, second = (self._images.location(p.image) for p in (other, pair))
                raise DataError(f"There are both {first} and {second}; keep one of the two.")

    def _check_pairing(self) -> None:
        missing = [text for pair in self.pairs if (text := self._missing(pair))]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(f"{missing[0]}{more}. {self._skip_advice()}")

    def _missing(self, pair: Pair) -> str:
        """Say which of the two files is missing; "" where both are there."""
        image, has_image = self._images.location(pair.image), self._images.has(pair.image)
        if pair.labels is None:
            return "" if has_image else f"{image} is missing"
        labels = self._labels.location(pair.labels)
        if not has_image:
            return f"{labels} has no image: {image} is missing"
        has_labels = self._labels.has(pair.labels)
        return "" if has_labels else f"{image} has no label map: {labels} is missing"

    def _leave_out_broken(self) -> None:
        with ThreadPoolExecutor(max_workers=4) as pool:
            faults = dict(zip(self.pairs, pool.map(self._fault, range(len(self))), strict=True))
        broken = [pair for pair, fault in faults.items() if fault]
        self.skipped = [PurePosixPath(pair.image).name for pair in broken]
        if not broken:
            return
        count, first = len(self.pairs), faults[broken[0]]
        self.pairs = [pair for pair, fault in faults.items() if not fault]
        if not self.pairs:
            raise DataError(f"None of the {count} images can be used. First: {first}")
        _log.warning(
            "Left out %d of %d images that cannot be used: %s. First: %s",
            len(broken), count, ", ".join(self.skipped), first,
        )  # fmt: skip

    def _fault(self, index: int) -> str:
        try:
            self._decoded(index)
        except DataError as error:
            return str(error)
        return ""

    def _decoded(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        data, label_data = self.read_bytes(index)
        location, label_location = self.locations(index)
        image = decode_image(data, location)
        if label_data is None or label_location is None:
            return image, None
        labels = self._decoded_labels(index, label_data, label_location)
        if image.shape[:2] != labels.shape:
            turned = image.shape[:2] == labels.shape[::-1]
            raise DataError(
                f"{label_location} is {_size(labels)} pixels (width x height), "
                f"its image {PurePosixPath(location).name} is {_size(image)}."
                + " All files are turned as EXIF says: is one of the two stored lying?"
                * turned
            )
        return image, labels


def published_size(
    sizes: int | Mapping[str, int] | None, split: str | None, option: str = "split"
) -> int | None:
    """Return how many images a split has as published; UserError names the splits there are."""
    if not isinstance(sizes, Mapping):
        return sizes
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
