"""A leaderboard as text: CSV for programs, Markdown for notes, LaTeX for papers."""

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
    best,
    each_iou,
    is_best,
    metric,
    ordered,
    shown,
    shown_interval,
)

__all__ = ["as_csv", "as_latex", "as_markdown"]

STAMP = "Not to be trusted"
KNOWN_SET = "data.val"  # where known classes are measured


def as_csv(board: Leaderboard) -> str:
    """One row a benchmark and method; numbers in full, so that they read back as they were.

    Known classes are the rows of benchmark "data.val", one a model and without a scorer.
    `<metric>_low` and `<metric>_high` follow a metric that has intervals. An empty cell was not
    measured, `nan` is undefined. A stamped leaderboard says so in a last column, on every row.
    """
    measured = [_measured(result) for result in board.results]
    rows = [*measured, *(_on_known_classes(*of) for of in board.known_classes.items())]
    stamps = {"stamps": "; ".join(board.stamps)} if board.stamps else {}
    text = io.StringIO()
    fields = ["benchmark", "protocol", "model", "scorer", *_columns(board), *stamps]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "protocol": board.protocol, **stamps})
    return text.getvalue()


def _measured(result: Result) -> dict[str, object]:
    """A row of one method on one benchmark."""
    bounds = {
        f"{key}_{end}": value
        for key, interval in result.intervals.items()
        if key in result.metrics
        for end, value in zip(("low", "high"), interval, strict=True)
    }
    named = {"benchmark": result.benchmark, "model": result.model, "scorer": result.scorer}
    return {**named, **result.metrics, **bounds}


def _on_known_classes(model: str, found: Mapping[str, float]) -> dict[str, object]:
    """A row of one model; single classes are in metrics.json."""
    named = {"benchmark": KNOWN_SET, "model": model, "scorer": ""}
    return {**named, **{key: value for key, value in found.items() if key in SEMANTIC}}


def _columns(board: Leaderboard) -> list[str]:
    """Metrics, each before the ends of its intervals where it has any."""
    known = (key for found in board.known_classes.values() for key in found if key in SEMANTIC)
    keys = ordered([*(key for result in board.results for key in result.metrics), *known])
    spread = {key for result in board.results for key in result.intervals}
    columns = ([key, f"{key}_low", f"{key}_high"] if key in spread else [key] for key in keys)
    return [name for group in columns for name in group]


def as_markdown(board: Leaderboard) -> str:
    """Stamps, then a table a benchmark, then seeds, known classes and published numbers."""
    blocks = [f"# {_plain(board.title)}"]
    blocks += [f"> **{STAMP}:** {_plain(stamp)}" for stamp in board.stamps]
    if board.protocol:
        blocks.append(f"Protocol: {_plain(board.protocol)}.")
    blocks += [f"Note: {_plain(note)}" for note in board.notes]
    for benchmark in board.benchmarks:
        results = [result for result in board.results if result.benchmark == benchmark]
        blocks += [f"## {_plain(benchmark)}", _results(results, len(board.models) > 1)]
    if board.over_seeds:
        blocks += ["## Over seeds", _over_seeds(board)]
    if board.known_classes:
        blocks += ["## Known classes", _known_classes(board), *_ious(board)]
    if board.anchors:
        remark = "Other protocols, other images: see the last column before comparing."
        blocks += ["## Published", remark, _anchors(board)]
    return "\n\n".join(blocks) + "\n"


def _results(results: Sequence[Result], named: bool) -> str:
    """Methods down, metrics across; the best in bold, intervals beside their value."""
    keys = [key for key in MAIN if any(key in result.metrics for result in results)]
    winners = {key: best(key, [result.metrics.get(key) for result in results]) for key in keys}
    rows = []
    for result in results:
        cells = [_plain(result.method if named else result.scorer)]
        for key in keys:
            value = result.metrics.get(key)
            text = NOT_MEASURED if key not in result.metrics else shown(key, value)
            text = f"**{text}**" if is_best(key, value, winners[key]) else text
            if key in result.intervals and text.strip("*") != UNDEFINED:
                text += f" {shown_interval(key, *result.intervals[key])}"
            cells.append(text)
        rows.append(cells)
    return _table(["method", *(_plain(metric(key).heading) for key in keys)], rows)


def _over_seeds(board: Leaderboard) -> str:
    rows = [
        [
            *(_plain(name) for name in (row.benchmark, row.experiment, row.scorer)),
            _plain(metric(row.metric).heading),
            f"{shown(row.metric, row.mean)} ± {shown(row.metric, row.std)}",
            ", ".join(str(seed) for seed in row.seeds),
        ]
        for row in board.over_seeds
    ]
    return _table(["benchmark", "experiment", "scorer", "metric", "mean ± std", "seeds"], rows)


def _known_classes(board: Leaderboard) -> str:
    keys = [key for key in SEMANTIC if any(key in v for v in board.known_classes.values())]
    rows = [
        [_plain(model), *(shown(key, found.get(key, math.nan)) for key in keys)]
        for model, found in board.known_classes.items()
    ]
    return _table(["model", *(metric(key).heading for key in keys)], rows)


def _ious(board: Leaderboard) -> list[str]:
    """Classes down, models across; then the same of categories."""
    models = [_plain(model) for model in board.known_classes]
    return [
        _table(
            [f"IoU of each {kind}", *models],
            [
                [_plain(name), *(NOT_MEASURED if v is None else shown("miou", v) for v in values)]
                for name, values in rows.items()
            ],
        )
        for kind, rows in each_iou(board.known_classes).items()
    ]


def _anchors(board: Leaderboard) -> str:
    keys = [key for key in KNOWN if any(key in anchor.values for anchor in board.anchors)]
    rows = [
        [
            _plain(anchor.benchmark),
            _plain(anchor.method),
            *(
                shown(key, anchor.values[key]) if key in anchor.values else NOT_MEASURED
                for key in keys
            ),
            _plain(anchor.source),
            _plain(anchor.protocol),
        ]
        for anchor in board.anchors
    ]
    headings = [_plain(metric(key).heading) for key in keys]
    return _table(["benchmark", "method", *headings, "source", "protocol"], rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Names as they are: nothing in them is markup, and none breaks a line of a table."""
    marks: dict[str, str | int | None] = {mark: f"\\{mark}" for mark in "\\`*_[]|#~"}
    names = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return " ".join(text.split()).translate(str.maketrans({**marks, **names}))
