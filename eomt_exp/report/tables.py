"""Lays out a leaderboard in tables, once for all forms: terminal, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

from eomt_exp.evaluator.metrics import METRICS, Metric, flagged
from eomt_exp.report.leaderboard import Comparison, Leaderboard, OverSeeds, Result, SizeRow, TnrRow
from eomt_exp.report.metric_names import NOT_MEASURED, best, measured, metric, ordered, shown

IOUS = {"iou_": "class", "category_iou_": "category"}  # how keys begin -> what of


class Entry(NamedTuple):
    """Holds what one place of a table shows, and what its column is sorted by."""

    text: str
    order: float | str = ""  # NaN and "" go last
    below: str = ""  # what belongs to it, in small letters: an interval, a source
    is_best: bool = False
    look: str = "name"  # or long, number, quiet, remark: a class of page.css
    ends: tuple[float, float] | None = None  # of its interval in [0, 1], to be drawn


NO_NUMBER = Entry(NOT_MEASURED, look="quiet")


class Table(NamedTuple):
    """Holds rows of as many entries as there are headings, the first of each its name."""

    headings: Sequence[Metric]  # what is no metric has a heading alone
    rows: list[list[Entry]]
    groups: Sequence[tuple[str, int]] = ()  # (name, columns) over the headings, from the second
    marked: Collection[int] = ()  # rows that stand out


def headline(board: Leaderboard) -> Table:
    """Tabulate every method on every benchmark; of several models the mIoU, last."""
    keys = flagged("headline")
    cells = {(board.name(r), r.benchmark): r for r in board.results}
    columns = [
        _metric_entries([cells.get((method, name)) for method in board.methods], key)
        for name in board.benchmarks
        for key in keys
    ]
    groups = [(name, len(keys)) for name in board.benchmarks]
    headings = [metric(key) for _ in board.benchmarks for key in keys]
    if len(board.known_classes) > 1:  # of one model every row would say the same
        models = {board.name(r): r.model for r in board.results}
        known = [board.known_classes.get(models[method], {}) for method in board.methods]
        columns.append([number("miou", values.get("miou")) for values in known])
        headings.append(metric("miou"))
        groups.append(("known classes", 1))
    return _of_columns("method", board.methods, headings, columns, groups)


def of_methods(board: Leaderboard, results: Sequence[Result], keys: Iterable[str]) -> Table:
    """Tabulate the measured ones of these metrics, with their intervals."""
    keys = measured(keys, [result.metrics for result in results])
    columns = [_metric_entries(results, key) for key in keys]
    return _of_columns("method", map(board.name, results), map(metric, keys), columns)


def other_metrics(results: Sequence[Result]) -> list[str]:
    """Return the metrics that are in no other table."""
    elsewhere = (*flagged("main"), *flagged("amount"))
    return [key for key in ordered(k for r in results for k in r.metrics) if key not in elsewhere]


def true_negatives(board: Leaderboard, results: Sequence[Result]) -> Table:
    """Show what finding more of the anomaly costs: the true negative rate at levels of recall."""
    there = [result for result in results if result.tnr]
    levels = dict.fromkeys(row.tpr for result in there for row in result.tnr)
    found = [{row.tpr: row for row in result.tnr} for result in there]
    columns = [[_tnr_entry(rows.get(level)) for rows in found] for level in levels]
    headings = [Metric(f"{100 * level:.0f} %") for level in levels]
    return _of_columns("method", map(board.name, there), headings, columns)


def comparisons(board: Leaderboard, benchmark: str) -> Table:
    """Tabulate differences, the best where their interval leaves out zero."""

    def row(c: Comparison) -> list[Entry]:
        p = "< 0.001" if c.p_value < 0.001 else shown("", c.p_value)
        numbers = (f"[{_signed(c.low)}, {_signed(c.high)}]", c.low), (p, c.p_value)
        return [
            *(Entry(name, name) for name in (c.first, c.second, metric(c.metric).heading)),
            Entry(_signed(c.difference), c.difference, "", c.low > 0 or c.high < 0, "number"),
            *(Entry(*pair, look="number") for pair in numbers),
        ]

    rows = [row(c) for c in board.comparisons if c.benchmark == benchmark]
    headings = ("first", "second", "metric", "first - second", "95 % interval", "p")
    return Table([Metric(name) for name in headings], rows)


def over_seeds(seeds: Sequence[OverSeeds]) -> Table:
    """Tabulate mean and sample standard deviation of experiments that have several seeds."""
    keys = ordered(row.metric for row in seeds)
    rows: dict[tuple[str, str], dict[str, OverSeeds]] = {}
    for row in seeds:
        rows.setdefault((row.benchmark, f"{row.experiment} {row.scorer}"), {})[row.metric] = row
    table = []
    for names, found in rows.items():
        used = max((row.seeds for row in found.values()), key=len)
        entries = [_spread(found.get(key)) for key in keys]
        table.append([*(Entry(n, n) for n in names), Entry(", ".join(map(str, used))), *entries])
    first = [Metric(name) for name in ("benchmark", "method", "seeds")]
    return Table([*first, *map(metric, keys)], table)


def sizes(board: Leaderboard, results: Sequence[Result]) -> Table:
    """Show how many of the true components were found, by their size in pixels."""
    there = [result for result in results if result.sizes]
    found = [{(row.low, row.high): row for row in result.sizes} for result in there]
    ranges = size_ranges(there)
    columns = [[_size_entry(rows.get(ends)) for rows in found] for ends in ranges]
    headings = [Metric(size_range(*ends)) for ends in ranges]
    return _of_columns("pixels", map(board.name, there), headings, columns)


def size_ranges(results: Sequence[Result]) -> list[tuple[int, int | None]]:
    """List the ranges of sizes in which any of the results has a component, rising."""
    ranges = {(row.low, row.high) for result in results for row in result.sizes}
    return sorted(ranges, key=lambda ends: (ends[0], math.inf if ends[1] is None else ends[1]))


def ap_of_images(board: Leaderboard, results: Sequence[Result]) -> Table:
    """Put the AP of every method side by side, image by image."""
    found = [{row.name: row for row in result.images} for result in results]
    rows = {name: row for images in reversed(found) for name, row in images.items()}
    columns = [
        [number("ap", images[name].metrics["ap"] if name in images else None) for name in rows]
        for images in found
    ]
    shares = _shares(row.anomaly_share for row in rows.values())
    headings = [Metric("anomaly"), *(Metric(board.name(result)) for result in results)]
    return _of_columns("image", rows, headings, [shares, *columns])


def of_images(board: Leaderboard, result: Result) -> Table:
    """Tabulate the images of one method; their FPR95 is at the first threshold, which it says."""
    protocol = board.manifest.get("protocol")
    is_other = isinstance(protocol, Mapping) and protocol.get("fpr95") == "interpolated"
    keys = measured(METRICS, [row.metrics for row in result.images])
    columns = [[number(key, row.metrics[key]) for row in result.images] for key in keys]
    named = ["fpr95_first" if key == "fpr95" and is_other else key for key in keys]
    shares = _shares(row.anomaly_share for row in result.images)
    headings = [Metric("anomaly"), *map(metric, named)]
    return _of_columns("image", (row.name for row in result.images), headings, [shares, *columns])


def known_classes(board: Leaderboard) -> Table:
    """Tabulate the means over known classes of every model."""
    rows = list(board.known_classes.values())
    keys = measured(flagged("known"), rows)
    columns = [numbers(key, [row.get(key) for row in rows]) for key in keys]
    return _of_columns("model", board.known_classes, map(metric, keys), columns)


def ious(board: Leaderboard) -> dict[str, Table]:
    """Tabulate the IoU of each "class" and each "category", where measured, by models."""
    found: dict[str, Table] = {}
    models = list(board.known_classes.values())
    for start, kind in IOUS.items():
        keys = dict.fromkeys(key for m in models for key in m if key.startswith(start))
        # The IoU of one is no metric of its own, but it is better the higher it is, as mIoU is.
        rows = [
            [Entry(name, name), *numbers("miou", [values.get(key) for values in models])]
            for key in keys
            for name in [key.removeprefix(start).replace("_", " ")]
        ]
        if rows:
            found[kind] = Table([Metric(name) for name in (kind, *board.known_classes)], rows)
    return found


def published(board: Leaderboard, benchmark: str) -> Table:
    """Show ours among the published results of a benchmark, by AP; no rows where there are none."""
    others = [entry for entry in board.published if entry.benchmark == benchmark]
    keys = measured(METRICS, [entry.values for entry in others])
    rows: list[tuple[float, bool, list[Entry]]] = []
    for r in board.on(benchmark) if others else []:
        values = [number(key, r.metrics.get(key), r.intervals.get(key)) for key in keys]
        row = [Entry(board.name(r), board.name(r)), *values, _remark("see the manifest", "here")]
        rows.append((r.metrics.get("ap", math.nan), True, row))
    for entry in others:
        values = [number(key, entry.values.get(key)) for key in keys]
        remark = _remark(entry.protocol or "protocol unknown", entry.source)
        row = [Entry(entry.method, entry.method, look="long"), *values, remark]
        rows.append((entry.values.get("ap", math.nan), False, row))
    rows.sort(key=lambda row: math.inf if math.isnan(row[0]) else -row[0])
    marked = {index for index, (_, is_ours, _) in enumerate(rows) if is_ours}
    headings = [Metric("method"), *map(metric, keys), Metric("protocol and source")]
    return Table(headings, [row for _, _, row in rows], marked=marked)


def number(
    key: str,
    value: float | None,
    interval: tuple[float, float] | None = None,
    winner: float | None = None,
) -> Entry:
    """Show a metric, its interval below it; None was not measured, NaN is undefined."""
    if value is None:
        return NO_NUMBER
    if math.isnan(value):
        return Entry(shown(key, value), look="quiet")
    ends = interval if interval and not any(map(math.isnan, interval)) else None
    # Ends have the digits of the value itself: with fewer, a narrow interval would leave it out.
    below = f"[{', '.join(shown(key, end) for end in ends or [None])}]" if interval else ""
    # Values are compared as people read them, so that equals are marked together.
    is_best = winner is not None and shown(key, value) == shown(key, winner)
    return Entry(shown(key, value), value, below, is_best, "number", ends)


def numbers(
    key: str,
    values: Sequence[float | None],
    intervals: Iterable[tuple[float, float] | None] = repeat(None),
) -> list[Entry]:
    """Show a metric of several rivals."""
    pairs, winner = zip(values, intervals), best(key, values)  # noqa: B905
    return [number(key, value, interval, winner) for value, interval in pairs]


def size_range(low: int, high: int | None) -> str:
    """Write a range, short enough for seven below a chart: "<300", "10k to 30k", "≥100k"."""
    if high is None:
        return f"≥{_thousands(low)}"
    return f"{_thousands(low)} to {_thousands(high)}" if low > 1 else f"<{_thousands(high)}"


def _thousands(pixels: int) -> str:
    return f"{pixels // 1000}k" if pixels >= 1000 and pixels % 1000 == 0 else str(pixels)


def _of_columns(
    first: str,
    names: Iterable[str],
    headings: Iterable[Metric],
    columns: Sequence[Sequence[Entry]],
    groups: Sequence[tuple[str, int]] = (),
) -> Table:
    """Make a table of named rows from its columns; without columns it has no rows."""
    rows = [[Entry(name, name), *row] for name, row in zip(names, zip(*columns, strict=True))]  # noqa: B905
    return Table([Metric(first), *headings], rows, groups)


def _metric_entries(results: Sequence[Result | None], key: str) -> list[Entry]:
    """Show a metric of several results, None where a method was not measured."""
    values = [r.metrics.get(key) if r else None for r in results]
    return numbers(key, values, [r.intervals.get(key) if r else None for r in results])


def _tnr_entry(row: TnrRow | None) -> Entry:
    if row is None:
        return Entry("", look="quiet")
    return Entry(shown("", row.tnr), row.tnr, shown("f1_threshold", row.threshold), look="number")


def _size_entry(row: SizeRow | None) -> Entry:
    if row is None or math.isnan(row.found):
        return number("", row and row.found)
    below = f"{shown('siou', row.siou)} of {row.components}"
    return Entry(f"{row.found:.0%}", row.found, below, look="number")


def _shares(shares: Iterable[float]) -> list[Entry]:
    return [Entry(f"{share:.2%}", share, look="number") for share in shares]


def _spread(row: OverSeeds | None) -> Entry:
    if row is None:
        return NO_NUMBER
    text = f"{shown(row.metric, row.mean)} ± {shown(row.metric, row.std)}"
    return Entry(text, row.mean, look="number")


def _remark(protocol: str, source: str) -> Entry:
    return Entry(protocol, f"{protocol} {source}", source, look="remark")


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else shown("", value)
