"""Prints the end of a run: a table of results, and where its files are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eomt_exp.evaluator.metrics import Metric, flagged
from eomt_exp.files import write_text
from eomt_exp.report import tables
from eomt_exp.report.leaderboard import OverSeeds, PublishedResult
from eomt_exp.report.metric_names import best, metric, ordered, shown
from eomt_exp.report.tables import Entry

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LOG_WIDTH = 300  # columns where there is no terminal: rich takes 80 and cuts numbers off
NUM_PUBLISHED = 6  # shown of each benchmark: here our own numbers come first


def results_table(
    metrics: Mapping[str, float | None], intervals: Mapping[str, tuple[float, float]] | None = None
) -> Table:
    """Tabulate benchmarks and scorers by metrics, as fractions; the best one has a star.

    Reads "<benchmark>/<scorer>/<metric>" keys; "<set>/miou" becomes the line below the table.
    NaN, and the None it becomes in metrics.json, read "undefined". `intervals` has the same keys;
    AP shows its own.
    """
    cells = _cells(metrics)
    always, rows = flagged("narrow"), [*cells.values()]
    names = [key for key in flagged("main") if key in always or any(key in row for row in rows)]
    table = []
    for (benchmark, scorer), row in cells.items():
        entries = [Entry(benchmark), Entry(scorer)]
        for key in names:
            rivals = [other.get(key) for (name, _), other in cells.items() if name == benchmark]
            interval = (intervals or {}).get(f"{benchmark}/{scorer}/{key}") if key == "ap" else None
            entries.append(tables.number(key, row.get(key), interval, best(key, rivals)))
        table.append(entries)
    headings = [Metric("benchmark"), Metric("scorer"), *map(metric, names)]
    return rich_table(tables.Table(headings, table), None, _known_classes(metrics))


def published_table(published: Sequence[PublishedResult]) -> Table:
    """Tabulate published numbers, of each benchmark the first NUM_PUBLISHED.

    Notes below say the protocol and source of each; the last one counts what is left out.
    """
    groups = groupby(published, key=lambda entry: entry.benchmark)
    chosen = [entry for _, group in groups for entry in islice(group, NUM_PUBLISHED)]
    said = ["; ".join(filter(None, (entry.protocol, entry.source))) for entry in chosen]
    remarks = list(dict.fromkeys(said))
    names = ordered(key for entry in chosen for key in entry.values)
    rows = [
        [
            *(Entry(entry.benchmark), Entry(entry.method)),
            *(tables.number(key, entry.values.get(key)) for key in names),
            Entry(str(remarks.index(remark) + 1), look="number"),
        ]
        for entry, remark in zip(chosen, said, strict=True)
    ]
    notes = [f"{index}  {remark}" for index, remark in enumerate(remarks, 1)]
    if more := len(published) - len(chosen):
        notes.append(f"and {more} more in report.html")
    headings = [Metric("benchmark"), Metric("method"), *map(metric, names), Metric("note")]
    return rich_table(tables.Table(headings, rows), "published", "\n".join(notes))


def print_report(
    saved: Mapping[str, Any],
    run_dir: Path,
    published: Sequence[PublishedResult] = (),
    console: Console | None = None,
) -> None:
    """Print warnings in red, the tables, then each file there is, a path a line and never broken.

    `saved` is what metrics.json holds, so that a run which was complete before shows the same.
    """
    console = console or make_console()
    metrics, manifest = saved["metrics"], saved["manifest"]
    for warning in manifest.get("warnings", manifest.get("stamps", [])):  # their old name
        console.print(f"! {warning}", style="bold red", markup=False, soft_wrap=True)
    protocol = manifest.get("protocol", {}).get("name")
    for note in [f"protocol {protocol}"] * bool(protocol) + manifest.get("notes", []):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if _cells(metrics):
        _print_table(console, metrics, manifest.get("intervals", {}))
    else:
        nothing = "nothing was measured: benchmark=none, and no known classes."
        console.print(_known_classes(metrics) or nothing, markup=False)
    if seeds := [OverSeeds(**row) for row in manifest.get("over_seeds", [])]:
        console.print(rich_table(tables.over_seeds(seeds), "over seeds"))
    if published:
        console.print(published_table(published))
    _print_files(console, run_dir)


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
    intervals: Mapping[str, tuple[float, float]],
) -> None:
    """Print intervals and all metrics where they fit, on a narrow screen AP, FPR95 and AUROC."""
    from rich.measure import Measurement

    extra = {key for key in flagged("main") if key not in flagged("narrow")}
    few = {k: value for k, value in metrics.items() if k.rpartition("/")[2] not in extra}
    wide = console.options.update(width=LOG_WIDTH)
    for table in (results_table(metrics, intervals=intervals), results_table(metrics)):
        if Measurement.get(console, wide, table).maximum <= console.width:
            console.print(table)
            return
    console.print(results_table(few))
    if len(few) < len(metrics):
        console.print("more metrics on a wider terminal, and in metrics.json", soft_wrap=True)


def _print_files(console: Console, run_dir: Path) -> None:
    files = {
        "metrics": run_dir / "metrics.json",
        "report": run_dir / "report.html",
        "exports": run_dir / "exports",
        "checkpoint": run_dir / "model.safetensors",
    }
    lines = [(label, path) for label, path in files.items() if path.exists()]
    lines += [("figure", path) for path in sorted(run_dir.glob("figures/*.png"))]
    for label, path in [("run", run_dir), *lines]:
        console.print(f"{label:<11}{path}", markup=False, soft_wrap=True)


def write_metrics(path: str | Path, saved: Mapping[str, object]) -> None:
    """Write metrics.json, {"metrics": ..., "manifest": ...}; NaN and inf become null."""
    write_text(path, json.dumps(_as_json(saved), indent=2, allow_nan=False) + "\n")


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
        if key.count("/") == 2 and (name := key.rpartition("/")[2]) in flagged("main"):
            benchmark, scorer, _ = key.split("/")
            rows.setdefault((benchmark, scorer), {})[name] = math.nan if value is None else value
    order = [benchmark for benchmark, _ in rows]
    return dict(sorted(rows.items(), key=lambda item: order.index(item[0][0])))


def rich_table(table: tables.Table, title: str | None, caption: str = "") -> Table:
    """Draw a table; thin rules and stars need no colour, so that logs have them too.

    A first column that repeats is written once, with a gap above. Where columns do not fit, names
    are folded: a number is never cut off for them.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    drawn.caption, drawn.caption_justify, drawn.caption_style = escape(caption) or None, "left", ""
    looks = [entry.look for entry in (table.rows or [[]])[0]]
    for heading, look in zip(table.headings, looks, strict=False):
        if look in ("number", "quiet"):
            drawn.add_column(heading.heading, justify="right", no_wrap=True)
        else:
            drawn.add_column(heading.heading, overflow="fold")
    previous = None
    for first, *others in table.rows:
        if previous not in (None, first.text):
            drawn.add_section()
        name = "" if first.text == previous else escape(first.text)
        drawn.add_row(name, *map(_rich_text, others))
        previous = first.text
    return drawn


def _rich_text(entry: Entry) -> str:
    from rich.markup import escape

    text = f"[bold]{escape(entry.text)}*[/bold]" if entry.is_best else escape(entry.text)
    if entry.look in ("number", "quiet") and not entry.is_best:
        text += " "  # below the others' star
    return f"{text} {escape(entry.below)}" if entry.below else text


def _known_classes(metrics: Mapping[str, float | None]) -> str:
    """Write "known classes: val/miou 0.712" of every "<set>/miou", or ""."""
    texts = [f"{key} {shown('miou', v)}" for key, v in metrics.items() if key.endswith("/miou")]
    return f"known classes: {', '.join(texts)}" if texts else ""
