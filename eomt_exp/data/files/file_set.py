"""Defines a data set of image files: pairs of files, and what each stored label value means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eomt_exp.contracts import NORMAL, VOID, LabelledImage, UserError
from eomt_exp.data.files.decode import remap_labels
from eomt_exp.data.files.pairs import PairedFiles


class FileSet:
    """Reads an image set from files; its kinds differ in what a label value stands for."""

    reads_files = True  # so that they can be checked before they are needed
    num_classes = 0
    class_names: Sequence[str] = ()
    expected_images: int | None = None  # how many the published set has; `task=doctor` compares
    component_sizes: tuple[int, int] | None = None  # of the smallest predicted and true component

    def __init__(self, files: PairedFiles, meaning: Mapping[int, int], advice: str = "") -> None:
        """`meaning` maps values of the files to ours; `advice` ends the error about any others."""
        self.room = 0  # bytes of memory for the images that are read now
        self._kept: dict[int, LabelledImage] = {}
        self._files, self.meaning, self._advice = files, meaning, advice

    @property
    def skipped(self) -> list[str]:
        """List the file names of the images left out by on_broken="skip"."""
        return self._files.skipped

    @property
    def reasons(self) -> dict[str, str]:
        """Map the name of each image left out to what is wrong with it."""
        return self._files.reasons

    def __len__(self) -> int:
        return len(self._files)

    def locations(self, index: int) -> tuple[str, str | None]:
        """Say where an image and its label map lie; None where its truth is not published."""
        return self._files.locations(index)

    def read_bytes(self, index: int) -> tuple[bytes, bytes | None]:
        """Return both files as they are."""
        return self._files.read_bytes(index)

    def stored(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (H, W, 3) uint8 RGB and (H, W) uint8 label values before they get a meaning."""
        return self._files.read(index)

    def __getitem__(self, index: int) -> LabelledImage:
        """Return one image in native size; DataError names a file that cannot be used.

        What is read while there is `room` stays in memory, and must not be written to.
        """
        if (item := self._kept.get(index)) is None:
            item = self._read(index)
            size = item.image.nbytes + item.labels.nbytes + item.anomaly.nbytes
            if size <= self.room:
                self._kept[index], self.room = item, self.room - size
        return item

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}  # a spawned worker reads its own

    def _read(self, index: int) -> LabelledImage:
        image, values = self.stored(index)
        name = self._files.pairs[index].name
        if values is None:
            unknown = np.full(image.shape[:2], VOID, np.uint8)
            return LabelledImage(image, unknown, unknown, name)
        ours = remap_labels(values, self.meaning, self.locations(index)[1] or "", self._advice)
        return LabelledImage(image, *self._truth(ours), name)

    def _truth(self, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels and anomaly, both (H, W) uint8, from values in our meaning."""
        raise NotImplementedError


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

    def _truth(self, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full_like(ours, VOID), ours
