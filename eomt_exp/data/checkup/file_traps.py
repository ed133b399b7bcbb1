"""Finds traps in files: too few, broken, twice, or in a format that others read otherwise."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from eomt_exp.data.checkup.finding import Finding, Severity, of_names
from eomt_exp.data.checkup.image_facts import ImageFacts
from eomt_exp.data.checkup.survey import Survey


def unusable(survey: Survey) -> Iterator[Finding | None]:
    """Find images that are too many or too few, cannot be used, or are there twice."""
    if survey.expected not in (None, survey.length):
        yield Finding(
            "wrong_number", "warning", survey.length,
            f"images, where the published set has {survey.expected}",
            "Numbers on another selection cannot be set beside published ones: fetch the rest, or "
            "say so with every number.",
        )  # fmt: skip
    # With on_broken=skip they are left out, and all else goes on.
    severity: Severity = "warning" if survey.may_skip else "error"
    yield of_names(
        "broken_files", severity, [image.fault for image in survey.images if image.fault],
        "images that cannot be used", "Fetch them again (where sizes differ, one of the two was "
        "resized or belongs to another image):", first=survey.length,
    )  # fmt: skip
    pictures = defaultdict(list)
    for image in survey.images:
        if image.picture:
            pictures[image.picture].append(image.name)
    yield of_names(
        "duplicates", "warning", [" = ".join(names) for names in pictures.values() if names[1:]],
        "pictures that are there under more than one name",
        "They count as often; keep one of each.",
    )  # fmt: skip


def formats(survey: Survey) -> Iterator[Finding | None]:
    """Find files of an odd format, which others may read otherwise."""

    def find(
        kind: str, level: Severity, is_such: Callable[[ImageFacts], bool], what: str, advice: str
    ) -> Finding | None:
        return of_names(kind, level, [i.name for i in survey.images if is_such(i)], what, advice)

    yield find(
        "turned_by_exif", "warning",
        lambda i: i.is_measured and i.image_file.orientation != i.label_file.orientation,
        "images whose EXIF orientation is not that of their label map",
        "Each file is turned as its own says: look with task=preview or in a report whether the "
        "two fit, and save them upright, without the tag.",
    )  # fmt: skip
    yield find(  # those of Lost and Found
        "gamma_chunk", "note", lambda i: i.image_file.has_gamma,
        "PNG images with a gamma chunk (gAMA)",
        "It is ignored here; some readers apply it and see other intensities, so expect small "
        "differences from other people's numbers.",
    )  # fmt: skip
    yield find(
        "packed_labels", "note",
        lambda i: i.is_measured and i.label_file.mode.startswith(("L;2", "L;4")),
        "label maps of 2 or 4 bits",
        "Their values are read as they are; other readers, OpenCV too, scale them to 255.",
    )  # fmt: skip
    yield find(
        "wide_labels", "note", lambda i: i.is_measured and i.label_file.mode[:1] in ("I", "F"),
        "label maps of 16 or 32 bits",
        "Their values fit into 8 and are read as they are; other readers may cut them.",
    )  # fmt: skip
    yield find(
        "palette_labels", "note", lambda i: i.is_measured and i.label_file.mode.startswith("P"),
        "label maps with a palette",
        "The indices are read, as they should be; a reader that turns such files to grey gets "
        "colours for labels.",
    )  # fmt: skip


def versions(survey: Survey) -> Iterator[Finding | None]:
    """Find sets of which others go round under the same name."""
    folders = {Path(i.label_file.location).parent for i in survey.images if i.label_file.location}
    others = {
        str(other)
        for folder in folders
        if folder.name.lower().startswith("labels")
        for other in folder.parent.glob("[lL]abels*")
        if other.is_dir() and other not in folders
    }
    yield of_names(
        "two_label_folders", "note", sorted(others),
        f"folders of labels beside the one in use, {', '.join(sorted(map(str, folders)))}",
        "With and without a region of interest AP differs strongly: say which you used.",
    )  # fmt: skip
    first = survey.images[0].image_file.location
    pattern = re.compile(r"(fs|fishyscapes)[\W_](.*[\W_])?static", re.IGNORECASE)
    if pattern.search(survey.key) or pattern.search(first):
        yield Finding(
            "static_versions", "note", 0,
            f"Fishyscapes Static with the fingerprint {survey.fingerprint()}",
            "Three versions of different difficulty go round: before you compare numbers, compare "
            "this fingerprint of images and label maps.",
        )  # fmt: skip
