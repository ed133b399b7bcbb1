"""Surveys a data set: examines its images once and sums up what was seen.

A set of files is read whole; of a set that draws, a few scenes are examined, for there is nothing
that could be missing.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from eomt_exp.contracts import ANOMALY, NORMAL, VOID, ImageSet
from eomt_exp.data.checkup.image_facts import ImageFacts, examine_drawn, examine_files
from eomt_exp.data.files.file_set import FileSet

Role = Literal["train", "val", "benchmark"]
UNMAPPED = "void, for it has no class"
DRAWN = 8  # scenes examined of a set that draws
_STATES = {NORMAL: "normal", ANOMALY: "anomaly", VOID: "void"}


class LabelMeaning(NamedTuple):
    """Says what one stored label value stands for."""

    name: str  # "normal", "anomaly", "void" or a class's name
    anomaly: int  # NORMAL, ANOMALY or VOID


class Survey(NamedTuple):
    """Holds what was seen of a set."""

    key: str  # where it is configured: "benchmark.road_anomaly", "data.train"
    role: Role
    length: int  # images in the set
    expected: int | None  # images of the published set
    images: list[ImageFacts]  # of every image; of `DRAWN` where they are drawn
    meanings: dict[int, LabelMeaning]  # of every stored value that has one
    is_drawn: bool
    may_skip: bool = False  # on_broken=skip: evaluation goes on without what is broken

    @property
    def measured(self) -> list[ImageFacts]:
        """List the images with a label map that can be read."""
        return [image for image in self.images if image.is_measured]

    def values(self) -> np.ndarray:
        """Count the pixels of each stored label value in the whole set: (256,) int64."""
        return sum((image.values for image in self.images), np.zeros(256, np.int64))

    def pixels_of(self, image: ImageFacts, *states: int) -> int:
        """Count the pixels of an image that are of these states: NORMAL, ANOMALY or VOID."""
        wanted = [value for value, meaning in self.meanings.items() if meaning.anomaly in states]
        return int(image.values[wanted].sum())

    @property
    def has_anomalies(self) -> bool:
        """Return whether any label value means anomaly: it is a benchmark of them."""
        return any(meaning.anomaly == ANOMALY for meaning in self.meanings.values())

    def anomaly_share(self) -> float:
        """Return anomaly pixels per pixel that counts; 0 where none does."""
        anomalies = sum(self.pixels_of(image, ANOMALY) for image in self.images)
        return anomalies / max(sum(self.pixels_of(i, NORMAL, ANOMALY) for i in self.images), 1)

    def fingerprint(self) -> str:
        """Return eight digits of a hash over decoded images with their label maps.

        Two people with equal fingerprints measure on the same images against the same truth,
        whatever names and order. "" without label maps.
        """
        digests = sorted(image.picture + image.label_map for image in self.measured)
        return hashlib.blake2b(b"".join(digests), digest_size=4).hexdigest() if digests else ""


def num_examined(images: ImageSet) -> int:
    """Return how many images a survey examines."""
    return len(images) if isinstance(images, FileSet) else min(DRAWN, len(images))


def survey(
    images: ImageSet, key: str, role: Role, advance: Callable[[], object] = lambda: None
) -> Survey:
    """Examine a set; `advance` is called after each of its `num_examined` images.

    Bad files do not stop it. Threads share the work, for PIL decodes outside Python's lock.
    """
    if not isinstance(images, FileSet):
        return _survey_drawn(images, key, role, advance)
    seen = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for facts in pool.map(partial(examine_files, images), range(len(images))):
            seen.append(facts)
            advance()
    meanings = _meanings_of_files(images)
    return Survey(key, role, len(images), images.expected_images, seen, meanings, is_drawn=False)


def summary(survey: Survey) -> list[tuple[str, str, str]]:
    """Return lines of a table: what, how much of it, remark."""
    remark = f"of {survey.expected} expected" if survey.expected is not None else ""
    if survey.is_drawn:
        remark = f"drawn, {len(survey.images)} examined"
    lines = [("images", f"{survey.length:,}", remark)]
    sizes = Counter(image.size for image in survey.images if image.size is not None)
    lines += [(f"{w} x {h} pixels", f"{n:,}", "") for (h, w), n in sizes.most_common()]
    kinds = {
        "image files": [i.image_file for i in survey.images],
        "label files": [i.label_file for i in survey.images],
    }
    for kind, files in kinds.items():
        mix = Counter(file.suffix for file in files if file.location).most_common()
        suffixes = ", ".join(f"{n:,} {suffix}" if len(mix) > 1 else suffix for suffix, n in mix)
        lines += [(kind, f"{sum(n for _, n in mix):,}", suffixes)] if mix else []
    if not survey.is_drawn and (fingerprint := survey.fingerprint()):
        lines.append(("fingerprint", fingerprint, f"of {len(survey.measured):,} with their labels"))
    if survey.has_anomalies:
        lines.append(("anomaly pixels", percent(survey.anomaly_share()), "of those that count"))
    return lines


def value_lines(survey: Survey) -> list[tuple[str, str, str]]:
    """Return a line for each label value there is: value, share of all pixels, what it means."""
    counts = survey.values()
    total = max(int(counts.sum()), 1)
    unknown = LabelMeaning("UNKNOWN", VOID)
    return [
        (str(v), percent(counts[v] / total), survey.meanings.get(v, unknown).name)
        for v in np.flatnonzero(counts).tolist()
    ]


def percent(share: float) -> str:
    """Write "0.042 %" and the like: anomalies may be few."""
    return f"{100 * share:.3g} %"


def _survey_drawn(images: ImageSet, key: str, role: Role, advance: Callable[[], object]) -> Survey:
    if role == "benchmark":
        meanings = {state: LabelMeaning(name, state) for state, name in _STATES.items()}
    else:
        meanings = {v: LabelMeaning(name, NORMAL) for v, name in enumerate(images.class_names)}
        meanings[VOID] = LabelMeaning(_STATES[VOID], VOID)
    seen = []
    for index in np.linspace(0, len(images) - 1, num_examined(images)).round().astype(int).tolist():
        image = images[index]
        seen.append(examine_drawn(image, image.anomaly if role == "benchmark" else image.labels))
        advance()
    return Survey(key, role, len(images), None, seen, meanings, is_drawn=True)


def _meanings_of_files(images: FileSet) -> dict[int, LabelMeaning]:
    """Ask the set itself, so that a new kind of set needs nothing here."""
    values = sorted(images.meaning)
    labels, anomaly = images._truth(np.array([[images.meaning[v] for v in values]], np.uint8))
    meanings = {}
    for value, label, state in zip(values, labels[0].tolist(), anomaly[0].tolist(), strict=True):
        is_class = label != VOID and state != ANOMALY
        name = images.class_names[label] if is_class else _STATES[state]
        name = UNMAPPED if value in images.unmapped else name
        meanings[value] = LabelMeaning(name, state)
    return meanings
