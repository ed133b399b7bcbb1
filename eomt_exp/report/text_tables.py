"""Writes a leaderboard as text: CSV for programs, Markdown for notes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from eomt_exp.evaluator.metrics import flagged
from eomt_exp.report import tables
from eomt_exp.report.leaderboard import Leaderboard, Result
from eomt_exp.report.metric_names import ordered
from eomt_exp.report.tables import Entry, Table

WARNING = "Not to be trusted"
KNOWN_SET = "data.val"  # where known classes are measured


def as_csv(board: Leaderboard) -> str:
    """Write a row a benchmark and method; numbers in full, so that they read back as they were.

    Known classes are the rows of benchmark "data.val", one a model and without a scorer.
    `<metric>_low` and `<metric>_high` follow a metric that has intervals. An empty cell was not
    measured, `nan` is undefined. A last column repeats the warnings, if any, in every row.
    """
    known = {  # single classes are in metrics.json
        model: {key: found[key] for key in flagged("known") if key in found}
        for model, found in board.known_classes.items()
    }
    rows = [_result_row(result) for result in board.results]
    rows += [{"benchmark": KNOWN_SET, "model": model, **row} for model, row in known.items()]
    measured = [*(result.metrics for result in board.results), *known.values()]
    keys = ordered(key for row in measured for key in row)
    spread = {key for result in board.results for key in result.intervals}
    ends = [[key, f"{key}_low", f"{key}_high"] if key in spread else [key] for key in keys]
    columns = ["benchmark", "protocol", "model", "scorer", *chain(*ends)]
    shared = {"protocol": board.protocol}
    if board.warnings:
        columns, shared["warnings"] = [*columns, "warnings"], "; ".join(board.warnings)
    cells = [{name: {**row, **shared}.get(name, "") for name in columns} for row in rows]
    return rows_as_csv(columns, [[*cell.values()] for cell in cells])


def rows_as_csv(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a heading and rows; numbers in full, so that they read back as they were."""
    from pandas import DataFrame

    table = DataFrame(rows, columns=list(heading), dtype=object)
    return table.to_csv(index=False, na_rep="nan", lineterminator="\n")


def _result_row(result: Result) -> dict[str, object]:
    bounds = {
        f"{key}_{end}": value
        for key, interval in result.intervals.items()
        for end, value in zip(("low", "high"), interval, strict=True)
    }
    named = {"benchmark": result.benchmark, "model": result.model, "scorer": result.scorer}
    return {**named, **result.metrics, **bounds}


def as_markdown(board: Leaderboard) -> str:
    """Write warnings, a table a benchmark, seeds, known classes and published numbers."""
    blocks = [f"# {_literal(board.title)}"]
    blocks += [f"> **{WARNING}:** {_literal(warning)}" for warning in board.warnings]
    if board.protocol:
        blocks.append(f"Protocol: {_literal(board.protocol)}.")
    blocks += [f"Note: {_literal(note)}" for note in board.notes]
    for name in board.benchmarks:
        table = tables.of_methods(board, board.on(name), flagged("main"))
        blocks += [f"## {_literal(name)}", _markdown(table)]
    if board.over_seeds:
        blocks += ["## Over seeds", _markdown(tables.over_seeds(board.over_seeds))]
    if board.known_classes:
        blocks += ["## Known classes", _markdown(tables.known_classes(board))]
        blocks += [
            f"### IoU of each {kind}\n\n{_markdown(table)}"
            for kind, table in tables.ious(board).items()
        ]
    if board.published:
        blocks += ["## Published", "Other protocols, other images: see the last column first."]
    for name in board.benchmarks:
        if (table := tables.published(board, name)).rows:
            blocks += [f"### {_literal(name)}", _markdown(table)]
    return "\n\n".join(blocks) + "\n"


def _markdown(table: Table) -> str:
    headings = [_literal(metric.heading) for metric in table.headings]
    lines = [headings, ["---"] * len(headings), *(map(_cell, row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(entry: Entry) -> str:
    if entry.look not in ("number", "quiet"):
        return _literal(f"{entry.text} {entry.below}")
    text = f"**{entry.text}**" if entry.is_best else entry.text
    return f"{text} {entry.below}" if entry.below else text


def _literal(text: str) -> str:
    """Escape a name: nothing in it is markup, and it breaks no line of a table."""
    marks: dict[str, str | int | None] = {mark: f"\\{mark}" for mark in "\\`*_[]|#~"}
    names = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return " ".join(text.split()).translate(str.maketrans({**marks, **names}))
