"""A folder of images beside a folder of label maps, paired by stem: what file data sets share."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from eomt_exp.contracts import DataError
from eomt_exp.data.image_files import list_images, read_image, read_labels

OnBroken = Literal["error", "skip"]

_log = logging.getLogger(__name__)


class LabelledFolder:
    """Images and the label maps (`stem.png`) that belong to them, in natural order.

    Pairing is checked at once and costs no decoding. With on_broken="error" a file that cannot be
    used is named when it is read; with "skip" every file is decoded once, here, and the images
    that cannot be used are left out, counted in `skipped` and warned about once.
    """

    def __init__(self, images: Path, labels: Path, on_broken: OnBroken, option: str) -> None:
        if on_broken not in ("error", "skip"):
            raise ValueError(f"on_broken must be error or skip, got {on_broken!r}.")
        if not labels.is_dir():
            raise DataError(f"No folder {labels}; the label maps are expected there.")
        self._option = option
        self._labels = labels
        self.files = list_images(images)
        self.skipped: list[str] = []
        if on_broken == "skip":
            self._leave_out_broken()
        else:
            self._check_pairing()

    def __len__(self) -> int:
        return len(self.files)

    def label_path(self, index: int) -> Path:
        """Where the label map of image `index` lies."""
        return self._label_of(self.files[index])

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 RGB and (H, W) uint8 labels as stored; DataError when unusable."""
        try:
            return self._read(self.files[index])
        except DataError as error:
            raise DataError(f"{error} {self._way_out()}") from error

    def _label_of(self, image: Path) -> Path:
        return self._labels / f"{image.stem}.png"

    def _way_out(self) -> str:
        return f"Mend the file, or leave such files out with {self._option}.on_broken=skip."

    def _check_pairing(self) -> None:
        alone = [file for file in self.files if not self._label_of(file).is_file()]
        if alone:
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise DataError(
                f"{alone[0]} has no label map: {self._label_of(alone[0])} is missing{more}. "
                f"{self._way_out()}"
            )

    def _leave_out_broken(self) -> None:
        with ThreadPoolExecutor(max_workers=4) as pool:
            reasons = list(pool.map(self._fault, self.files))
        good = [file for file, reason in zip(self.files, reasons, strict=True) if reason is None]
        self.skipped = [
            file.name for file, reason in zip(self.files, reasons, strict=True) if reason
        ]
        if not self.skipped:
            return
        names = ", ".join(self.skipped)
        first = next(reason for reason in reasons if reason)
        if not good:
            raise DataError(f"None of the {len(self.files)} images can be used. First: {first}")
        _log.warning(
            "Left out %d of %d images that cannot be used: %s. First: %s",
            len(self.skipped), len(self.files), names, first,
        )  # fmt: skip
        self.files = good

    def _fault(self, image: Path) -> str | None:
        try:
            self._read(image)
        except DataError as error:
            return str(error)
        return None

    def _read(self, image_path: Path) -> tuple[np.ndarray, np.ndarray]:
        label_path = self._label_of(image_path)
        if not label_path.is_file():
            raise DataError(f"{image_path} has no label map: {label_path} is missing.")
        image, labels = read_image(image_path), read_labels(label_path)
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"{label_path} is {_size(labels)} pixels (width x height), "
                f"its image {image_path.name} is {_size(image)}."
            )
        return image, labels


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
