"""Anomaly benchmarks as the course hands them out: `images/` beside `labels_masks/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eomt_exp.contracts import ANOMALY, NORMAL, VOID, LabelledImage
from eomt_exp.data.image_files import existing_folder, remap_labels
from eomt_exp.data.labelled_folder import LabelledFolder, OnBroken


class AnomalyFolder:
    """Photographs with anomalies; which label value means what is said by three lists.

    Images without any anomaly stay: leaving them out, as the usual script does, lifts the AP of
    Fishyscapes Static by 24 points. No known classes here, so `labels` is VOID throughout.
    """

    num_classes = 0
    class_names: tuple[str, ...] = ()

    reads_files = True  # so that they can be checked before they are needed

    def __init__(
        self,
        root: str | Path | None,
        name: str,
        images: str = "images",
        labels: str = "labels_masks",
        anomaly_values: Sequence[int] = (2,),
        normal_values: Sequence[int] = (0,),
        void_values: Sequence[int] = (),
        on_broken: OnBroken = "error",
    ) -> None:
        """`name` is the benchmark's key: its folder is set by paths.<name> or EOMT_<NAME>."""
        self.name = name
        self._table = _value_table(anomaly_values, normal_values, void_values)
        folder = existing_folder(root, option=f"benchmark={name}", key=name)
        self._files = LabelledFolder(
            folder / images, folder / labels, on_broken, option=f"benchmark.{name}"
        )

    @property
    def skipped(self) -> list[str]:
        """File names of the images left out by on_broken="skip"."""
        return self._files.skipped

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> LabelledImage:
        """One photograph in native size; DataError names a file that cannot be used."""
        image, values = self._files.read(index)
        key = f"benchmark.{self.name}"
        mend = f"Add them to {key}.anomaly_values, .normal_values or .void_values."
        anomaly = remap_labels(values, self._table, self._files.label_path(index), mend)
        labels = np.full_like(anomaly, VOID)
        return LabelledImage(image, labels, anomaly, self._files.files[index].stem)


def _value_table(
    anomaly: Sequence[int], normal: Sequence[int], void: Sequence[int]
) -> dict[int, int]:
    """Label value of the files -> 0, 1 or VOID; ValueError for a value with two meanings."""
    table: dict[int, int] = {}
    meanings = {"normal": (NORMAL, normal), "anomaly": (ANOMALY, anomaly), "void": (VOID, void)}
    for meaning, (ours, values) in meanings.items():
        for value in values:
            if not 0 <= value <= 255:
                raise ValueError(f"{meaning}_values must lie in 0..255, got {value}.")
            if value in table:
                raise ValueError(f"{meaning}_values holds {value}, which has a meaning already.")
            table[value] = ours
    if not anomaly:
        raise ValueError("anomaly_values is empty; give at least one label value, such as [1].")
    return table
