"""Prints the end of a run: a table of results, and where its files are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_exp.files import write_text
from eomt_exp.report.leaderboard import OverSeeds, PublishedResult
from eomt_exp.report.metric_names import (
    MAIN,
    UNDEFINED,
    best_of_each,
    is_best,
    measured,
    metric,
    ordered,
    shown,
    shown_interval,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ALWAYS, WHERE_MEASURED = MAIN[:3], MAIN[3:]
LOG_WIDTH = 300  # columns where there is no terminal: rich takes 80 and cuts numbers off
NUM_PUBLISHED = 6  # shown of each benchmark: here our own numbers come first


def results_table(
    metrics: Mapping[str, float | None],
    title: str | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Table:
    """Tabulate benchmarks and scorers by metrics, as fractions; the best one has a star.

    Reads "<benchmark>/<scorer>/<metric>" keys; "<set>/miou" becomes the line below the table.
    NaN, and the None it becomes in metrics.json, read "undefined". `intervals` has the same keys;
    AP shows its own.
    """
    from rich.markup import escape

    cells = _cells(metrics)
    names = [*ALWAYS, *measured(WHERE_MEASURED, [*cells.values()])]
    table = _empty_table(title, ["benchmark", "scorer"], names)
    caption = escape(_semantic(metrics) or "") or None
    table.caption, table.caption_justify, table.caption_style = caption, "left", ""
    previous = None
    for (benchmark, scorer), row in cells.items():
        if previous not in (None, benchmark):
            table.add_section()
        rivals = [other for (name, _), other in cells.items() if name == benchmark]
        winners = best_of_each(names, rivals)
        values = [_starred(key, row.get(key), winners[key]) for key in names]
        interval = (intervals or {}).get(f"{benchmark}/{scorer}/ap")
        if interval is not None and not math.isnan(row.get("ap", math.nan)):
            values[0] += f" {escape(shown_interval('ap', *interval))}"
        table.add_row("" if benchmark == previous else escape(benchmark), escape(scorer), *values)
        previous = benchmark
    return table


def published_table(published: Sequence[PublishedResult]) -> Table:
    """Tabulate published numbers, of each benchmark the first NUM_PUBLISHED.

    Notes below say the protocol and source of each; the last one counts what is left out.
    """
    from rich.markup import escape

    groups: dict[str, list[PublishedResult]] = {}
    for entry in published:
        groups.setdefault(entry.benchmark, []).append(entry)
    chosen = [entry for group in groups.values() for entry in group[:NUM_PUBLISHED]]
    remarks = list(dict.fromkeys(_protocol_and_source(entry) for entry in chosen))
    names = ordered(key for entry in chosen for key in entry.values)
    table = _empty_table("published", ["benchmark", "method"], names)
    table.add_column("note", justify="right", no_wrap=True)
    previous = None
    for entry in chosen:
        if previous not in (None, entry.benchmark):
            table.add_section()
        values = [_starred(key, entry.values.get(key), None) for key in names]
        name = "" if entry.benchmark == previous else escape(entry.benchmark)
        number = remarks.index(_protocol_and_source(entry)) + 1
        table.add_row(name, escape(entry.method), *values, str(number))
        previous = entry.benchmark
    notes = [f"{index}  {escape(remark)}" for index, remark in enumerate(remarks, 1)]
    if more := len(published) - len(chosen):
        notes.append(f"and {more} more in report.html")
    table.caption, table.caption_justify, table.caption_style = "\n".join(notes), "left", ""
    return table


def seeds_table(seeds: Sequence[OverSeeds]) -> Table:
    """Tabulate mean and sample standard deviation of experiments that have several seeds."""
    from rich.markup import escape

    names = ordered(row.metric for row in seeds)
    table = _empty_table("over seeds", ["benchmark", "method", "seeds"], names)
    rows: dict[tuple[str, str], dict[str, OverSeeds]] = {}
    for row in seeds:
        rows.setdefault((row.benchmark, f"{row.experiment} {row.scorer}"), {})[row.metric] = row
    for (benchmark, method), found in rows.items():
        values = [
            f"{shown(key, found[key].mean)} ± {shown(key, found[key].std)}" if key in found else "-"
            for key in names
        ]
        counts = str(max(len(row.seeds) for row in found.values()))
        table.add_row(escape(benchmark), escape(method), counts, *values)
    return table


def print_report(
    metrics: Mapping[str, float | None],
    run_dir: str | Path,
    figures: Sequence[Path] = (),
    console: Console | None = None,
    checkpoint: str | Path | None = None,
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    published: Sequence[PublishedResult] = (),
    seeds: Sequence[OverSeeds] = (),
) -> None:
    """Print warnings in red, the tables, then each file there is, a path a line and never broken.

    `intervals`, `warnings` and `notes` as in a Leaderboard, the first keyed like `metrics`.
    """
    console = console or make_console()
    for warning in warnings:
        console.print(f"! {warning}", style="bold red", markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if any(key.count("/") == 2 for key in metrics):
        _print_table(console, metrics, intervals)
    elif line := _semantic(metrics):
        console.print(line, markup=False)
    if seeds:
        console.print(seeds_table(seeds))
    if published:
        console.print(published_table(published))
    _print_files(console, Path(run_dir), figures, checkpoint)


def make_console() -> Console:
    """Return a console as wide as its terminal, or wide enough for whole tables in a log."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def _print_table(
    console: Console,
    metrics: Mapping[str, float | None],
    intervals: Mapping[str, tuple[float, float]] | None,
) -> None:
    """Print intervals and all metrics where they fit, on a narrow screen AP, FPR95 and AUROC."""
    from rich.measure import Measurement

    few = {k: value for k, value in metrics.items() if k.rpartition("/")[2] not in WHERE_MEASURED}
    tables = [results_table(metrics, intervals=intervals), results_table(metrics)]
    wide = console.options.update(width=LOG_WIDTH)
    for table in tables:
        if Measurement.get(console, wide, table).maximum <= console.width:
            console.print(table)
            return
    console.print(results_table(few))
    if len(few) < len(metrics):
        console.print("more metrics on a wider terminal, and in metrics.json", soft_wrap=True)


def _print_files(
    console: Console, run_dir: Path, figures: Sequence[Path], checkpoint: str | Path | None
) -> None:
    files = {
        "metrics": run_dir / "metrics.json",
        "report": run_dir / "report.html",
        "exports": run_dir / "exports",
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
    """Write metrics.json, {"metrics": ..., "manifest": ...}; NaN and inf become null."""
    content = _as_json({"metrics": metrics, "manifest": manifest})
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _as_json(value: object) -> object:
    """Convert to what JSON knows; numpy and torch scalars by their item(), others by their text."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_json(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _as_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _cells(metrics: Mapping[str, float | None]) -> dict[tuple[str, str], dict[str, float]]:
    """Map (benchmark, scorer) to its metrics, in the order they came, benchmarks kept together."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        parts = key.split("/")
        if len(parts) == 3 and parts[2] in MAIN:
            rows.setdefault((parts[0], parts[1]), {})[parts[2]] = _nan_for_none(value)
    order = list(dict.fromkeys(benchmark for benchmark, _ in rows))
    return dict(sorted(rows.items(), key=lambda item: order.index(item[0][0])))


def _empty_table(title: str | None, labels: Sequence[str], keys: Sequence[str]) -> Table:
    """Make columns without rows; thin rules and stars need no colour, so that logs have them too.

    Where columns do not fit, names are folded: a number is never cut off for them.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for label in labels:
        table.add_column(label, overflow="fold")
    for key in keys:
        table.add_column(metric(key).heading, justify="right", no_wrap=True)
    return table


def _protocol_and_source(entry: PublishedResult) -> str:
    return "; ".join(part for part in (entry.protocol, entry.source) if part)


def _starred(key: str, value: float | None, winner: float | None) -> str:
    if value is None:
        return "- "
    text = shown(key, value)
    return f"[bold]{text}*[/bold]" if is_best(key, value, winner) else f"{text} "


def _nan_for_none(value: float | None) -> float:
    """Return NaN for the null that it becomes in a metrics.json."""
    return math.nan if value is None else float(value)


def _semantic(metrics: Mapping[str, float | None]) -> str | None:
    """Write "semantic: val/miou 0.712" of every "<set>/miou", or None."""
    found = {key: _nan_for_none(value) for key, value in metrics.items() if key.endswith("/miou")}
    texts = [f"{key} {UNDEFINED if math.isnan(v) else f'{v:.3f}'}" for key, v in found.items()]
    return f"semantic: {', '.join(texts)}" if texts else None
