"""The spread of a study's trials: mean and sample standard deviation of every metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Of the evaluator's many numbers, those a paper's table has.
_SHOWN = ("ap", "fpr95", "auroc", "f1_star", "miou")


def spread(metrics: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float, int]]:
    """{metric: (mean, sample standard deviation, trials)}, of metrics that two trials have."""
    names = dict.fromkeys(name for found in metrics for name in found)
    values = {name: [found[name] for found in metrics if name in found] for name in names}
    return {
        name: (mean(found), stdev(found), len(found))
        for name, found in values.items()
        if len(found) > 1
    }


def print_spread(
    metrics: Sequence[Mapping[str, float]], over: str, console: Console | None = None
) -> None:
    """A table of the field's usual metrics, over e.g. "seed"; nothing where there is no spread."""
    from rich.console import Console
    from rich.table import Table

    found = {
        name: values
        for name, values in spread(metrics).items()
        if name.rpartition("/")[2] in _SHOWN
    }
    if not found:
        return
    table = Table("metric", title=f"over {over}: mean ± sample standard deviation")
    table.add_column("mean ± std", justify="right")
    table.add_column("runs", justify="right")
    for name, (middle, deviation, runs) in found.items():
        table.add_row(name, f"{middle:.3f} ± {deviation:.3f}", str(runs))
    (console or Console(highlight=False)).print(table)
