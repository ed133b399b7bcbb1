"""Reports one benchmark: its metrics, curves, comparisons, and its images one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from eomt_exp.report.html.charts import Line, histogram_chart, unit_chart, whisker
from eomt_exp.report.html.comparisons import comparisons, spread_over_seeds
from eomt_exp.report.html.images import example_figures
from eomt_exp.report.html.methods import Methods, legend
from eomt_exp.report.html.page import details, part
from eomt_exp.report.html.slices import found_by_size, images, tnr_table
from eomt_exp.report.html.tables import TableCell, heading, number, table
from eomt_exp.report.html.tags import Html, joined, tag
from eomt_exp.report.leaderboard import Leaderboard, Result
from eomt_exp.report.metric_names import MAIN, PIXELS, RECALL, best_of_each, metric, ordered, shown


def benchmark_body(board: Leaderboard, benchmark: str) -> Html:
    """Write everything about one benchmark but the published numbers."""
    results = [result for result in board.results if result.benchmark == benchmark]
    methods = Methods(board)
    return joined(
        [
            tag("p", _amount(results), class_="lead"),
            _metrics_tables(results, methods),
            part("Curves", _curves(results, methods)),
            part("Scores of normal and anomalous pixels", _histograms(results, methods)),
            part("True negative rate by recall", tnr_table(results, methods)),
            part("Comparisons", comparisons(board, benchmark)),
            part("Over seeds", spread_over_seeds(board, benchmark)),
            part("Size of the anomaly", found_by_size(results, methods)),
            part("Image by image", images(results, methods, _fpr95_of_images(board))),
            part("Best and worst images", *_examples(board, benchmark)),
        ]
    )


def _fpr95_of_images(board: Leaderboard) -> str:
    """Return the key of images' FPR95, at the first threshold whatever the benchmark's is."""
    protocol = board.manifest.get("protocol")
    chosen = protocol.get("fpr95") if isinstance(protocol, Mapping) else None
    return "fpr95_first" if chosen == "interpolated" else "fpr95"


def _amount(results: Sequence[Result]) -> str:
    """Say how much was measured."""
    first = results[0]
    num_images = max(len(result.images) for result in results)
    counts = [
        f"{shown(key, first.metrics[key])} {metric(key).heading}"
        for key in PIXELS
        if key in first.metrics
    ]
    there = ([f"{num_images} image{'s' * (num_images != 1)}"] if num_images else []) + counts
    return ", ".join(there) + "." * bool(there)


def _metrics_tables(results: Sequence[Result], methods: Methods) -> Html:
    """Tabulate the main metrics, AP drawn with its interval; a table that opens has all others."""
    keys = [key for key in ordered(k for r in results for k in r.metrics) if key not in PIXELS]
    main, others = [key for key in MAIN if key in keys], [key for key in keys if key not in MAIN]
    rows = _metric_rows(results, methods, main)
    drawn = [_drawn_ap(result, methods) for result in results]
    headings: list[object] = [heading(key) for key in main]
    if main[:1] == ["ap"] and any(drawn):
        headings.insert(1, tag("span", "AP from 0 to 1", class_="quiet"))
        for row, picture, result in zip(rows, drawn, results, strict=True):
            row.insert(2, TableCell(picture, result.metrics.get("ap", math.nan)))
    shown_first = table(["method", *headings], rows, sortable=True)
    if not others:
        return shown_first
    more = table(
        ["method", *(heading(key) for key in others)],
        _metric_rows(results, methods, others),
        sortable=True,
    )
    return joined([shown_first, details("More metrics", more)])


def _metric_rows(
    results: Sequence[Result], methods: Methods, keys: Sequence[str]
) -> list[list[object]]:
    winners = best_of_each(keys, [result.metrics for result in results])
    return [
        [
            methods.of(result),
            *(
                number(key, result.metrics.get(key), result.intervals.get(key), winners[key])
                for key in keys
            ),
        ]
        for result in results
    ]


def _drawn_ap(result: Result, methods: Methods) -> Html | None:
    if "ap" not in result.intervals:
        return None
    ap, ends = result.metrics.get("ap", math.nan), result.intervals["ap"]
    return whisker(ap, *ends, methods.style(result))


def _curves(results: Sequence[Result], methods: Methods) -> Html:
    """Draw precision-recall and ROC of all methods; a dot where 95 % of the anomaly is found."""
    pr, roc, pr_dots, roc_dots = [], [], [], []
    for result in results:
        curve, name, style = result.curves, methods.of(result), methods.style(result)
        pr.append(Line(name, curve.recall, curve.precision, style))
        roc.append(Line(name, curve.fpr, curve.tpr, style))
        reached = np.flatnonzero(np.asarray(curve.recall) >= RECALL)
        if reached.size:
            index = reached[0]
            pr_dots.append((float(curve.recall[index]), float(curve.precision[index]), style))
            fpr95 = result.metrics.get("fpr95", float(curve.fpr[index]))
            roc_dots.append((fpr95, RECALL, style))
    return joined(
        [
            legend(results, methods),
            tag(
                "div",
                unit_chart(pr, "Precision and recall", ("recall", "precision"), pr_dots),
                unit_chart(
                    roc,
                    "ROC",
                    ("false positive rate", "true positive rate"),
                    roc_dots,
                    guide=[(0, 0), (1, 1)],
                ),
                class_="charts",
            ),
            tag(
                "p", "Dots: 95 % of the anomalous pixels found. Dotted line: chance.", class_="note"
            ),
        ]
    )


def _histograms(results: Sequence[Result], methods: Methods) -> Html:
    charts = [
        tag(
            "figure",
            tag("figcaption", methods.of(result)),
            histogram_chart(result.histogram, f"Scores under {methods.of(result)}"),
        )
        for result in results
    ]
    keys = [
        tag("span", tag("span", class_=f"key {kind}"), kind, class_="item")
        for kind in ("normal", "anomaly")
    ]
    note = " Each kind sums to one; heights are square roots, so that thin tails show."
    return joined([tag("p", *keys, note, class_="note"), tag("div", *charts, class_="small")])


def _examples(board: Leaderboard, benchmark: str) -> list[Html | None]:
    """Show the images of each model, the best first."""
    blocks: list[Html | None] = []
    for (model, name), examples in board.examples.items():
        figures = example_figures(examples) if name == benchmark else None
        if figures is not None:
            blocks += [tag("h4", f"{model} {examples[0].scorer}"), figures]
    return blocks
