"""Draws a run's metrics.jsonl in panels: losses first, then learning rates, then scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eomt_exp.evaluator.metrics import METRICS
from eomt_exp.report.canvas import FAINT, new_figure, save_png, stroke, tidy
from eomt_exp.tracking.metrics_file import read_journal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATE = "learning rate"
COLUMNS, MAX_PANELS, MAX_LINES = 3, 15, 8
MIN_SMOOTHED = 30  # points below which a curve is shown as it is
_SPEED = ("images_per_second", "data_wait", "peak_memory_gb", "gpu_utilisation")
Series = tuple[np.ndarray, np.ndarray]  # steps and values, NaN where undefined


def training_figure(jsonl_path: str | Path, path: str | Path) -> Path:
    """Draw every metric of the journal; a run that logged nothing gets a figure that says so."""
    panels = _panels(_series(read_journal(jsonl_path)))
    shown = dict(list(panels.items())[:MAX_PANELS])
    rows = max(-(-len(shown) // COLUMNS), 1)
    figure = new_figure(12, 2.7 * rows + 0.5)
    title = f"Training, {Path(jsonl_path).resolve().parent.name}"
    if len(panels) > len(shown):
        title += f"   (left out: {', '.join(list(panels)[MAX_PANELS:])})"[:150]
    if not shown:
        figure.text(0.5, 0.45, "no metrics were logged", ha="center", color=FAINT, fontsize=14)
        return save_png(figure, path, title)
    cells = figure.subplots(rows, min(COLUMNS, len(shown)), squeeze=False).ravel()
    for axes, (name, lines) in zip(cells, shown.items(), strict=False):
        _draw(axes, name, lines)
    for axes in cells[len(shown) :]:
        axes.set_axis_off()
    return save_png(figure, path, title)


def _series(lines: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    """Map each key to its points: a key need not be on every line."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key not in ("step", "time"):
                points.setdefault(key, []).append((line["step"], value))
    arrays = {key: np.array(sorted(pairs, key=lambda p: p[0])) for key, pairs in points.items()}
    return {key: (array[:, 0], array[:, 1]) for key, array in arrays.items()}


def _panels(series: Mapping[str, Series]) -> dict[str, dict[str, Series]]:
    """Map titles to lines: learning rates share a panel, so does a metric of many scorers."""
    panels: dict[str, dict[str, Series]] = {}
    for key in sorted(series, key=lambda key: (_rank(key), key)):
        title, line = _panel_and_line(key)
        panels.setdefault(title, {})[line] = series[key]
    return panels


def _rank(key: str) -> int:
    """Order keys: the total loss, the rest of the training, rates, the known scores, the speed."""
    front, last = key.partition("/")[0], key.rpartition("/")[2]
    if last in _SPEED:
        return 99
    if front == "train":
        return 0 if last == "total" else 1
    if front == "lr":
        return 2
    scores = list(METRICS)
    return 3 + (scores.index(last) if last in scores else len(scores))


def _panel_and_line(key: str) -> tuple[str, str]:
    """Split a key: `val/rba/ap` is the line `val/rba` of the panel `ap`; a loss has its own."""
    if key.startswith("lr/"):
        return RATE, key
    front, _, last = key.rpartition("/")
    return (key, key) if key.startswith("train/") else (last, front)


def _draw(axes: Axes, name: str, lines: Mapping[str, Series]) -> None:
    """Draw one panel; of more than MAX_LINES lines those that end highest."""
    chosen = list(lines)
    if len(chosen) > MAX_LINES:
        chosen = sorted(chosen, key=lambda key: -np.nan_to_num(lines[key][1][-1]))[:MAX_LINES]
    for index, key in enumerate(chosen):
        steps, values = lines[key]
        style, is_long = stroke(index), len(steps) >= MIN_SMOOTHED
        if is_long and name != RATE:
            axes.plot(steps, values, color=style["color"], alpha=0.25, linewidth=0.8)
            values = smoothed(values)
        marker = None if is_long else "o"
        axes.plot(steps, values, linewidth=1.7, marker=marker, markersize=3.5, label=key, **style)
    hidden = len(lines) - len(chosen)
    tidy(axes, f"{name} ({hidden} lower lines not shown)" if hidden else name, "step")
    _set_scales(axes, name, [lines[key] for key in chosen])
    if list(lines) != [name]:
        axes.legend(frameon=False, fontsize=7.5)


def _set_scales(axes: Axes, name: str, series: Sequence[Series]) -> None:
    """Use whole steps, a log axis for a loss that falls through decades, a text if all is NaN."""
    from matplotlib.ticker import MaxNLocator

    values = np.concatenate([values for _, values in series])
    steps = np.concatenate([steps for steps, _ in series])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if steps.min() == steps.max():
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    values = values[np.isfinite(values)]
    if values.size == 0:
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", color=FAINT)
        axes.set_yticks([])
        return
    # Percentiles: one odd batch should not choose the axis.
    low, high = np.percentile(values, (2, 98))
    if name.startswith("train/") and values.min() > 0 and high > 50 * low:
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
        axes.yaxis.get_offset_text().set_fontsize(8)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Average (N,) -> (N,) under a bell of about N / 80 points, which does not lag behind.

    NaN is stepped over and stays NaN, so that a diverged stretch shows as a gap.
    """
    from pandas import Series

    width = max(len(values) / 80, 1.0)
    bell = Series(values).rolling(6 * int(width) + 3, 1, center=True, win_type="gaussian")
    return np.where(np.isfinite(values), bell.mean(std=width), np.nan)
