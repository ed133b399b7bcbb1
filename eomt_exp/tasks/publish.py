"""Evaluates models, and publishes what was found: table, files, report, MLflow.

It is what task=evaluate does, and task=train once it has trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eomt_exp import runs
from eomt_exp.files import write_text
from eomt_exp.paths import ui_steps
from eomt_exp.report.figures import curves_figure, heat_map_figure
from eomt_exp.report.html_report import write_report
from eomt_exp.report.latex import as_latex
from eomt_exp.report.leaderboard import Leaderboard
from eomt_exp.report.published import published_for
from eomt_exp.report.results import compared, gathered_over_seeds
from eomt_exp.report.terminal import print_report, write_metrics
from eomt_exp.report.text_tables import as_csv, as_markdown
from eomt_exp.report.training_figure import training_figure
from eomt_exp.tasks.candidate import Candidate
from eomt_exp.tasks.manifest import manifest_of, notes_on, saved_manifest
from eomt_exp.tasks.measure import Cells
from eomt_exp.tasks.mlflow_runs import compared_in_mlflow
from eomt_exp.tasks.start import TaskSettings
from eomt_exp.tracking.metrics_file import FILE_NAME as JOURNAL
from eomt_exp.tracking.metrics_file import read_journal
from eomt_exp.tracking.run import MLflowTracker, Tracker

REPORT = "report.html"


def evaluate_models(
    cells: Cells, models: Sequence[Candidate], tracker: Tracker, shown: bool = True
) -> None:
    """Measure each model on every benchmark, and publish; it is loaded where a cell is missing."""
    for model in models:
        model.known = cells.known_classes(model)
        names = cells.images.benchmarks
        model.cells = {name: cells.cell(model, name, model.known) for name in names}
        model.let_go()  # one model in memory at a time
    if cells.is_main:
        settings = cells.measurement.settings
        board = leaderboard_of(settings, models, list(cells.images.benchmarks))
        publish(settings, board, models, tracker, cells.folder, shown)


def leaderboard_of(
    settings: TaskSettings, models: Sequence[Candidate], benchmarks: Sequence[str]
) -> Leaderboard:
    """Collect all cells of an evaluation."""
    by_benchmark = [[model.cells[name] for model in models] for name in benchmarks]
    by_benchmark = [cells for cells in by_benchmark if any(cell.results for cell in cells)]
    results = [r for cells in by_benchmark for cell in cells for r in cell.results]
    resamples = settings.evaluator.resamples
    return Leaderboard(
        title=settings.name,
        results=results,
        known_classes={m.label: m.known.metrics for m in models if m.known.metrics},
        examples={(m.label, name): cell.examples for m in models for name, cell in m.cells.items()},
        comparisons=[c for cells in by_benchmark for c in compared(cells, resamples)],
        over_seeds=gathered_over_seeds(results, {m.label: m.run for m in models if m.run}),
        published=published_for(benchmarks, {m.architecture for m in models}),
        manifest=manifest_of(settings, models),
        warnings=[f"{m.label}: {text}" for m in models for text in m.warnings.values()],
        notes=notes_on(models),
    )


def publish(
    settings: TaskSettings,
    board: Leaderboard,
    models: Sequence[Candidate],
    tracker: Tracker,
    run_dir: Path,
    shown: bool = True,
) -> None:
    """Write, log and print; metrics.json says that a run is complete, so it is written last.

    With `shown` false nothing is printed: a study has a table of its own.
    """
    metrics = board.flat_metrics()
    figures = _draw(board, run_dir / "figures")
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
    step = int(max((line["step"] for line in read_journal(run_dir / JOURNAL)), default=0))
    tracker.log_metrics(metrics | _of_own_score(models, board), step)
    tracker.flush()
    # A trial is compared by its study.
    link = compared_in_mlflow(settings, board, models, tracker, run_dir) if shown else ""
    saved = {"metrics": metrics, "manifest": saved_manifest(board)}
    write_metrics(run_dir / runs.METRICS, saved)
    tracker.log_artifact(run_dir / runs.METRICS)
    if shown:
        print_report(saved, run_dir, board.published)
        if isinstance(tracker, MLflowTracker) and (steps := ui_steps(tracker.uri, link)):
            print(f"compare with other runs: {steps}", flush=True)


def _of_own_score(models: Sequence[Candidate], board: Leaderboard) -> dict[str, float]:
    """Return `<metric>/<benchmark>` of the score that a method goes by: of all methods one key.

    The metric stands first because MLflow's pages sort by name, and have hundreds of them.
    """
    own = [r for r in board.results if len(models) == 1 and r.scorer == models[0].score]
    return {f"{name}/{r.benchmark}": r.metrics[name] for r in own for name in r.intervals}


def _draw(board: Leaderboard, folder: Path) -> list[Path]:
    """Draw heat maps of each model's own score, and the curves of all methods on each benchmark."""
    drawn = []
    for (model, name), examples in board.examples.items():
        if examples:
            scorer = examples[0].scorer
            score = f"{model}_{scorer}" if len(board.models) > 1 else scorer
            path = folder / f"{name}_{score}.png"
            drawn.append(heat_map_figure(examples, path, f"{name} · {score.replace('_', ' ')}"))
    for name in board.benchmarks:
        drawn.append(curves_figure(board, name, folder / f"{name}_curves.png"))
    return drawn
