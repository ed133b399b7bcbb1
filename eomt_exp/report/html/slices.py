"""Divides a benchmark of the report: by the size of the anomaly, and image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eomt_exp.report.html.charts import bar_chart
from eomt_exp.report.html.methods import Methods, legend
from eomt_exp.report.html.page import details
from eomt_exp.report.html.tables import TableCell, heading, number, table
from eomt_exp.report.html.tags import Html, joined, tag
from eomt_exp.report.leaderboard import ImageRow, Result, SizeRow, TnrRow
from eomt_exp.report.metric_names import shown


def found_by_size(results: Sequence[Result], methods: Methods) -> Html | None:
    """Show how many of the true components were found, by their size in pixels."""
    measured = [result for result in results if result.sizes]
    ranges = sorted(
        {(row.low, row.high) for result in measured for row in result.sizes},
        key=lambda r: (r[0], math.inf if r[1] is None else r[1]),
    )
    if not ranges:
        return None
    cells = {
        (methods.of(result), row.low, row.high): row for result in measured for row in result.sizes
    }
    groups = []
    for low, high in ranges:
        found = [(r, cells.get((methods.of(r), low, high))) for r in measured]
        bars = [(methods.of(r), row.found, methods.style(r)) for r, row in found if row is not None]
        groups.append((_size_range(low, high), bars))
    rows = [
        [
            methods.of(result),
            *(_size_cell(cells.get((methods.of(result), *ends))) for ends in ranges),
        ]
        for result in measured
    ]
    title = "Share of true components found, by size"
    names = [_size_range(*ends) for ends in ranges]
    note = "Found: sIoU of at least 0.25. Below each share: the mean sIoU, and of how many."
    return joined(
        [
            legend(measured, methods),
            tag("p", note, class_="note"),
            tag(
                "div",
                bar_chart(groups, title, "pixels of the component"),
                table(["pixels", *names], rows, sortable=True),
                class_="charts",
            ),
        ]
    )


def tnr_table(results: Sequence[Result], methods: Methods) -> Html | None:
    """Show what finding more of the anomaly costs: the true negative rate at levels of recall."""
    measured = [result for result in results if result.tnr]
    levels = list(dict.fromkeys(row.tpr for result in measured for row in result.tnr))
    if not levels:
        return None
    rows = []
    for result in measured:
        found = {row.tpr: row for row in result.tnr}
        rows.append([methods.of(result), *(_tnr_cell(found.get(level)) for level in levels)])
    note = (
        "At the first threshold that finds this share of the anomaly: the share of the normal "
        "pixels that raise no alarm, and below it the threshold."
    )
    names = [f"{100 * level:.0f} %" for level in levels]
    return joined([tag("p", note, class_="note"), table(["method", *names], rows, sortable=True)])


def _tnr_cell(row: TnrRow | None) -> TableCell:
    if row is None:
        return TableCell("", "", "quiet")
    threshold = tag("small", shown("threshold", row.threshold))
    return TableCell(joined([shown("tnr", row.tnr), threshold]), row.tnr, "number")


def _size_cell(row: SizeRow | None) -> TableCell:
    if row is None or math.isnan(row.found):
        return number("found", None if row is None else row.found)
    below = tag("small", f"{shown('siou', row.siou)} of {row.components}")
    return TableCell(joined([f"{row.found:.0%}", below]), row.found, "number")


def _size_range(low: int, high: int | None) -> str:
    """Write a range, short enough for seven below a chart: "<300", "10k to 30k", "≥100k"."""
    if high is None:
        return f"≥{_thousands(low)}"
    return f"{_thousands(low)} to {_thousands(high)}" if low > 1 else f"<{_thousands(high)}"


def _thousands(pixels: int) -> str:
    return f"{pixels // 1000}k" if pixels >= 1000 and pixels % 1000 == 0 else str(pixels)


def images(results: Sequence[Result], methods: Methods, fpr95: str = "fpr95") -> Html | None:
    """Fold up AP of every method side by side, and each method's own table.

    `fpr95` is the metric that names the FPR95 of an image.
    """
    listed = [result for result in results if result.images]
    if not listed:
        return None
    own = [
        details(f"{methods.of(result)}: {len(result.images)} images", _image_table(result, fpr95))
        for result in listed
    ]
    if len(listed) == 1:
        return own[0]
    side_by_side = details("AP of all methods", _ap_table(listed, methods))
    return joined([side_by_side, details("Each method alone", *own)])


def _ap_table(results: Sequence[Result], methods: Methods) -> Html:
    found = [{row.name: row for row in result.images} for result in results]
    names = dict.fromkeys(name for rows in found for name in rows)
    rows = [
        [
            name,
            _anomaly_share(next(rows[name] for rows in found if name in rows)),
            *(number("ap", rows[name].ap if name in rows else None) for rows in found),
        ]
        for name in names
    ]
    headings = ["image", "anomaly", *(methods.of(result) for result in results)]
    return table(headings, rows, sortable=True)


def _image_table(result: Result, fpr95: str) -> Html:
    keys = ("ap", fpr95, "auroc")
    rows = [
        [row.name, _anomaly_share(row), *map(number, keys, (row.ap, row.fpr95, row.auroc))]
        for row in result.images
    ]
    return table(["image", "anomaly", *map(heading, keys)], rows, sortable=True)


def _anomaly_share(row: ImageRow) -> TableCell:
    if math.isnan(row.anomaly_share):
        return number("share", row.anomaly_share)
    return TableCell(f"{row.anomaly_share:.2%}", row.anomaly_share, "number")
