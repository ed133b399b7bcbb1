"""The end of a run in words: a table of results, and where its files are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_exp.engine.atomic import write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAIN = {"ap": "AP", "fpr95": "FPR95", "auroc": "AUROC"}
MORE = {"siou": "sIoU", "ppv": "PPV", "f1_star": "F1*"}  # columns only where something has them
LOWER_IS_BETTER = ("fpr95",)
UNDEFINED = "undefined"
MIN_WIDTH = 100


def results_table(metrics: Mapping[str, float | None], title: str | None = None) -> Table:
    """Benchmarks and scorers down, metrics across, as fractions; the best one has a star.

    Reads "<benchmark>/<scorer>/<metric>" keys; "<set>/miou" becomes the line below the table.
    NaN, and the None it becomes in metrics.json, read "undefined".
    """
    from rich import box
    from rich.table import Table

    cells = _cells(metrics)
    names = {
        **MAIN,
        **{key: MORE[key] for key in MORE if any(key in row for row in cells.values())},
    }
    # Thin rules and stars say it without colour too: reports land in logs.
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, caption=_semantic(metrics)
    )
    table.caption_justify, table.caption_style = "left", ""
    table.add_column("benchmark", no_wrap=True)
    table.add_column("scorer", no_wrap=True)
    for heading in names.values():
        table.add_column(heading, justify="right", no_wrap=True)
    best = {(name, key): _best(cells, name, key) for name, _ in cells for key in names}
    previous = None
    for (benchmark, scorer), row in cells.items():
        if previous not in (None, benchmark):
            table.add_section()
        values = [_cell(row.get(key), best[benchmark, key]) for key in names]
        table.add_row("" if benchmark == previous else benchmark, scorer, *values)
        previous = benchmark
    return table


def print_report(
    metrics: Mapping[str, float | None],
    run_dir: str | Path,
    figures: Sequence[Path] = (),
    console: Console | None = None,
    checkpoint: str | Path | None = None,
) -> None:
    """Print the table, then each file that is there, one path a line and never broken."""
    from rich.console import Console

    if console is None:
        console = Console(highlight=False)
        # Without a terminal rich takes 80 columns and writes no colour codes.
        if not console.is_terminal:
            console.width = max(console.width, MIN_WIDTH)
    run_dir = Path(run_dir)
    if any(key.count("/") == 2 for key in metrics):
        console.print(results_table(metrics))
    elif line := _semantic(metrics):
        console.print(line, markup=False)
    files = {
        "metrics": run_dir / "metrics.json",
        "checkpoint": checkpoint or run_dir / "model.safetensors",
    }
    lines = [(label, Path(path)) for label, path in files.items() if Path(path).exists()]
    lines += [("figure", Path(path)) for path in figures]
    for label, path in [("run", run_dir), *lines]:
        console.print(f"{label:<11}{path}", markup=False, soft_wrap=True)
    console.print("compare with other runs: make ui", markup=False, soft_wrap=True)


def write_metrics(
    path: str | Path, metrics: Mapping[str, float], manifest: Mapping[str, object]
) -> None:
    """metrics.json, {"metrics": ..., "manifest": ...}, at one stroke; NaN and inf become null."""
    content = _plain({"metrics": metrics, "manifest": manifest})
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _plain(value: object) -> object:
    """Only what JSON knows; numpy and torch scalars by their item(), others by their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _cells(metrics: Mapping[str, float | None]) -> dict[tuple[str, str], dict[str, float]]:
    """(benchmark, scorer) to its metrics, in the order they came, benchmarks kept together."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        parts = key.split("/")
        if len(parts) == 3 and parts[2] in (*MAIN, *MORE):
            rows.setdefault((parts[0], parts[1]), {})[parts[2]] = _number(value)
    order = list(dict.fromkeys(benchmark for benchmark, _ in rows))
    return dict(sorted(rows.items(), key=lambda item: order.index(item[0][0])))


def _best(
    cells: Mapping[tuple[str, str], Mapping[str, float]], benchmark: str, key: str
) -> float | None:
    """The best value of a benchmark; None where one scorer stands alone."""
    rows = [row for (name, _), row in cells.items() if name == benchmark]
    values = [row[key] for row in rows if not math.isnan(row.get(key, math.nan))]
    if len(rows) < 2 or not values:
        return None
    return min(values) if key in LOWER_IS_BETTER else max(values)


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return "- "
    if math.isnan(value):
        return f"{UNDEFINED} "
    return f"[bold]{value:.3f}*[/bold]" if value == best else f"{value:.3f} "


def _number(value: float | None) -> float:
    """The null of a metrics.json that was read back is the NaN it was."""
    return math.nan if value is None else float(value)


def _semantic(metrics: Mapping[str, float | None]) -> str | None:
    """ "semantic: val/miou 0.712" of every "<set>/miou", or None."""
    found = {key: _number(value) for key, value in metrics.items() if key.endswith("/miou")}
    texts = [f"{key} {UNDEFINED if math.isnan(v) else f'{v:.3f}'}" for key, v in found.items()]
    return f"semantic: {', '.join(texts)}" if texts else None
