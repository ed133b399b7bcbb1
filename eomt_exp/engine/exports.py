"""Writes score maps as files that other people's tools read: SegmentMeIfYouCan and OoDIS.

Their public code reads these layouts: SegmentMeIfYouCan/road-anomaly-benchmark (evaluation.py,
datasets/) and kumuji/anomaly-benchmark-suite (verify_submission.py, scoring_program/).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from eomt_exp.contracts import UserError
from eomt_exp.evaluator.components import label_components
from eomt_exp.files import replacing, write_text

OODIS_SMALLEST = 10  # pixels; its evaluation leaves out what is smaller
OODIS_IMAGES = {"fishyscapes": 2239, "roadanomaly": 100, "roadobstacle": 412}


class SmiycExport:
    """Writes `<folder>/anomaly_p/<method>/<data set>/<image>.hdf5`, float16, as SMIYC's own tool.

    Evaluate with DIR_OUTPUTS=<folder> python -m road_anomaly_benchmark metric PixBinaryClass
    <method> <data set>. float16 has 11 bits: scores that saturate near 1 become ties.
    """

    def __init__(self, folder: Path, method: str, dataset: str) -> None:
        """Take `dataset` as the tool calls the whole set: AnomalyTrack-all, ObstacleTrack-all, …

        It looks there for the maps of its splits too. Raises UserError without h5py.
        """
        _h5py()  # now, and not after hours of scoring
        self.folder = folder / "anomaly_p" / method / dataset

    def faults(self, names: Sequence[str]) -> list[str]:
        """Say what the tool would refuse of the files of these images."""
        found = []
        for name in names:
            path = self.folder / f"{_image_id(name)}.hdf5"
            try:
                with _h5py().File(path) as file:
                    value = file["value"][:]
            except (OSError, KeyError) as error:
                found.append(f"{path.name} is missing or broken ({error})")
                continue
            if value.ndim != 2 or value.dtype != np.float16 or np.isnan(value).any():
                found.append(f"{path.name} holds {value.dtype} of shape {value.shape}, or NaN")
        return found

    def write(self, name: str, score: np.ndarray) -> None:
        """Write `score` (H, W) of the image `name` at its full size, higher = more anomalous.

        Raises UserError for numbers beyond float16.
        """
        path = self.folder / f"{_image_id(name)}.hdf5"
        half = _as_float16(_without_nan(name, score), name)
        with replacing(path) as scratch, _h5py().File(scratch, "w") as file:
            file.create_dataset("value", data=half, compression="gzip", compression_opts=9)


class OodisExport:
    """Writes `<folder>/oodis/<method>/<part>/`: per image a list of instances, and their masks.

    An instance is an 8-connected component of score > threshold with at least OODIS_SMALLEST
    pixels, and its confidence the mean score inside. `<image>_instanceIds_pred.txt` has a line
    `mask 1 confidence` for each, where masks are 8-bit PNGs, 255 inside. OoDIS refuses images
    without an instance, so these get one empty mask, which its scoring skips.

    To submit: write all three parts, then `cd <folder>/oodis/<method> && zip -r submission.zip .`
    """

    def __init__(self, folder: Path, method: str, part: str, threshold: float) -> None:
        """Take the part as OoDIS calls it: fishyscapes, roadanomaly or roadobstacle."""
        self.part, self.folder = part, folder / "oodis" / method / part
        self.threshold = threshold
        # After the image's name, as in Cityscapes.
        self._infix = "_gtCoarse" if part == "fishyscapes" else ""

    def faults(self, names: Sequence[str]) -> list[str]:
        """Say what its verify_submission.py would refuse of the files of these images."""
        found, listed = [], set()
        for name in names:
            path = self.folder / f"{_image_id(name)}{self._infix}_instanceIds_pred.txt"
            lines = path.read_text().splitlines() if path.is_file() else []
            masks = [line.split(" ")[0] for line in lines]
            missing = [mask for mask in masks if not (self.folder / mask).is_file()]
            if not masks or missing:
                found.append(f"{path.name} names no mask, or {missing[:1]}, which is not there")
            listed |= {path.name, *masks}
        found += [
            f"{path.name}, which is of none of these images"
            for path in sorted(self.folder.glob("*"))
            if path.name not in listed
        ]
        if len(names) != OODIS_IMAGES[self.part]:
            found.append(
                f"a part of {len(names)} images, where OoDIS wants {OODIS_IMAGES[self.part]}"
            )
        return found

    def write(self, name: str, score: np.ndarray) -> None:
        """Write masks, then the list, so that a list never names a missing mask.

        `score` is (H, W), higher = more anomalous. Raises UserError for a name with blanks.
        """
        score = _without_nan(name, score)
        stem = f"{_image_id(name)}{self._infix}_instanceIds"
        if " " in stem:  # the list is split at blanks
            raise UserError(f"OoDIS cannot read names with blanks, got {name!r}; rename the file.")
        ids = label_components(score > self.threshold, OODIS_SMALLEST)
        confidences = _means(score, ids) or [0.0]
        masks = [f"{stem}_{number}_1.png" for number in range(1, len(confidences) + 1)]
        for number, mask in enumerate(masks, start=1):
            with replacing(self.folder / mask) as scratch:
                Image.fromarray((ids == number).astype(np.uint8) * 255).save(scratch)
        lines = [f"{mask} 1 {value!r}\n" for mask, value in zip(masks, confidences, strict=True)]
        write_text(self.folder / f"{stem}_pred.txt", "".join(lines))
        self._remove_others(stem, masks)

    def _remove_others(self, stem: str, masks: list[str]) -> None:
        """Remove an earlier run's masks that no list names: OoDIS would refuse the whole zip."""
        number = len(masks) + 1
        while (old := self.folder / f"{stem}_{number}_1.png").exists():
            old.unlink()
            number += 1


def _means(score: np.ndarray, ids: np.ndarray) -> list[float]:
    """Return the mean score of each component 1, 2, …"""
    inside = ids > 0
    numbers = ids[inside] - 1
    return (np.bincount(numbers, score[inside]) / np.bincount(numbers)).tolist()


def _as_float16(score: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = score.astype(np.float16)
    if (np.isinf(half) & np.isfinite(score)).any():
        most = np.abs(score[np.isfinite(score)]).max()
        raise UserError(
            f"The scores of {name} reach {most:g}, but SMIYC's files are float16 and end at "
            "65504; divide the scores, or take a scorer of a bounded range."
        )
    return half


def _without_nan(name: str, score: np.ndarray) -> np.ndarray:
    if bad := int(np.isnan(score).sum()):
        raise ValueError(f"{bad} of {score.size} scores of {name} are NaN; fix the scorer.")
    return score


def _image_id(name: str) -> str:
    """Return the name as one of a file; both tools leave out the ending of Lost and Found's."""
    return name.replace("/", "_").removesuffix("_leftImg8bit")


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "SMIYC's files are HDF5, which needs h5py, and that cannot be imported; "
            'type pip install -e ".[smiyc]".'
        ) from error
    return h5py
