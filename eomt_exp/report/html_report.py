"""Writes a leaderboard as one HTML file to keep, to mail and to print: it loads nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_exp.evaluator.metrics import METRICS, flagged
from eomt_exp.files import write_text
from eomt_exp.report import figures, tables
from eomt_exp.report.leaderboard import Leaderboard, Result
from eomt_exp.report.metric_names import metric, ordered, shown

if TYPE_CHECKING:
    from jinja2 import Template


def write_report(board: Leaderboard, path: str | Path) -> Path:
    """Write the report as a whole and return its path."""
    page = template("report.html").render(
        board=board,
        tables=tables,
        main=flagged("main"),
        lead=_lead(board),
        amount=_amount,
        figures=figures,
        shown=shown,
        meanings=_meanings(board),
    )
    write_text(path, page + "\n")
    return Path(path)


@cache
def template(name: str) -> Template:
    """Return a template of a page; what it writes is text and no markup, unless it says `safe`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, autoescape=True,
        undefined=StrictUndefined, loader=PackageLoader("eomt_exp.report"),
    )  # fmt: skip
    environment.filters["plain"] = _plain
    return environment.get_template(name)


def _lead(board: Leaderboard) -> str:
    scorers = len({result.scorer for result in board.results})
    counts = {"model": len(board.models), "scorer": scorers, "benchmark": len(board.benchmarks)}
    counted = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items())
    return f"{counted}." + (f" Protocol: {board.protocol}." if board.protocol else "")


def _amount(results: Sequence[Result]) -> str:
    """Say how much was measured."""
    images, metrics = max(len(result.images) for result in results), results[0].metrics
    counts = [f"{images} image{'s' * (images != 1)}"] if images else []
    counts += [
        f"{shown(key, metrics[key])} {metric(key).heading}"
        for key in flagged("amount")
        if key in metrics
    ]
    return ", ".join(counts) + "." * bool(counts)


def _meanings(board: Leaderboard) -> dict[str, str]:
    """Define the metrics of this report."""
    rows = [*(result.metrics for result in board.results), *board.known_classes.values()]
    keys = ordered(key for row in rows for key in row if key in METRICS)
    return {metric(key).heading: metric(key).meaning for key in keys if metric(key).meaning}


def _plain(value: object) -> str:
    """Write a value of the manifest as people say it."""
    if value is None or value is True or value is False:
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return shown("", value)
    return str(value)
