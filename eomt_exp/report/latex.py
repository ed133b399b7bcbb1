"""Writes a leaderboard as papers do in LaTeX: booktabs, percent, the best in bold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from eomt_exp.evaluator.metrics import flagged
from eomt_exp.report.leaderboard import Leaderboard, Result
from eomt_exp.report.metric_names import UNDEFINED, best, metric

SPECIAL = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$", "τ": r"$\tau$", "\N{EN DASH}": "--",
    "\N{EM DASH}": "---", "…": r"\ldots{}", "≥": r"$\geq$", "≤": r"$\leq$", "·": r"$\cdot$",
}  # fmt: skip
UP, DOWN = r"$\uparrow$", r"$\downarrow$"


def as_latex(board: Leaderboard) -> str:
    r"""Write a table environment for a document with \usepackage{booktabs}; it needs nothing else.

    Methods down, benchmarks across, in percent with one decimal; intervals are in the CSV.
    Warnings stand under the table, marked in the caption, so that they are printed with it; notes
    follow them.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        *("<%", "%>", "<<", ">>", "<#", "#>"),  # braces are LaTeX's
        trim_blocks=True,
        keep_trailing_newline=True,
        loader=PackageLoader("eomt_exp.report"),
    )
    title = f"{board.title} (protocol: {board.protocol})" if board.protocol else board.title
    columns = [(name, key) for name in board.benchmarks for key in _keys(board, name)]
    cells = {(board.name(r), r.benchmark): r for r in board.results}
    groups, start = [], 2  # column 1 is the method's
    for name in board.benchmarks:
        groups.append((escaped(name), len(_keys(board, name)), start))
        start += len(_keys(board, name))
    rows = [
        [escaped(method), *(_percent_cell(board, cells.get((method, n)), k) for n, k in columns)]
        for method in board.methods
    ]
    return environment.get_template("leaderboard.tex").render(
        caption=escaped(title),
        mark=r"$^{\dagger}$" if board.warnings else "",
        groups=groups,
        headings=[
            f"{escaped(metric(key).heading)} {UP if metric(key).better > 0 else DOWN}"
            for _, key in columns
        ],
        rows=rows,
        seeds=list(_seed_rows(board, columns)),
        warnings=map(escaped, board.warnings),
        notes=map(escaped, board.notes),
    )


def _seed_rows(board: Leaderboard, columns: Sequence[tuple[str, str]]) -> Iterator[list[str]]:
    """Write mean and sample standard deviation of experiments that have several seeds."""
    found = {(r.experiment, r.scorer, r.benchmark, r.metric): r for r in board.over_seeds}
    for experiment, scorer in dict.fromkeys((r.experiment, r.scorer) for r in board.over_seeds):
        there = [found.get((experiment, scorer, name, key)) for name, key in columns]
        cells = [rf"{100 * r.mean:.1f} $\pm$ {100 * r.std:.1f}" if r else "--" for r in there]
        if any(there):
            count = max(len(r.seeds) for r in there if r)
            yield [escaped(f"{experiment} {scorer}, {count} seeds"), *cells]


def escaped(text: str) -> str:
    """Escape text so that LaTeX prints it as it is; letters outside Latin become question marks."""
    text = " ".join(text.split())
    latin = [mark for mark in text if mark.isascii() or (mark.isalpha() and ord(mark) < 0x180)]
    marks = dict(zip(latin, latin, strict=True)) | SPECIAL  # known without further packages
    return "".join(marks.get(mark, "?") for mark in text)


def _keys(board: Leaderboard, benchmark: str) -> list[str]:
    always = flagged("headline")
    there = {key for result in board.on(benchmark) for key in result.metrics}
    return [key for key in flagged("paper") if key in always or key in there]


def _percent_cell(board: Leaderboard, result: Result | None, key: str) -> str:
    """Write 0.8123 as 81.2, bold where no other method on this benchmark reads better."""
    value = result.metrics.get(key) if result else None
    if result is None or value is None:
        return "--"
    if math.isnan(value):
        return UNDEFINED
    winner = best(key, [r.metrics.get(key) for r in board.on(result.benchmark)])
    text = f"{100 * value:.1f}"
    is_best = winner is not None and text == f"{100 * winner:.1f}"
    return rf"\textbf{{{text}}}" if is_best else text
