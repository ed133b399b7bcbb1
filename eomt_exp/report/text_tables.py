"""Writes a leaderboard as text: CSV for programs, Markdown for notes, LaTeX for papers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence

from eomt_exp.report.latex import as_latex
from eomt_exp.report.leaderboard import Leaderboard, Result
from eomt_exp.report.metric_names import (
    KNOWN,
    MAIN,
    NOT_MEASURED,
    SEMANTIC,
    UNDEFINED,
    best_of_each,
    each_iou,
    is_best,
    measured,
    metric,
    ordered,
    shown,
    shown_interval,
)

__all__ = ["as_csv", "as_latex", "as_markdown"]

WARNING = "Not to be trusted"
KNOWN_SET = "data.val"  # where known classes are measured


def as_csv(board: Leaderboard) -> str:
    """Write a row a benchmark and method; numbers in full, so that they read back as they were.

    Known classes are the rows of benchmark "data.val", one a model and without a scorer.
    `<metric>_low` and `<metric>_high` follow a metric that has intervals. An empty cell was not
    measured, `nan` is undefined. A last column repeats the warnings, if any, in every row.
    """
    rows = [_result_row(result) for result in board.results]
    rows += [_known_classes_row(*entry) for entry in board.known_classes.items()]
    warnings = {"warnings": "; ".join(board.warnings)} if board.warnings else {}
    text = io.StringIO()
    fields = ["benchmark", "protocol", "model", "scorer", *_columns(board), *warnings]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "protocol": board.protocol, **warnings})
    return text.getvalue()


def _result_row(result: Result) -> dict[str, object]:
    bounds = {
        f"{key}_{end}": value
        for key, interval in result.intervals.items()
        if key in result.metrics
        for end, value in zip(("low", "high"), interval, strict=True)
    }
    named = {"benchmark": result.benchmark, "model": result.model, "scorer": result.scorer}
    return {**named, **result.metrics, **bounds}


def _known_classes_row(model: str, found: Mapping[str, float]) -> dict[str, object]:
    """Make the row of one model; single classes are in metrics.json."""
    named = {"benchmark": KNOWN_SET, "model": model, "scorer": ""}
    return {**named, **{key: value for key, value in found.items() if key in SEMANTIC}}


def _columns(board: Leaderboard) -> list[str]:
    """List metrics, each before the ends of its intervals where it has any."""
    known = (key for found in board.known_classes.values() for key in found if key in SEMANTIC)
    keys = ordered([*(key for result in board.results for key in result.metrics), *known])
    spread = {key for result in board.results for key in result.intervals}
    columns = ([key, f"{key}_low", f"{key}_high"] if key in spread else [key] for key in keys)
    return [name for group in columns for name in group]


def as_markdown(board: Leaderboard) -> str:
    """Write warnings, a table a benchmark, seeds, known classes and published numbers."""
    blocks = [f"# {_literal(board.title)}"]
    blocks += [f"> **{WARNING}:** {_literal(warning)}" for warning in board.warnings]
    if board.protocol:
        blocks.append(f"Protocol: {_literal(board.protocol)}.")
    blocks += [f"Note: {_literal(note)}" for note in board.notes]
    for benchmark in board.benchmarks:
        results = [result for result in board.results if result.benchmark == benchmark]
        blocks += [f"## {_literal(benchmark)}", _results_markdown(results, len(board.models) > 1)]
    if board.over_seeds:
        blocks += ["## Over seeds", _seeds_markdown(board)]
    if board.known_classes:
        blocks += ["## Known classes", _known_classes_markdown(board), *_iou_markdown(board)]
    if board.published:
        remark = "Other protocols, other images: see the last column before comparing."
        blocks += ["## Published", remark, _published_markdown(board)]
    return "\n\n".join(blocks) + "\n"


def _results_markdown(results: Sequence[Result], named: bool) -> str:
    """List methods down, metrics across; the best in bold, intervals beside their value."""
    keys = measured(MAIN, [result.metrics for result in results])
    winners = best_of_each(keys, [result.metrics for result in results])
    rows = []
    for result in results:
        cells = [_literal(result.method if named else result.scorer)]
        for key in keys:
            value = result.metrics.get(key)
            text = NOT_MEASURED if key not in result.metrics else shown(key, value)
            text = f"**{text}**" if is_best(key, value, winners[key]) else text
            if key in result.intervals and text.strip("*") != UNDEFINED:
                text += f" {shown_interval(key, *result.intervals[key])}"
            cells.append(text)
        rows.append(cells)
    return _markdown_table(["method", *(_literal(metric(key).heading) for key in keys)], rows)


def _seeds_markdown(board: Leaderboard) -> str:
    rows = [
        [
            *(_literal(name) for name in (row.benchmark, row.experiment, row.scorer)),
            _literal(metric(row.metric).heading),
            f"{shown(row.metric, row.mean)} ± {shown(row.metric, row.std)}",
            ", ".join(str(seed) for seed in row.seeds),
        ]
        for row in board.over_seeds
    ]
    return _markdown_table(
        ["benchmark", "experiment", "scorer", "metric", "mean ± std", "seeds"], rows
    )


def _known_classes_markdown(board: Leaderboard) -> str:
    keys = measured(SEMANTIC, [*board.known_classes.values()])
    rows = [
        [_literal(model), *(shown(key, found.get(key, math.nan)) for key in keys)]
        for model, found in board.known_classes.items()
    ]
    return _markdown_table(["model", *(metric(key).heading for key in keys)], rows)


def _iou_markdown(board: Leaderboard) -> list[str]:
    """List classes down, models across; then the same of categories."""
    models = [_literal(model) for model in board.known_classes]
    return [
        _markdown_table(
            [f"IoU of each {kind}", *models],
            [
                [_literal(name), *(NOT_MEASURED if v is None else shown("miou", v) for v in values)]
                for name, values in rows.items()
            ],
        )
        for kind, rows in each_iou(board.known_classes).items()
    ]


def _published_markdown(board: Leaderboard) -> str:
    keys = measured(KNOWN, [entry.values for entry in board.published])
    rows = [
        [
            _literal(entry.benchmark),
            _literal(entry.method),
            *(
                shown(key, entry.values[key]) if key in entry.values else NOT_MEASURED
                for key in keys
            ),
            _literal(entry.source),
            _literal(entry.protocol),
        ]
        for entry in board.published
    ]
    headings = [_literal(metric(key).heading) for key in keys]
    return _markdown_table(["benchmark", "method", *headings, "source", "protocol"], rows)


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _literal(text: str) -> str:
    """Escape a name: nothing in it is markup, and it breaks no line of a table."""
    marks: dict[str, str | int | None] = {mark: f"\\{mark}" for mark in "\\`*_[]|#~"}
    names = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return " ".join(text.split()).translate(str.maketrans({**marks, **names}))
