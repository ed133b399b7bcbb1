"""Cuts out of a score map the regions at or above a threshold, as one would list what was found."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eomt_exp.evaluator.components import label_components


class Region(NamedTuple):
    """Holds one region: its box and area in pixels of the image, and the scores inside."""

    top: int
    left: int
    height: int
    width: int
    area: int
    mean: float
    highest: float


def regions_of(score: np.ndarray, threshold: float, smallest: int = 1) -> list[Region]:
    """Return the 8-connected components of score (H, W) >= threshold, highest mean score first.

    Components under `smallest` pixels are left out.
    """
    ids = label_components(np.ascontiguousarray(score >= threshold), smallest)
    rows, columns = np.nonzero(ids)
    numbers = ids[rows, columns] - 1
    count = int(numbers.max(initial=-1)) + 1
    inside = score[rows, columns]
    areas = np.bincount(numbers, minlength=count)
    means = np.bincount(numbers, inside, count) / areas
    highest = np.full(count, -np.inf)
    np.maximum.at(highest, numbers, inside)
    boxes = []
    for places, length in ((rows, score.shape[0]), (columns, score.shape[1])):
        first, last = np.full(count, length), np.zeros(count, int)
        np.minimum.at(first, numbers, places)
        np.maximum.at(last, numbers, places)
        boxes.append((first, last - first + 1))
    (tops, heights), (lefts, widths) = boxes
    columns_of_table = (tops, lefts, heights, widths, areas, means, highest)
    found = [Region(*one) for one in zip(*(c.tolist() for c in columns_of_table), strict=True)]
    return sorted(found, key=lambda region: -region.mean)
