"""Lists what can be wrong with a data set, each met in the field; judges whether to trust it.

An error keeps the numbers from being computed or believed, a warning changes what they mean, a note
is harmless here and worth knowing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import get_args

from eomt_exp.data.checkup import file_traps as files
from eomt_exp.data.checkup import label_traps as labels
from eomt_exp.data.checkup.finding import Finding, Severity, of_names
from eomt_exp.data.checkup.survey import Survey

TRAPS = (files.unusable, files.formats, files.versions, labels.meanings, labels.truths)


def findings(survey: Survey, others: Sequence[Survey] = ()) -> list[Finding]:
    """Return what there is to know of a set by itself and beside others, worst first."""
    shared = (shared_images(other, survey) for other in others)
    found = [*shared, *chain.from_iterable(trap(survey) for trap in TRAPS)]
    order = get_args(Severity)
    return sorted((f for f in found if f is not None), key=lambda f: order.index(f.severity))


def verdict(found: Iterable[Finding]) -> str:
    """Return "broken", "warnings" or "ok"; notes change nothing."""
    severities = {finding.severity for finding in found}
    return "broken" if "error" in severities else "warnings" if "warning" in severities else "ok"


def shared_images(one: Survey, other: Survey) -> Finding | None:
    """Find pictures with equal pixels in both sets; a leak where the one is trained on.

    Copies that were compressed or resized anew have other pixels and are not found.
    """
    known = {image.picture: image.name for image in one.images if image.picture}
    pairs = [
        f"{image.name} = {known[image.picture]}" for image in other.images if image.picture in known
    ]
    what = f"images that are also in {one.key}"
    if one.role == "train":
        return of_names(
            "leak", "error", pairs, what,
            "A leak: what was trained on would be measured on, and no such number can be believed. "
            "Take them out of one of the two.",
        )  # fmt: skip
    return of_names(
        "shared_images", "warning", pairs, what,
        "Choose nothing (threshold, checkpoint) on the one if you report the other, and do not "
        "count the two as independent results.",
    )  # fmt: skip
