"""Two ways of doing one thing, timed turn by turn (A B A B …), so that a busy machine slows both.

The minimum is what the work costs undisturbed, the median what one meets; a ratio is theirs / ours,
so that 2 means that ours takes half the time.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

Work = Callable[[], object]


class Times(NamedTuple):
    """What one side took, one number a repetition."""

    seconds: list[float]
    peak: int  # bytes of GPU memory above what was held before; 0 without a GPU


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: Times
    theirs: Times
    wanted: float | None = None  # the ratio aimed at

    @property
    def ratio(self) -> float:
        """Theirs / ours, by the minima."""
        return min(self.theirs.seconds) / min(self.ours.seconds)

    @property
    def ratio_of_medians(self) -> float:
        """Theirs / ours, by the medians."""
        medians = [statistics.median(side.seconds) for side in (self.theirs, self.ours)]
        return medians[0] / medians[1]


def compare(
    what: str,
    ours: Work,
    theirs: Work,
    *,
    repeats: int,
    device: torch.device | str = "cpu",
    wanted: float | None = None,
    warm_up: int = 1,
) -> Row:
    """Run both sides `warm_up` times unmeasured, then `repeats` times in turns."""
    device = torch.device(device)
    seconds: tuple[list[float], list[float]] = ([], [])
    peaks = [0, 0]
    for turn in range(-warm_up, repeats):
        for side, work in enumerate((ours, theirs)):
            took, peak = _measured(work, device)
            if turn >= 0:
                seconds[side].append(took)
                peaks[side] = max(peaks[side], peak)
    return Row(what, Times(seconds[0], peaks[0]), Times(seconds[1], peaks[1]), wanted)


def _measured(work: Work, device: torch.device) -> tuple[float, int]:
    """Seconds and, on a GPU, bytes at the highest point above those held before."""
    held = 0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter() - start, torch.cuda.max_memory_allocated(device) - held
    return time.perf_counter() - start, 0


def table(title: str, rows: Sequence[Row], *, theirs: str) -> Table:
    """Milliseconds of both sides and their ratios; memory where a GPU was measured."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    has_memory = any(row.ours.peak for row in rows)
    for side in ("ours", theirs):
        shown.add_column(f"{side}\nmin ms", justify="right")
        shown.add_column("median", justify="right")
        if has_memory:
            shown.add_column("peak GB", justify="right")
    for name in ("ratio\nby min", "by\nmedian", "wanted"):
        shown.add_column(name, justify="right")
    for row in rows:
        cells = [row.what]
        for times in (row.ours, row.theirs):
            cells += [f"{1e3 * f(times.seconds):.1f}" for f in (min, statistics.median)]
            cells += [f"{times.peak / 1e9:.2f}"] if has_memory else []
        wanted = "" if row.wanted is None else f">= {row.wanted:g}"
        shown.add_row(*cells, f"{row.ratio:.2f}", f"{row.ratio_of_medians:.2f}", wanted)
    return shown


def console() -> Console:
    """Where tables go; wide enough for them in a log file too."""
    wide = Console(highlight=False)
    return wide if wide.width >= 110 else Console(highlight=False, width=110)


def machine(device: torch.device | str) -> str:
    """One line: the device's name, the threads in use and torch's version."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _processor() -> str:
    """The processor's name as Linux tells it, or what Python knows elsewhere."""
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parser(
    description: str | None, *, repeats: int, threads: int | None = None
) -> argparse.ArgumentParser:
    """--repeats and --threads, which every comparison has; `threads` None means all cores."""
    options = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    options.add_argument(
        "--repeats", type=positive, default=repeats, help=f"turns of each side (default {repeats})"
    )
    options.add_argument(
        "--threads",
        type=positive,
        default=threads or cores(),
        help=f"of torch (default {threads or 'all cores'})",
    )
    return options


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number
