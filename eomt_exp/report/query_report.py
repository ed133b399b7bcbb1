"""Shows what the queries of a model do: CSV files, a figure, a page that loads nothing, a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from eomt_exp.engine.query_statistics import Array, QueryStatistics
from eomt_exp.evaluator.metrics import Metric
from eomt_exp.files import write_text
from eomt_exp.report.canvas import COLOURS, FAINT, as_svg, new_figure, save_png, tidy
from eomt_exp.report.html_report import template
from eomt_exp.report.metric_names import shown
from eomt_exp.report.tables import Entry, Table
from eomt_exp.report.terminal import make_console, rich_table
from eomt_exp.report.text_tables import rows_as_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE, FIGURE = "queries.html", "queries.png"
MOST_ROWS = 12  # of the table on a terminal


class QueryReport(NamedTuple):
    """Holds an analysis of Q queries with C class outputs, and what follows from its thresholds."""

    title: str
    found: QueryStatistics
    outputs: Sequence[str]  # C names: known classes, perhaps outlier, no_object
    specialised: dict[int, int]  # query -> known class
    outliers: list[int]  # queries that lie on anomalies, best first
    thresholds: dict[str, float]
    images: dict[str, int]  # how many of each set

    @property
    def lead(self) -> str:
        """Say in a sentence or two what came of it."""
        count = f"{len(self.specialised)} of {len(self.found.times)} queries are specialised"
        if self.outliers:
            return f"{count}; outlier queries, best first: {', '.join(map(str, self.outliers))}."
        best = self.found.ranking()[0]
        return (
            f"{count}. No query is an outlier query (the best, {best}, has a mean IoU of "
            f"{shown('', self.found.ious[best])}), so that scorer=maskomaly is its rejection "
            "branch alone; task.min_iou= says from where on a query is one."
        )


def write_queries(report: QueryReport, folder: Path) -> None:
    """Write the CSV files, the figure and the page into a folder."""
    found, outputs = report.found, report.outputs
    shares = found.shares()
    by_output = ["query", *outputs]
    files = {
        "times_predicted_stats.csv": (by_output, _numbered(found.times)),
        "high_conf_stats.csv": (by_output, _numbered(shares)),
        "specialized.csv": (
            ["query", "class", "share"],
            [[q, outputs[k], shares[q, k]] for q, k in report.specialised.items()],
        ),
        "outlier_queries.csv": (
            ["query", "mean_iou", "images", "is_outlier_query"],
            [[q, found.ious[q], found.images[q], q in report.outliers] for q in found.ranking()],
        ),
    }
    for name, (heading, rows) in files.items():
        write_text(folder / name, rows_as_csv(heading, rows))
    save_png(_figure(report, CHARTS), folder / "figures" / FIGURE, report.title)
    page = template("queries.html").render(
        report=report,
        queries=queries_table(report),
        charts=[as_svg(_figure(report, [title]), title) for title in CHARTS],
    )
    write_text(folder / PAGE, page + "\n")


def print_queries(report: QueryReport, folder: Path) -> None:
    """Print the queries that lie most on anomalies, what came of it, and where the files are."""
    console = make_console()
    table = queries_table(report)
    hidden = len(table.rows) - MOST_ROWS
    console.print(rich_table(table._replace(rows=table.rows[:MOST_ROWS]), "queries"))
    if hidden > 0:
        console.print(f"and {hidden} more in {PAGE}", markup=False)
    console.print(report.lead, markup=False, soft_wrap=True)
    for label, path in {"folder": folder, "page": folder / PAGE}.items():
        console.print(f"{label:<11}{path}", markup=False, soft_wrap=True)


def queries_table(report: QueryReport) -> Table:
    """Tabulate all queries, those first that lie most on anomalies; outlier queries stand out."""
    found, rows = report.found, []
    shares, order = found.shares(), found.ranking()
    for query in order:
        times = found.times[query]
        mostly = int(times.argmax())
        special = report.specialised.get(query)
        values = times[mostly] / max(times.sum(), 1), shares[query, mostly], found.ious[query]
        numbers = [Entry(shown("", value), value, look="number") for value in values]
        rows.append([
            Entry("outlier query" if query in report.outliers else "other"),
            Entry(str(query), query, look="number"),
            Entry(report.outputs[mostly], report.outputs[mostly]),
            *numbers[:2],
            Entry("" if special is None else report.outputs[special]),
            numbers[2],
        ])  # fmt: skip
    headings = [
        Metric("kind"),
        Metric("query"),
        Metric("mostly predicts", meaning="Its likeliest output in most windows of data.val."),
        Metric("share", meaning="Of its predictions that are this output."),
        Metric("sure", meaning="Of its predictions that are this output with a high probability."),
        Metric("specialised in"),
        Metric("mean IoU", meaning="Of its mask with the anomalies, over the mined images."),
    ]
    marked = {index for index, query in enumerate(order) if query in report.outliers}
    return Table(headings, rows, marked=marked)


def _numbered(values: Array) -> list[list[float]]:
    """(Q, C) -> rows that begin with the query."""
    return [[query, *row] for query, row in enumerate(values.tolist())]


def _figure(report: QueryReport, titles: Iterable[str]) -> Figure:
    """Draw these charts of all queries side by side."""
    titles = list(titles)
    figure = new_figure(5.6 * len(titles), 1.6 + 0.16 * max(len(report.found.times), 12))
    for axes, title in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles, strict=True):
        tidy(axes, title, "", "query")
        CHARTS[title](axes, report)
    return figure


def _draw_classes(axes: Axes, report: QueryReport) -> None:
    axes.imshow(report.found.shares(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(report.outputs)), report.outputs, rotation=60, ha="right")
    axes.grid(False)


def _draw_ious(axes: Axes, report: QueryReport) -> None:
    queries = range(len(report.found.times))
    colours = [COLOURS[query in report.outliers] for query in queries]
    axes.barh(queries, np.nan_to_num(report.found.ious), color=colours)
    axes.axvline(report.thresholds["min_iou"], color=FAINT, linewidth=1.2)
    axes.set_ylim(len(queries) - 0.5, -0.5)


CHARTS = {
    "Share of its predictions that are sure of a class": _draw_classes,
    "Mean IoU of its mask with anomalies (line: an outlier query)": _draw_ious,
}
