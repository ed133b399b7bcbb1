"""Publishes what an evaluation found: table, files, report, MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from eomt_exp import runs
from eomt_exp.files import write_text
from eomt_exp.report.cells import Cell
from eomt_exp.report.figures import curves_figure, heat_map_figure
from eomt_exp.report.html_report import write_report
from eomt_exp.report.latex import as_latex
from eomt_exp.report.leaderboard import Leaderboard
from eomt_exp.report.published import published_for
from eomt_exp.report.results import compared, gathered_over_seeds
from eomt_exp.report.terminal import print_report, write_metrics
from eomt_exp.report.text_tables import as_csv, as_markdown
from eomt_exp.report.training_figure import training_figure
from eomt_exp.studies.trial import Trial
from eomt_exp.tasks.candidate import Candidate, KnownClasses
from eomt_exp.tasks.image_sets import ImageSets
from eomt_exp.tasks.manifest import manifest_of, notes_on, saved_manifest
from eomt_exp.tasks.measure import CELLS
from eomt_exp.tracking.comparison import MOST, compare_link
from eomt_exp.tracking.metrics_file import FILE_NAME as JOURNAL
from eomt_exp.tracking.metrics_file import read_journal
from eomt_exp.tracking.run import MLflowTracker, Tracker
from eomt_exp.tracking.store import TrackingError

_log = logging.getLogger(__name__)

REPORT = "report.html"


def open_tracker(
    cfg: DictConfig, run_dir: Path, is_main: bool, trial: Trial | None = None
) -> Tracker:
    """Open MLflow, or only metrics.jsonl, or, in the other processes, nothing.

    A trial's run is a child of its study's, in the experiment of that.
    """
    if not is_main:
        return Tracker()
    if not cfg.tracking.enabled:
        return Tracker(run_dir)
    tags: dict[str, object] = dict(cfg.tracking.tags)
    if trial:
        tags |= {"optuna.study": trial.study, "optuna.trial": trial.number}
        return _mlflow(cfg, run_dir, str(trial.run_name), tags, trial.parent_run_id)
    if _is_evaluation(cfg) and cfg.checkpoint:  # its children have methods
        tags = {key: tags[key] for key in tags if key not in ("method", "backbone", "seed")}
    return _mlflow(cfg, run_dir, f"{cfg.name}-{cfg.seed}", tags)


def leaderboard_of(
    cfg: DictConfig,
    measured: Mapping[Candidate, tuple[KnownClasses, Mapping[str, Cell]]],
    images: ImageSets,
) -> Leaderboard:
    """Collect all cells of an evaluation."""
    models = list(measured)
    cells = [cell for _, found in measured.values() for cell in found.values()]
    results = [result for cell in cells for result in cell.results]
    by_benchmark = [
        [found[name] for _, found in measured.values() if name in found]
        for name in images.benchmarks
    ]
    return Leaderboard(
        title=str(cfg.name),
        results=sorted(results, key=lambda r: list(images.benchmarks).index(r.benchmark)),
        known_classes={
            m.label: known.metrics for m, (known, _) in measured.items() if known.metrics
        },
        examples={
            (model.label, name): cell.examples
            for model, (_, found) in measured.items()
            for name, cell in found.items()
        },
        comparisons=[c for part in by_benchmark for c in compared(part, cfg.evaluator.resamples)],
        over_seeds=gathered_over_seeds(
            results, {m.label: m.as_seeded() for m in models if m.trained is not None}
        ),
        published=published_for(
            list(images.benchmarks), {str(m.cfg.model._target_).rpartition(".")[2] for m in models}
        ),
        manifest=manifest_of(cfg, measured),
        warnings=[f"{m.label}: {text}" for m in models for text in m.warnings.values()],
        notes=notes_on(measured),
    )


def publish(
    cfg: DictConfig,
    board: Leaderboard,
    models: Sequence[Candidate],
    tracker: Tracker,
    run_dir: Path,
    shown: bool = True,
) -> dict[str, float]:
    """Write, log and print; metrics.json says that a run is complete, so it is written last.

    With `shown` false nothing is printed: a study has a table of its own.
    """
    metrics = board.flat_metrics()
    figures = _draw(board, models, run_dir / "figures")
    if (run_dir / runs.STATES).is_dir():  # it was trained here
        figures.append(training_figure(run_dir / JOURNAL, run_dir / "figures" / "training.png"))
    texts = {".csv": as_csv(board), ".md": as_markdown(board), ".tex": as_latex(board)}
    files = [run_dir / f"leaderboard{ending}" for ending in texts]
    for path, text in zip(files, texts.values(), strict=True):
        write_text(path, text)
    files += [write_report(board, run_dir / REPORT), run_dir / runs.CONFIG]
    for path in figures:
        tracker.log_artifact(path, "figures")
    for path in files:
        tracker.log_artifact(path)
    if board.warnings:
        tracker.set_tags({"warnings": "; ".join(board.warnings)})
    tracker.log_metrics(metrics | _of_own_score(cfg, board), _last_step(run_dir))
    tracker.flush()
    link = ""
    if isinstance(tracker, MLflowTracker):
        try:
            link = _compared(cfg, board, models, tracker, run_dir)
        except TrackingError as error:  # what was measured must not be lost over this
            _log.warning("MLflow has no runs of the single methods: %s", error)
    write_metrics(run_dir / runs.METRICS, metrics, saved_manifest(board))
    tracker.log_artifact(run_dir / runs.METRICS)
    if not shown:
        return metrics
    if not metrics:
        print("nothing was measured: benchmark=none, and no known classes.")
    print_report(
        metrics,
        run_dir,
        figures,
        intervals=board.flat_intervals(),
        warnings=board.warnings,
        notes=[f"protocol {board.protocol}", *board.notes],
        published=board.published,
        seeds=board.over_seeds,
    )
    if link:
        print(link, flush=True)
    return metrics


def show_again(saved: Mapping[str, Any], run_dir: Path) -> None:
    """Show the table of a run that is complete, from its metrics.json."""
    manifest = saved["manifest"]
    print_report(
        saved["metrics"],
        run_dir,
        sorted((run_dir / "figures").glob("*.png")),
        intervals={key: tuple(pair) for key, pair in manifest.get("intervals", {}).items()},
        warnings=manifest.get("warnings", manifest.get("stamps", [])),  # their old name
        notes=manifest.get("notes", []),
    )


def _of_own_score(cfg: DictConfig, board: Leaderboard) -> dict[str, float]:
    """Return `<metric>/<benchmark>` of the score that a method goes by: of all methods one key.

    The metric stands first because MLflow's pages sort by name, and have hundreds of them.
    """
    own = [r for r in board.results if len(board.models) == 1 and r.scorer == cfg.score]
    return {f"{name}/{r.benchmark}": r.metrics[name] for r in own for name in r.intervals}


def _compared(
    cfg: DictConfig,
    board: Leaderboard,
    models: Sequence[Candidate],
    tracker: MLflowTracker,
    run_dir: Path,
) -> str:
    """Return the line that links to MLflow's comparison; "" where there is nothing to compare.

    A run is compared with the latest of each other method on its data. An evaluation has a child
    run a method; where it is of runs that were there before, these children are compared.
    """
    children = _log_methods(cfg, board, models, tracker, run_dir) if _is_evaluation(cfg) else []
    if not (_is_evaluation(cfg) and cfg.checkpoint):
        others, link = tracker.comparison()
        return f"compare with {', '.join(others)} (make ui): {link}" if link else ""
    if len(children) < 2:
        return ""
    link = compare_link(children[:MOST], str(tracker.experiment_id), tracker.uri)
    return f"compare the methods (make ui): {link}"


def _log_methods(
    cfg: DictConfig,
    board: Leaderboard,
    models: Sequence[Candidate],
    parent: MLflowTracker,
    run_dir: Path,
) -> list[str]:
    """Log a child run a method, with `<metric>/<benchmark>`; return the ids of those runs.

    A method is a model with one of its scorers. The models' own scores come first.
    """
    ids: dict[str, bool] = {}
    for model, scorer in dict.fromkeys((r.model, r.scorer) for r in board.results):
        source = next(m for m in models if m.label == model)
        folder = run_dir / CELLS / model / scorer
        tags = {"scorer": scorer} | _tags_of(cfg, source)
        with _mlflow(cfg, folder, f"{model} {scorer}", tags, parent.run_id) as child:
            names = ("experiment", "seed", "weights", "weights_sha256", "precision")
            if board.warnings:
                child.set_tags({"warnings": "; ".join(board.warnings)})
            child.log_params({"scorer": scorer, **{name: source.facts[name] for name in names}})
            child.log_metrics(
                {
                    f"{name}/{r.benchmark}": value
                    for r in board.results
                    if (r.model, r.scorer) == (model, scorer)
                    for name, value in r.metrics.items()
                }
                | {f"val/{k}": v for k, v in board.known_classes.get(model, {}).items()}
            )
            ids[child.run_id] = scorer != source.cfg.score
    return sorted(ids, key=lambda run_id: ids[run_id])


def _tags_of(cfg: DictConfig, model: Candidate) -> dict[str, object]:
    """Return the tags of an evaluated model: those of its training, under this protocol."""
    if not cfg.checkpoint or model.trained is None:
        return dict(cfg.tracking.tags)
    trained = model.trained
    facts = {"method": trained.name, "data": trained.data.name, "seed": trained.seed}
    return facts | dict(trained.tracking.tags) | {"protocol": cfg.protocol.name}


def _is_evaluation(cfg: DictConfig) -> bool:
    return str(cfg.task._target_).endswith("evaluate.run")


def _mlflow(
    cfg: DictConfig,
    folder: Path,
    run_name: str,
    tags: Mapping[str, object],
    parent: str | None = None,
) -> MLflowTracker:
    folder.mkdir(parents=True, exist_ok=True)
    return MLflowTracker(
        uri=cfg.tracking.uri,
        experiment=cfg.tracking.experiment,
        run_name=run_name,
        run_dir=folder,
        artifact_root=cfg.tracking.artifacts,
        parent_run_id=parent,
        tags=tags,
    )


def _draw(board: Leaderboard, models: Sequence[Candidate], folder: Path) -> list[Path]:
    """Draw heat maps of each model's own score, and the curves of all methods on each benchmark."""
    drawn = []
    alone = len(models) == 1
    for model in models:
        for name in board.benchmarks:
            if examples := board.examples.get((model.label, name)):
                score = str(model.cfg.score) if alone else f"{model.label}_{model.cfg.score}"
                path = folder / f"{name}_{score}.png"
                drawn.append(heat_map_figure(examples, path, f"{name} · {score.replace('_', ' ')}"))
    for name in board.benchmarks:
        drawn.append(curves_figure(board, name, folder / f"{name}_curves.png"))
    return drawn


def _last_step(run_dir: Path) -> int:
    return int(max((line["step"] for line in read_journal(run_dir / JOURNAL)), default=0))
