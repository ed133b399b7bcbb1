"""Writes a leaderboard as one HTML file to keep, to mail and to print: it loads nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from eomt_exp.files import write_text
from eomt_exp.report.html.benchmark import benchmark_body
from eomt_exp.report.html.methods import Methods
from eomt_exp.report.html.page import Section, page, part
from eomt_exp.report.html.tables import TableCell, heading, nested, number, table
from eomt_exp.report.html.tags import Html, joined, tag
from eomt_exp.report.leaderboard import Leaderboard, Result
from eomt_exp.report.metric_names import (
    HEADLINE,
    KNOWN,
    SEMANTIC,
    best,
    best_of_each,
    each_iou,
    measured,
    metric,
    ordered,
)


def write_report(board: Leaderboard, path: str | Path) -> Path:
    """Write the report as a whole and return its path."""
    benchmarks = [
        Section(f"benchmark-{index}", name, benchmark_body(board, name))
        for index, name in enumerate(board.benchmarks, 1)
    ]
    sections = [
        Section("results", "Results", _headline(board)),
        *benchmarks,
        Section("known-classes", "Known classes", _known_classes_section(board)),
        Section("published", "Published numbers", _published(board)),
        Section("manifest", "Manifest", nested(board.manifest)),
        Section("how-to-read", "How to read", _definitions(board)),
    ]
    there = [section for section in sections if section.body not in ("", "<dl></dl>")]
    write_text(path, page(board.title, _lead(board), board.notes, board.warnings, there))
    return Path(path)


def _lead(board: Leaderboard) -> str:
    scorers = len({result.scorer for result in board.results})
    counts = {"model": len(board.models), "scorer": scorers, "benchmark": len(board.benchmarks)}
    counted = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items())
    protocol = [f"Protocol: {board.protocol}."] if board.protocol else []
    return " ".join([f"{counted}.", *protocol])


def _headline(board: Leaderboard) -> Html:
    """Tabulate every method on every benchmark; of several models the mIoU, last."""
    if not board.results:
        return tag("p", "Nothing was measured.")
    methods = Methods(board)
    shows_known = len(board.known_classes) > 1  # of one model every row would say the same
    cells = {(r.model, r.scorer, r.benchmark): r for r in board.results}
    winners = {
        (name, key): best(key, [r.metrics.get(key) for r in board.results if r.benchmark == name])
        for name in board.benchmarks
        for key in HEADLINE
    }
    rows: list[list[object]] = []
    for model, scorer in methods.order:
        row: list[object] = [methods.name(model, scorer)]
        for name, key in winners:
            result = cells.get((model, scorer, name))
            row.append(_headline_cell(result, key, winners[name, key]))
        if shows_known:
            row.append(number("miou", board.known_classes.get(model, {}).get("miou")))
        rows.append(row)
    headings = ["method", *(heading(key) for _, key in winners)]
    groups = [(name, len(HEADLINE)) for name in board.benchmarks]
    if shows_known:
        headings.append(heading("miou"))
        groups.append(("known classes", 1))
    note = "Below a value its 95 % interval over images; the best of a benchmark is bold."
    found = table(headings, rows, groups=groups, sortable=True)
    return joined([found, tag("p", note, class_="note")])


def _headline_cell(result: Result | None, key: str, winner: float | None) -> TableCell:
    if result is None:
        return number(key, None)
    return number(key, result.metrics.get(key), result.intervals.get(key), winner)


def _known_classes_section(board: Leaderboard) -> Html:
    found = board.known_classes
    if not found:
        return Html("")
    keys = measured(SEMANTIC, [*found.values()])
    winners = best_of_each(keys, [*found.values()])
    rows = [
        [model, *(number(key, values.get(key), winner=winners[key]) for key in keys)]
        for model, values in found.items()
    ]
    means = table(["model", *(heading(key) for key in keys)], rows, sortable=True)
    ious = [
        part(f"IoU of each {kind}", _iou_table([kind, *found], rows))
        for kind, rows in each_iou(found).items()
    ]
    return joined([means, *ious])


def _iou_table(headings: Sequence[str], ious: Mapping[str, Sequence[float | None]]) -> Html:
    """Tabulate classes or categories by models."""
    rows = []
    for name, values in ious.items():
        # The IoU of one is no metric of its own, but it is better the higher it is, as mIoU is.
        winner = best("miou", values)
        rows.append([name, *(number("miou", value, winner=winner) for value in values)])
    return table(headings, rows, sortable=True)


def _published(board: Leaderboard) -> Html:
    """Show ours among the published results of each benchmark, by AP."""
    if not board.published:
        return Html("")
    remark = (
        "Other images and other protocols stand side by side here: read the last column before "
        "comparing. Ours are marked."
    )
    tables = [part(name, _among_published(board, name)) for name in board.benchmarks]
    return joined([tag("p", remark, class_="note"), *tables])


def _among_published(board: Leaderboard, benchmark: str) -> Html | None:
    published = [entry for entry in board.published if entry.benchmark == benchmark]
    if not published:
        return None
    methods = Methods(board)
    keys = measured(KNOWN, [entry.values for entry in published])
    rows: list[tuple[float, bool, list[object]]] = []
    for r in (r for r in board.results if r.benchmark == benchmark):
        values = [number(key, r.metrics.get(key), r.intervals.get(key)) for key in keys]
        row: list[object] = [methods.of(r), *values, _remark_cell("see the manifest", "here")]
        rows.append((r.metrics.get("ap", math.nan), True, row))
    for entry in published:
        values = [number(key, entry.values.get(key)) for key in keys]
        remark = _remark_cell(entry.protocol or "protocol unknown", entry.source)
        name = TableCell(entry.method, entry.method, "long")
        rows.append((entry.values.get("ap", math.nan), False, [name, *values, remark]))
    rows.sort(key=lambda row: math.inf if math.isnan(row[0]) else -row[0])
    return table(
        ["method", *(heading(key) for key in keys), "protocol and source"],
        [row for _, _, row in rows],
        sortable=True,
        marked=[index for index, (_, is_ours, _) in enumerate(rows) if is_ours],
    )


def _remark_cell(protocol: str, source: str) -> TableCell:
    return TableCell(joined([protocol, tag("small", source)]), f"{protocol} {source}", "remark")


def _definitions(board: Leaderboard) -> Html:
    """Define only what is in this report."""
    semantic = (key for values in board.known_classes.values() for key in values)
    keys = ordered([*(key for r in board.results for key in r.metrics), *semantic])
    meanings = {metric(key).heading: metric(key).meaning for key in keys if metric(key).meaning}
    return nested(
        {
            **meanings,
            "interval": "95 %, by bootstrap over the images of the benchmark: how much another "
            "draw of images could move the number, not how much another training could.",
            "undefined": "Without an anomaly, or with nothing else, the metric has no value.",
            "void": "Pixels that are not judged: they count nowhere and are striped here.",
        }
    )
