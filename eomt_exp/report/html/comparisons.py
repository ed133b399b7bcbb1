"""Reports what may be concluded: paired differences of methods, and the spread over seeds."""

from __future__ import annotations

import math

from eomt_exp.report.html.tables import TableCell, heading, number, table
from eomt_exp.report.html.tags import Html, joined, tag
from eomt_exp.report.leaderboard import Comparison, Leaderboard, OverSeeds
from eomt_exp.report.metric_names import metric, ordered, shown


def comparisons(board: Leaderboard, benchmark: str) -> Html | None:
    """Tabulate differences, in bold where their interval leaves out zero."""
    chosen = [c for c in board.comparisons if c.benchmark == benchmark]
    if not chosen:
        return None
    remark = (
        "Paired bootstrap over images. Bold: the 95 % interval leaves out zero. "
        f"p is two-sided and not corrected for the number of comparisons, {len(chosen)}."
    )
    names = ["first", "second", "metric", "first - second", "95 % interval", "p"]
    found = table(names, [_comparison_row(c) for c in chosen], sortable=True)
    return joined([tag("p", remark, class_="note"), found])


def _comparison_row(c: Comparison) -> list[object]:
    difference: object = _signed(c.difference)
    if c.low > 0 or c.high < 0:
        difference = tag("strong", difference)
    return [
        c.first,
        c.second,
        metric(c.metric).heading,
        TableCell(difference, c.difference, "number"),
        f"[{_signed(c.low)}, {_signed(c.high)}]",
        TableCell(_p(c.p_value), c.p_value),
    ]


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else shown("", value)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else shown("p", value)


def spread_over_seeds(board: Leaderboard, benchmark: str) -> Html | None:
    """Tabulate mean and sample standard deviation of experiments that have several seeds."""
    chosen = [row for row in board.over_seeds if row.benchmark == benchmark]
    if not chosen:
        return None
    keys = ordered(row.metric for row in chosen)
    found = {(row.experiment, row.scorer, row.metric): row for row in chosen}
    seeds = {(row.experiment, row.scorer): row.seeds for row in chosen}
    rows = [
        [*method, *(_spread(found.get((*method, key))) for key in keys), ", ".join(map(str, used))]
        for method, used in seeds.items()
    ]
    names = ["experiment", "scorer", *(heading(key) for key in keys), "seeds"]
    return table(names, rows, sortable=True)


def _spread(row: OverSeeds | None) -> TableCell:
    if row is None:
        return number("", None)
    text = f"{shown(row.metric, row.mean)} ± {shown(row.metric, row.std)}"
    return TableCell(text, row.mean, "number")
