"""Makes the report's tables: numbers beside their intervals, sortable where that helps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eomt_exp.report.html.tags import Html, joined, tag
from eomt_exp.report.metric_names import NOT_MEASURED, is_best, metric, shown, shown_interval


class TableCell(NamedTuple):
    """Holds what a cell shows, and what its column is sorted by: NaN and "" go last."""

    content: object
    order: float | str = ""
    class_: str | None = None


def number(
    key: str,
    value: float | None,
    interval: tuple[float, float] | None = None,
    winner: float | None = None,
) -> TableCell:
    """Show a metric, its interval small below it; the best of its kind is bold."""
    if value is None:
        return TableCell(NOT_MEASURED, "", "quiet")
    if math.isnan(value):
        return TableCell(shown(key, value), "", "quiet")
    text: object = shown(key, value)
    if is_best(key, value, winner):
        text = tag("strong", text)
    if interval is not None:
        text = joined([text, tag("small", shown_interval(key, *interval))])
    return TableCell(text, value, "number")


def heading(key: str, mark: bool = True) -> Html:
    """Name a metric, with an arrow to where it is better and its meaning on hover."""
    known = metric(key)
    arrow = {1: " ↑", -1: " ↓"}.get(known.better, "") if mark else ""
    return tag("abbr", known.heading + arrow, title=known.meaning or None)


def table(
    headings: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    caption: str | None = None,
    sortable: bool = False,
    groups: Sequence[tuple[str, int]] = (),
    marked: Sequence[int] = (),
) -> Html:
    """Make a table of rows of cells, the first of each row its name.

    `groups`: (name, number of columns) over the headings, from the second on. `marked` rows stand
    out. A table wider than the page scrolls inside its own frame.
    """
    starts = [1 + sum(width for _, width in groups[:index]) for index in range(len(groups))]
    body = [
        tag("tr", *_row(row, starts), class_="ours" if index in marked else None)
        for index, row in enumerate(rows)
    ]
    inner = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", *_heading_rows(headings, groups, starts)),
        tag("tbody", *body),
        class_="sortable" if sortable else None,
    )
    return tag("div", inner, class_="frame", tabindex=0, role="region", aria_label="table")


def _heading_rows(
    headings: Sequence[object], groups: Sequence[tuple[str, int]], starts: Sequence[int]
) -> list[Html]:
    """Make the heading; a row of groups has an empty cell too, so that columns count alike."""
    names = [
        tag("th", text, scope="col", class_="gap" if index in starts else None)
        for index, text in enumerate(headings)
    ]
    over = [
        tag("th", text, colspan=width, scope="colgroup", class_="group gap")
        for text, width in groups
    ]
    return [*([tag("tr", tag("td"), *over)] if over else []), tag("tr", *names)]


def _row(row: Sequence[object], starts: Sequence[int]) -> list[Html]:
    cells = [cell if isinstance(cell, TableCell) else TableCell(cell, str(cell)) for cell in row]
    names = ["th", *["td"] * (len(cells) - 1)]
    return [
        tag(
            name,
            cell.content,
            class_=" ".join(filter(None, (cell.class_, "gap" if index in starts else ""))) or None,
            data_v=_order(cell.order),
            scope="row" if name == "th" else None,
        )
        for index, (name, cell) in enumerate(zip(names, cells, strict=True))
    ]


def _order(value: float | str) -> float | str:
    return "" if isinstance(value, float) and math.isnan(value) else value


def nested(values: Mapping[str, object]) -> Html:
    """Make a definition list, of lists where a value is a mapping itself."""
    return tag(
        "dl",
        *(part for key, value in values.items() for part in (tag("dt", key), _definition(value))),
    )


def _definition(value: object) -> Html:
    if isinstance(value, Mapping):
        return tag("dd", nested(value) if value else "none", class_="nested" if value else None)
    if isinstance(value, (list, tuple, set, frozenset)):
        if any(isinstance(part, Mapping) for part in value):
            return tag("dd", *(_definition(part) for part in value), class_="nested")
        return tag("dd", ", ".join(_definition_text(part) for part in value) or "none")
    return tag("dd", _definition_text(value))


def _definition_text(value: object) -> str:
    if value is None or value is True or value is False:
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return shown("", value)
    return str(value)
