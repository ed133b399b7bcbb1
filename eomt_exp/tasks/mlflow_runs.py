"""Opens a run's MLflow run, and gives each evaluated method one, so that MLflow compares them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from eomt_exp.report.leaderboard import Leaderboard
from eomt_exp.studies.trial import Trial
from eomt_exp.tasks.candidate import Candidate
from eomt_exp.tasks.measure import CELLS
from eomt_exp.tasks.start import TaskSettings
from eomt_exp.tracking.run import MLflowTracker, Tracker
from eomt_exp.tracking.store import TrackingError

_OF_A_METHOD = ("method", "backbone", "seed")  # tags
_FACTS = ("experiment", "seed", "weights", "weights_sha256", "precision")
_log = logging.getLogger(__name__)


def open_tracker(
    settings: TaskSettings, run_dir: Path, is_main: bool, trial: Trial | None = None
) -> Tracker:
    """Open MLflow, or only metrics.jsonl, or, in the other processes, nothing.

    A trial's run is a child of its study's, in the experiment of that.
    """
    if not is_main:
        return Tracker()
    if not settings.tracking.enabled:
        return Tracker(run_dir)
    tags: dict[str, object] = dict(settings.tracking.tags)
    if trial:
        tags |= {"optuna.study": trial.study, "optuna.trial": trial.number}
    elif settings.evaluates and settings.has_checkpoint:  # its children have methods
        tags = {key: tags[key] for key in tags if key not in _OF_A_METHOD}
    return MLflowTracker(
        uri=settings.tracking.uri,
        experiment=settings.tracking.experiment,
        artifact_root=settings.tracking.artifacts,
        run_name=str(trial.run_name) if trial else f"{settings.name}-{settings.seed}",
        run_dir=run_dir,
        parent_run_id=trial.parent_run_id if trial else None,
        tags=tags,
    )


def compared_in_mlflow(
    settings: TaskSettings,
    board: Leaderboard,
    models: Sequence[Candidate],
    tracker: Tracker,
    run_dir: Path,
) -> str:
    """Return the page of MLflow that compares methods; "" where there is nothing to compare.

    A run is compared with the latest of each other method on its data. An evaluation has a child
    run a method; where it is of runs that were there before, these children are compared.
    """
    if not (isinstance(tracker, MLflowTracker) and settings.evaluates):
        return tracker.compare_link()
    try:
        children = _log_methods(settings, board, models, tracker, run_dir)
    except TrackingError as error:  # what was measured must not be lost over this
        _log.warning("MLflow has no runs of the single methods: %s", error)
        return ""
    return tracker.compare_link(children if settings.has_checkpoint else None)


def _log_methods(
    settings: TaskSettings,
    board: Leaderboard,
    models: Sequence[Candidate],
    parent: MLflowTracker,
    run_dir: Path,
) -> list[str]:
    """Log a child run a method, with `<metric>/<benchmark>`; return the ids of those runs.

    A method is a model with one of its scorers. The models' own scores come first.
    """
    by_label = {model.label: model for model in models}
    methods = dict.fromkeys((r.model, r.scorer) for r in board.results)
    ids = []
    for label, scorer in sorted(methods, key=lambda method: method[1] != by_label[method[0]].score):
        model = by_label[label]
        tags: dict[str, object] = dict(settings.tracking.tags)
        if settings.has_checkpoint and model.tags is not None:  # those of its training
            tags = model.tags | {"protocol": settings.protocol.name}
        with MLflowTracker(
            uri=parent.uri,
            experiment=parent.experiment,
            artifact_root=parent.artifact_root,
            run_name=f"{label} {scorer}",
            run_dir=run_dir / CELLS / label / scorer,
            parent_run_id=parent.run_id,
            tags={"scorer": scorer} | tags,
        ) as child:
            if board.warnings:
                child.set_tags({"warnings": "; ".join(board.warnings)})
            child.log_params({"scorer": scorer} | {name: model.facts[name] for name in _FACTS})
            child.log_metrics(
                {
                    f"{name}/{r.benchmark}": value
                    for r in board.results
                    if (r.model, r.scorer) == (label, scorer)
                    for name, value in r.metrics.items()
                }
                | {f"val/{k}": v for k, v in board.known_classes.get(label, {}).items()}
            )
            ids.append(child.run_id)
    return ids
