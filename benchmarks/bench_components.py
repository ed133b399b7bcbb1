"""Component metrics: all overlaps at once, against a pass over the image for each component.

Both sides get the same 1080p scenes and return the same numbers (tests/test_components.py). The
other side is written straight from the definitions, in Python loops as SMIYC's own code has them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import timing
from eomt_exp.evaluator.components import ComponentCounts
from tests import component_metrics_by_hand as by_hand

SHAPE = (1080, 1920)
SCENES = {  # rows and columns of predicted components, and how many true ones
    "900 predicted, 140 true": (30, 30, 140),
    "16 predicted, 6 true": (4, 4, 6),
}
WANTED = {"900 predicted, 140 true": 50.0}

Side = Callable[[], dict[str, float]]


def make_scene(
    shape: tuple[int, int], rows: int, columns: int, true: int, seed: int = 0
) -> by_hand.Image:
    """(H, W) scores and labels: a predicted box in each cell, true ones moved off some of them."""
    rng = np.random.default_rng(seed)
    height, width = shape[0] // rows, shape[1] // columns
    scores, labels = rng.random(shape, np.float32) * 0.4, np.zeros(shape, np.uint8)
    for cell in range(rows * columns):
        top, left = cell // columns * height, cell % columns * width
        tall, wide = (int(rng.uniform(0.5, 0.7) * side) for side in (height, width))
        scores[top : top + tall, left : left + wide] = 0.9
    for cell in rng.choice(rows * columns, true, replace=False):
        top, left = cell // columns * height, cell % columns * width
        down, right = (int(rng.uniform(0, 0.4) * side) for side in (height, width))
        # The last line and column of a cell stay free, so that true components do not meet.
        labels[top + down : top + height - 1, left + right : left + width - 1] = 1
    labels[:, : width // 16] = 255
    return scores, labels


def sides(scene: by_hand.Image, min_predicted: int = 500, min_true: int = 100) -> tuple[Side, Side]:
    """Ours and theirs: all metrics of one image."""

    def ours() -> dict[str, float]:
        counts = ComponentCounts(0.5, min_predicted, min_true)
        counts.update(*scene)
        return counts.results()

    return ours, lambda: by_hand.metrics([scene], 0.5, min_predicted, min_true)


def main() -> None:
    """Run both sides and print the table."""
    chosen = options()
    torch.set_num_threads(chosen.threads)
    rows = []
    for what, (lines, columns, true) in SCENES.items():
        ours, theirs = sides(make_scene(SHAPE, lines, columns, true))
        rows.append(
            timing.compare(
                what, ours, theirs, repeats=chosen.repeats, wanted=WANTED.get(what), warm_up=0
            )
        )
    title = f"Component metrics of one {SHAPE[1]}x{SHAPE[0]} image. {timing.machine('cpu')}"
    timing.console().print(timing.table(title, rows, theirs="by definition"))


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    return timing.parser(__doc__, repeats=3, threads=1).parse_args(arguments)


if __name__ == "__main__":
    main()
