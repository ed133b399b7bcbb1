"""Evaluates models: what task=evaluate does, and task=train once it has trained."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from eomt_exp.tasks.candidate import Candidate
from eomt_exp.tasks.image_sets import ImageSets
from eomt_exp.tasks.measure import Cells
from eomt_exp.tasks.publish import leaderboard_of, publish
from eomt_exp.tracking.run import Tracker


def evaluate_models(
    cfg: DictConfig,
    cells: Cells,
    models: Sequence[Candidate],
    images: ImageSets,
    tracker: Tracker,
    shown: bool = True,
) -> None:
    """Measure each model on every benchmark, and publish; it is loaded where a cell is missing."""
    found = {}
    for model in models:
        known = cells.known_classes(model, images)
        names = images.benchmarks
        found[model] = known, {name: cells.cell(model, images, name, known) for name in names}
        if len(models) > 1:
            model.let_go()  # one model in memory at a time
    if cells.is_main:
        board = leaderboard_of(cfg, found, images)
        publish(cfg, board, models, tracker, cells.folder, shown)
