"""Evaluates models, and publishes what was found: table, files, report, MLflow.

It is what task=evaluate does, and task=train once it has trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eomt_exp import runs
from eomt_exp.files import write_text
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
from eomt_exp.tasks.manifest import Measured, manifest_of, notes_on, saved_manifest
from eomt_exp.tasks.measure import Cells
from eomt_exp.tasks.mlflow_runs import compared_in_mlflow
from eomt_exp.tasks.start import TaskSettings
from eomt_exp.tracking.metrics_file import FILE_NAME as JOURNAL
from eomt_exp.tracking.metrics_file import read_journal
from eomt_exp.tracking.run import Tracker

REPORT = "report.html"


def evaluate_models(
    cells: Cells, models: Sequence[Candidate], tracker: Tracker, shown: bool = True
) -> None:
    """Measure each model on every benchmark, and publish; it is loaded where a cell is missing."""
    found = {}
    for model in models:
        known = cells.known_classes(model)
        found[model] = known, {n: cells.cell(model, n, known) for n in cells.images.benchmarks}
        if len(models) > 1:
            model.let_go()  # one model in memory at a time
    if cells.is_main:
        settings = cells.measurement.settings
        board = leaderboard_of(settings, found, list(cells.images.benchmarks))
        publish(settings, board, models, tracker, cells.folder, shown)


def leaderboard_of(
    settings: TaskSettings, measured: Measured, benchmarks: Sequence[str]
) -> Leaderboard:
    """Collect all cells of an evaluation."""
    models = list(measured)
    by_benchmark = [[found[name] for _, found in measured.values()] for name in benchmarks]
    results = [r for _, f in measured.values() for cell in f.values() for r in cell.results]
    resamples = settings.evaluator.resamples
    return Leaderboard(
        title=settings.name,
        results=sorted(results, key=lambda r: benchmarks.index(r.benchmark)),
        known_classes={
            m.label: known.metrics for m, (known, _) in measured.items() if known.metrics
        },
        examples={
            (model.label, name): cell.examples
            for model, (_, found) in measured.items()
            for name, cell in found.items()
        },
        comparisons=[c for cells in by_benchmark for c in compared(cells, resamples)],
        over_seeds=gathered_over_seeds(results, {m.label: m.run for m in models if m.run}),
        published=published_for(list(benchmarks), {m.architecture for m in models}),
        manifest=manifest_of(settings, measured),
        warnings=[f"{m.label}: {text}" for m in models for text in m.warnings.values()],
        notes=notes_on(measured),
    )


def publish(
    settings: TaskSettings,
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
    step = int(max((line["step"] for line in read_journal(run_dir / JOURNAL)), default=0))
    tracker.log_metrics(metrics | _of_own_score(settings, board), step)
    tracker.flush()
    # A trial is compared by its study.
    link = compared_in_mlflow(settings, board, models, tracker, run_dir) if shown else ""
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


def _of_own_score(settings: TaskSettings, board: Leaderboard) -> dict[str, float]:
    """Return `<metric>/<benchmark>` of the score that a method goes by: of all methods one key.

    The metric stands first because MLflow's pages sort by name, and have hundreds of them.
    """
    own = [r for r in board.results if len(board.models) == 1 and r.scorer == settings.score]
    return {f"{name}/{r.benchmark}": r.metrics[name] for r in own for name in r.intervals}


def _draw(board: Leaderboard, models: Sequence[Candidate], folder: Path) -> list[Path]:
    """Draw heat maps of each model's own score, and the curves of all methods on each benchmark."""
    drawn, alone = [], len(models) == 1
    for model in models:
        for name in board.benchmarks:
            if examples := board.examples.get((model.label, name)):
                score = model.score if alone else f"{model.label}_{model.score}"
                path = folder / f"{name}_{score}.png"
                drawn.append(heat_map_figure(examples, path, f"{name} · {score.replace('_', ' ')}"))
    for name in board.benchmarks:
        drawn.append(curves_figure(board, name, folder / f"{name}_curves.png"))
    return drawn
