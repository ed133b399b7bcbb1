"""Finds traps in files: too few, broken, twice, or in a format that others read otherwise."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from eomt_exp.data.checkup.finding import Finding, Severity, of_names
from eomt_exp.data.checkup.image_facts import FileFacts
from eomt_exp.data.checkup.survey import Survey


def wrong_number(survey: Survey) -> Finding | None:
    """Find more or fewer images than the published set has."""
    if survey.expected is None or survey.length == survey.expected:
        return None
    what = f"images, where the published set has {survey.expected}"
    advice = (
        "Numbers on another selection cannot be set beside published ones: fetch the rest, or say "
        "so with every number."
    )
    return Finding("wrong_number", "warning", survey.length, what, advice)


def broken_files(survey: Survey) -> Finding | None:
    """Find files that are missing, or cannot be read or decoded to the end."""
    faults = [i.fault for i in survey.images if i.fault and not i.has_other_size]
    what, advice = "images that cannot be used", "Fetch them again:"
    return of_names("broken_files", _breaking(survey), faults, what, advice, num_names=None)


def other_sizes(survey: Survey) -> Finding | None:
    """Find label maps that do not fit their image."""
    faults = [i.fault for i in survey.images if i.has_other_size]
    what = "label maps of another size than their image"
    advice = (
        "One of the two was resized or belongs to another image; take both from the original "
        "archive:"
    )
    return of_names("other_sizes", _breaking(survey), faults, what, advice, num_names=None)


def duplicates(survey: Survey) -> Finding | None:
    """Find equal pictures under several names."""
    groups = defaultdict(list)
    for image in survey.images:
        if image.picture:
            groups[image.picture].append(image.name)
    names = [" = ".join(group) for group in groups.values() if len(group) > 1]
    what = "pictures that are there under more than one name"
    return of_names("duplicates", "warning", names, what, "They count as often; keep one of each.")


def jpeg_named_png(survey: Survey) -> Finding | None:
    """Find JPEG data in a file called .png."""
    names = [
        i.name
        for i in survey.images
        if _meets(i.image_file, lambda f: f.format == "JPEG" and f.suffix == ".png")
    ]
    what, advice = "images of JPEG data named .png", "Harmless: they are read for what they are."
    return of_names("jpeg_named_png", "note", names, what, advice)


def jpeg_labels(survey: Survey) -> Finding | None:
    """Find label maps that went through a lossy format."""
    names = [i.name for i in survey.images if _meets(i.label_file, lambda f: f.format == "JPEG")]
    advice = (
        "JPEG blurs values into those beside them: these are not the values that were labelled. "
        "Take the label maps from the original archive."
    )
    return of_names("jpeg_labels", "error", names, "label maps of JPEG data", advice)


def gamma_chunk(survey: Survey) -> Finding | None:
    """Find PNGs that ask readers to change their intensities, such as those of Lost and Found."""
    names = [i.name for i in survey.images if _meets(i.image_file, lambda f: f.has_gamma)]
    advice = (
        "It is ignored here; some readers apply it and see other intensities, so expect small "
        "differences from other people's numbers."
    )
    return of_names("gamma_chunk", "note", names, "PNG images with a gamma chunk (gAMA)", advice)


def sixteen_bit_labels(survey: Survey) -> Finding | None:
    """Find label maps of more than 8 bits a pixel."""
    names = [i.name for i in survey.measured if _meets(i.label_file, lambda f: f.is_sixteen_bit)]
    advice = "Their values fit into 8 and are read as they are; other readers may cut them."
    return of_names("sixteen_bit_labels", "note", names, "label maps of 16 bits", advice)


def palette_labels(survey: Survey) -> Finding | None:
    """Find label maps whose values point into a table of colours."""
    names = [i.name for i in survey.measured if _meets(i.label_file, lambda f: f.mode == "P")]
    advice = (
        "The indices are read, as they should be; a reader that turns such files to grey gets "
        "colours for labels."
    )
    return of_names("palette_labels", "note", names, "label maps with a palette", advice)


def two_label_folders(survey: Survey) -> Finding | None:
    """Find labels beside labels_with_ROI, two truths for the same images, in folders only."""
    folders = {
        Path(i.label_file.location).parent for i in survey.images if i.label_file is not None
    }
    others = {
        str(other)
        for folder in folders
        if folder.name.lower().startswith("labels")
        for other in folder.parent.glob("[lL]abels*")
        if other.is_dir() and other not in folders
    }
    used = ", ".join(sorted(map(str, folders)))
    what = f"folders of labels beside the one in use, {used}"
    advice = "With and without a region of interest AP differs strongly: say which you used."
    return of_names("two_label_folders", "note", sorted(others), what, advice)


def course_spelling(survey: Survey) -> Finding | None:
    """Find RoadObsticle21: so the course's archive is spelt."""
    if "obsticle" not in _first_location(survey).lower():
        return None
    what = 'The folder says "Obsticle", the course\'s own spelling of RoadObstacle21'
    advice = "The set is the same, and scripts look for it by this name: leave it as it is."
    return Finding("course_spelling", "note", 0, what, advice)


def static_versions(survey: Survey) -> Finding | None:
    """Find Fishyscapes Static, of which three versions of different difficulty go round."""
    pattern = re.compile(r"(fs|fishyscapes)[\W_](.*[\W_])?static", re.IGNORECASE)
    if not any(pattern.search(name) for name in (survey.key, _first_location(survey))):
        return None
    what = f"Fishyscapes Static with the fingerprint {survey.fingerprint()}"
    advice = (
        "Three versions of different difficulty go round: before you compare numbers, compare "
        "this fingerprint of the label maps."
    )
    return Finding("static_versions", "note", 0, what, advice)


def _breaking(survey: Survey) -> Severity:
    """Warn where on_broken=skip leaves out files that cannot be used, and all else goes on."""
    return "warning" if survey.may_skip else "error"


def _meets(file: FileFacts | None, condition: Callable[[FileFacts], bool]) -> bool:
    return file is not None and condition(file)


def _first_location(survey: Survey) -> str:
    first = [i.image_file.location for i in survey.images[:1] if i.image_file is not None]
    return first[0] if first else ""
