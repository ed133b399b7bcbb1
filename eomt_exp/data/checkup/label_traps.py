"""Finds traps in label values: what they mean or lack, and what only looks like a truth."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from eomt_exp.contracts import ANOMALY, NORMAL, VOID
from eomt_exp.data.checkup.finding import Finding, Severity, of_names
from eomt_exp.data.checkup.image_facts import ImageFacts
from eomt_exp.data.checkup.survey import UNMAPPED, Survey, percent
from eomt_exp.data.files.label_values import spans


def unknown_values(survey: Survey) -> Finding | None:
    """Find label values that nobody has given a meaning."""
    names, shares = _holding(survey, set(range(256)) - survey.meanings.keys())
    what = "images with label values that have no meaning here"
    advice = (
        f"The values: {shares}; known are {spans(survey.meanings)}. Look whether these are the "
        f"right files; if they are, {survey.key} must say what the values mean."
    )
    return of_names("unknown_values", "error", names, what, advice)


def unmapped_values(survey: Survey) -> Finding | None:
    """Find label values that are void because they were given no class."""
    unmapped = {value for value, meaning in survey.meanings.items() if meaning.name == UNMAPPED}
    names, shares = _holding(survey, unmapped)
    what = "images with label values that have no class"
    advice = (
        f"The values: {shares}; these pixels count as void. Give each a class in label_values of "
        f"{survey.key}, or list it in void_values."
    )
    return of_names("unmapped_values", "warning", names, what, advice)


def without_anomaly(survey: Survey) -> Finding | None:
    """Find images where every pixel that counts is normal, and none has an unknown value."""
    if not survey.has_anomalies or _is_dummy(survey):
        return None
    empty = [
        image
        for image in survey.measured
        if survey.pixels_of(image, NORMAL)
        and survey.pixels_of(image, NORMAL, VOID) == _num_pixels(image)
    ]
    advice = (
        "They are kept and count as normal. Leaving them out, as the course's script does, makes a "
        "set easier (Fishyscapes Static: 24 points of AP): compare only with numbers that kept "
        "them too."
    )
    is_most = len(empty) > len(survey.measured) / 2
    if is_most:
        zeros = sum(_is_zero(image) for image in empty)
        advice += (
            f" It is most of the set, and {zeros} hold nothing but the value 0, as the dummy "
            "labels of a truth that is not published do: check where they come from."
        )
    names = [image.name for image in empty]
    severity: Severity = "warning" if is_most else "note"
    return of_names("without_anomaly", severity, names, "images without any anomaly", advice)


def dummy_labels(survey: Survey) -> Finding | None:
    """Find label maps of nothing but 0, as test sets with a hidden truth bring along."""
    names = [image.name for image in survey.measured if _is_zero(image)]
    what = "label maps of nothing but the value 0"
    if _is_dummy(survey):
        advice = (
            "All are: dummies of a truth that is not published. Take the set's validation part."
        )
        return of_names("dummy_labels", "error", names, what, advice)
    if survey.has_anomalies:
        return None  # there 0 mostly means normal: without_anomaly speaks of them
    return of_names("dummy_labels", "warning", names, what, "A dummy, or a lost one: look at it.")


def nothing_counts(survey: Survey) -> Finding | None:
    """Find images whose label map is void throughout."""
    if _is_dummy(survey):
        return None
    # Unknown values are a finding of their own, and nobody knows whether they are void.
    names = [i.name for i in survey.measured if survey.pixels_of(i, VOID) == _num_pixels(i)]
    what = "images without a single pixel that counts (all void)"
    if len(names) == len(survey.measured):
        advice = "There is nothing to measure: check that these are the label files."
        return of_names("nothing_counts", "error", names, what, advice)
    advice = "They change no number; look at them, in case a label file was mixed up."
    # Lost and Found, as published, has a few.
    severity: Severity = "warning" if len(names) > len(survey.measured) / 2 else "note"
    return of_names("nothing_counts", severity, names, what, advice)


def no_truth(survey: Survey) -> Finding | None:
    """Find images whose truth is not published."""
    names = [i.name for i in survey.images if i.values is None and not i.fault]
    advice = "Scores can be exported for the set's own server; nothing is measured on them here."
    return of_names("no_truth", "warning", names, "images without a published truth", advice)


def void_counts_as_anomaly(survey: Survey) -> Finding | None:
    """Find 255 taken for an anomaly, as some copies of the course's script do."""
    if VOID not in survey.meanings or survey.meanings[VOID].anomaly != ANOMALY:
        return None
    names = [name for name, values in _values(survey) if values[VOID]]
    advice = (
        "In Fishyscapes and SegmentMeIfYouCan 255 is void: move it to void_values of "
        f"{survey.key}, unless this set says otherwise."
    )
    what = "images in which 255 counts as anomaly"
    return of_names("void_counts_as_anomaly", "warning", names, what, advice)


def _holding(survey: Survey, wanted: Collection[int]) -> tuple[list[str], str]:
    """Return the images with such label values, and which values how many of the pixels have."""
    counts, chosen = survey.values(), sorted(wanted)
    names = [name for name, values in _values(survey) if values[chosen].any()]
    shares = (
        f"{v} ({percent(counts[v] / counts.sum())} of all pixels)" for v in chosen if counts[v]
    )
    return names, ", ".join(shares)


def _values(survey: Survey) -> list[tuple[str, np.ndarray]]:
    """Return name and counted label values of each image that has them."""
    return [(image.name, image.values) for image in survey.images if image.values is not None]


def _num_pixels(image: ImageFacts) -> int:
    return 0 if image.values is None else int(image.values.sum())


def _is_zero(image: ImageFacts) -> bool:
    return image.values is not None and bool(image.values[0] == image.values.sum())


def _is_dummy(survey: Survey) -> bool:
    """Return whether every label map of the set holds nothing but 0."""
    return bool(survey.measured) and all(_is_zero(image) for image in survey.measured)
