"""Prints what the doctor found: a table for each data set, and the findings below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from eomt_exp.report.terminal import make_console

TableLine = tuple[str, str, str]  # what, how much, remark
COLOUR = {"broken": "red", "error": "red", "warnings": "yellow", "warning": "yellow", "ok": "green"}


class FindingLike(Protocol):
    """Says what is printed of a finding."""

    @property
    def severity(self) -> str: ...

    @property
    def number(self) -> int: ...  # of which `names` are the first

    @property
    def text(self) -> str: ...

    @property
    def names(self) -> Sequence[str]: ...


def print_checkup(
    name: str,
    verdict: str,
    summary: Iterable[TableLine],
    values: Iterable[TableLine],
    findings: Iterable[FindingLike],
) -> None:
    """Print a set's verdict, table (only where it could be opened) and findings, worst first.

    Lines are never broken, so that logs can be searched.
    """
    console = make_console()
    console.print(f"\n{name}: [{COLOUR.get(verdict, 'dim')}]{verdict}[/]", soft_wrap=True)
    summary = list(summary)
    if summary:
        console.print(_table(summary, values))
    for finding in findings:
        label = f"{finding.severity:<9}"
        console.print(label, end="", style=COLOUR.get(finding.severity), markup=False)
        console.print(f"{finding.text}", markup=False, soft_wrap=True)
        for line in finding.names:
            console.print(f"{'':<9}{line}", markup=False, soft_wrap=True)
        if (more := finding.number - len(finding.names)) > 0 and finding.names:
            console.print(f"{'':<9}and {more:,} more", markup=False)


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
