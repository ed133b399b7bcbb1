"""Finds traps in label values: what they mean or lack, and what only looks like a truth."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from eomt_exp.contracts import ANOMALY, NORMAL, VOID
from eomt_exp.data.checkup.finding import Finding, Severity, of_names
from eomt_exp.data.checkup.image_facts import ImageFacts
from eomt_exp.data.checkup.survey import UNMAPPED, Survey, percent
from eomt_exp.data.files.label_values import spans

_LOOK = "Look whether these are the label files, and what the set says their values mean."


def meanings(survey: Survey) -> Iterator[Finding | None]:
    """Find label values without a meaning, or without a class."""
    names, shares = _holding(survey, set(range(256)) - survey.meanings.keys())
    yield of_names(
        "unknown_values", "error", names, "images with label values that have no meaning here",
        f"The values: {shares}; known are {spans(survey.meanings)}. Look whether these are the "
        f"right files; if they are, {survey.key} must say what the values mean.",
    )  # fmt: skip
    unmapped = {value for value, meaning in survey.meanings.items() if meaning.name == UNMAPPED}
    names, shares = _holding(survey, unmapped)
    yield of_names(
        "unmapped_values", "warning", names, "images with label values that have no class",
        f"The values: {shares}; these pixels count as void. Give each a class in label_values of "
        f"{survey.key}, or list it in void_values.",
    )  # fmt: skip


def truths(survey: Survey) -> Iterator[Finding | None]:
    """Find label maps that are no truth, hold no anomaly, or in which nothing counts."""
    measured = survey.measured
    zeros = [image.name for image in measured if _is_zero(image)]
    if measured and len(zeros) == len(measured):
        yield of_names(
            "dummy_labels", "error", zeros, "label maps of nothing but the value 0",
            "All are: dummies of a truth that is not published. Take the set's validation part.",
        )  # fmt: skip
    else:
        if survey.has_anomalies:
            yield _without_anomaly(survey)
            yield _no_normal_pixel(survey)
        else:  # where there are anomalies, 0 mostly means normal
            yield of_names(
                "dummy_labels", "warning", zeros, "label maps of nothing but the value 0",
                "A dummy, or a lost one: look at it.",
            )  # fmt: skip
        yield _nothing_counts(survey)
    yield of_names(
        "no_truth", "warning", [i.name for i in survey.images if not i.is_measured and not i.fault],
        "images without a published truth",
        "Scores can be exported for the set's own server; nothing is measured on them here.",
    )  # fmt: skip
    if VOID in survey.meanings and survey.meanings[VOID].anomaly == ANOMALY:
        yield of_names(  # as some copies of the course's script take it
            "void_counts_as_anomaly", "warning", [i.name for i in measured if i.values[VOID]],
            "images in which 255 counts as anomaly",
            "In Fishyscapes and SegmentMeIfYouCan 255 is void: move it to void_values of "
            f"{survey.key}, unless this set says otherwise.",
        )  # fmt: skip


def _without_anomaly(survey: Survey) -> Finding | None:
    """Find images where every pixel that counts is normal, and none has an unknown value."""
    empty = [
        image
        for image in survey.measured
        if survey.pixels_of(image, NORMAL)
        and survey.pixels_of(image, NORMAL, VOID) == image.values.sum()
    ]
    advice = (
        "They are kept and count as normal. Leaving them out, as the course's script does, makes a "
        "set easier (Fishyscapes Static: 24 points of AP): compare only with numbers that kept "
        "them too."
    )
    severity = _by_number(empty, survey.measured)
    if severity == "warning":
        advice += (
            f" It is most of the set, and {sum(map(_is_zero, empty))} hold nothing but the value 0,"
            " as the dummy labels of a truth that is not published do: check where they come from."
        )
    if len(empty) == len(survey.measured):
        severity = "error"
        advice = f"No metric has a value without an anomaly. {_LOOK}"
    names = [image.name for image in empty]
    return of_names("without_anomaly", severity, names, "images without any anomaly", advice)


def _no_normal_pixel(survey: Survey) -> Finding | None:
    """Find a set that has anomalies, and in which no pixel is normal."""
    if any(survey.pixels_of(image, NORMAL) for image in survey.measured):
        return None
    names = [image.name for image in survey.measured if survey.pixels_of(image, ANOMALY)]
    advice = f"No metric has a value without normal pixels. {_LOOK}"
    what = "images with anomalies, and in none a normal pixel"
    return of_names("no_normal_pixel", "error", names, what, advice)


def _nothing_counts(survey: Survey) -> Finding | None:
    """Find images whose label map is void throughout; unknown values are another finding."""
    measured = survey.measured
    names = [i.name for i in measured if survey.pixels_of(i, VOID) == i.values.sum()]
    severity = _by_number(names, measured)  # Lost and Found, as published, has a few
    advice = "They change no number; look at them, in case a label file was mixed up."
    if len(names) == len(measured):
        severity = "error"
        advice = f"Nothing can be measured or learnt. {_LOOK}"
    what = "images without a single pixel that counts (all void)"
    return of_names("nothing_counts", severity, names, what, advice)


def _by_number(some: Sequence[object], measured: Sequence[ImageFacts]) -> Severity:
    return "warning" if len(some) > len(measured) / 2 else "note"


def _is_zero(image: ImageFacts) -> bool:
    return bool(image.values[0] == image.values.sum())


def _holding(survey: Survey, wanted: Collection[int]) -> tuple[list[str], str]:
    """Return the images with such label values, and which values how many of the pixels have."""
    counts, chosen = survey.values(), sorted(wanted)
    names = [image.name for image in survey.measured if image.values[chosen].any()]
    shares = (
        f"{v} ({percent(counts[v] / counts.sum())} of all pixels)" for v in chosen if counts[v]
    )
    return names, ", ".join(shares)
