"""Prints what the doctor found: a table for each data set, and the findings below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eomt_exp.report.terminal import make_console

TableLine = tuple[str, str, str]  # what, how much, remark
COLOUR = {"broken": "red", "error": "red", "warnings": "yellow", "warning": "yellow", "ok": "green"}


def print_checkup(
    name: str,
    verdict: str,
    summary: Sequence[TableLine],
    values: Iterable[TableLine],
    findings: Iterable[tuple[str, Sequence[str]]],
) -> None:
    """Print a set's verdict, table (only where it could be opened) and findings, worst first.

    Of each finding its severity and its lines, which are never broken, so that logs can be
    searched.
    """
    console = make_console()
    console.print(f"\n{name}: [{COLOUR.get(verdict, 'dim')}]{verdict}[/]", soft_wrap=True)
    if summary:
        console.print(_table(summary, values))
    for severity, lines in findings:
        console.print(f"{severity:<9}", end="", style=COLOUR.get(severity), markup=False)
        console.print("\n         ".join(lines), markup=False, soft_wrap=True)


def print_verdicts(verdicts: Iterable[tuple[str, str]]) -> None:
    """Print the last lines: every set with its verdict."""
    console = make_console()
    console.print()
    for name, verdict in verdicts:
        console.print(f"{name:<28} [{COLOUR.get(verdict, 'dim')}]{verdict}[/]", soft_wrap=True)


def _table(summary: Iterable[TableLine], values: Iterable[TableLine]) -> object:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("how much", justify="right", no_wrap=True)
    table.add_column("remark", no_wrap=True)
    for line in summary:
        table.add_row(*line)
    table.add_section()
    for value, share, meaning in values:
        table.add_row(f"label value {value}", share, meaning)
    return table
