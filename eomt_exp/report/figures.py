"""Draws a result: where a scorer sees anomalies, and how it trades misses for alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from eomt_exp.contracts import VOID
from eomt_exp.evaluator.ranking import PixelCurves
from eomt_exp.report.canvas import (
    FAINT,
    HEAT,
    INK,
    heat_range,
    line_style,
    new_figure,
    save_png,
    thinned,
    tidy,
)
from eomt_exp.report.metric_names import RECALL
from eomt_exp.report.training_figure import training_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["HeatMapRow", "curves_figure", "heat_map_figure", "training_figure"]

ANOMALY_COLOUR = (1.0, 0.24, 0.42)
MAX_WIDTH = 800  # pixels of a panel before it is drawn: a column is about 380 wide
MAX_POINTS = 2000  # of a curve


class HeatMapRow(NamedTuple):
    """Holds a picture with its truth and what a scorer made of it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    anomaly: np.ndarray  # (H, W) uint8: 0 normal, 1 anomaly, VOID
    score: np.ndarray  # (H, W) float, higher is more anomalous
    title: str  # the picture's name


def heat_map_figure(rows: Sequence[HeatMapRow], path: str | Path, title: str = "") -> Path:
    """Draw image | truth | heat map, a row each, as a PNG 1200 px wide; `title` names the scorer.

    One colour scale for all rows, from the 1st to the 99.5th percentile of the pixels that count.
    """
    if not rows:
        raise ValueError("heat_map_figure got no rows; give it at least one HeatMapRow.")
    rows = [_block_averaged(HeatMapRow(*row)) for row in rows]
    low, high = heat_range(_scores_that_count(rows))
    heights = [row.image.shape[0] / row.image.shape[1] for row in rows]
    figure = new_figure(12, 3.68 * sum(heights) + 0.26 * len(rows) + 0.8)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.04, wspace=0.0, hspace=0.0)
    grid = figure.add_gridspec(len(rows), 4, width_ratios=(1, 1, 1, 0.035), height_ratios=heights)
    for index, row in enumerate(rows):
        heat = np.clip((row.score - low) / (high - low), 0, 1)
        panels = (row.image / 255.0, _truth_panel(row), _heat_panel(row, heat))
        names = (row.title, "truth", "score, truth outlined") if index == 0 else (row.title, "", "")
        for column, (panel, name) in enumerate(zip(panels, names, strict=True)):
            axes = figure.add_subplot(grid[index, column])
            axes.imshow(panel, interpolation="antialiased")
            axes.set_title(name, loc="left", fontsize=10, color=INK)
            axes.set_axis_off()
        if (row.anomaly == 1).any():
            axes.contour(row.anomaly == 1, levels=[0.5], colors="white", linewidths=0.9)
    _colour_bar(figure, figure.add_subplot(grid[:, 3]), low, high)
    _truth_legend(figure)
    figure.suptitle(title, x=0.003, ha="left", fontsize=13, color=INK)
    return save_png(figure, path)


def _block_averaged(row: HeatMapRow) -> HeatMapRow:
    """Shrink a row by a whole number; a thin anomaly stays visible, void does not spread."""
    step = -(-row.image.shape[1] // MAX_WIDTH)
    height, width = (side // step * step for side in row.anomaly.shape)

    def blocks(array: np.ndarray) -> np.ndarray:  # (h, w, step * step, ...)
        array = np.asarray(array)[:height, :width]
        array = array.reshape(height // step, step, width // step, step, *array.shape[2:])
        return array.swapaxes(1, 2).reshape(*array.shape[::2][:2], step * step, *array.shape[4:])

    truth = blocks(row.anomaly)
    anomaly = np.where((truth == VOID).all(axis=2), VOID, (truth == 1).any(axis=2))
    score = np.nan_to_num(np.asarray(row.score, dtype=np.float32), nan=0.0)
    return HeatMapRow(
        blocks(row.image).mean(axis=2), anomaly, blocks(score).mean(axis=2), row.title
    )


def _scores_that_count(rows: Sequence[HeatMapRow]) -> np.ndarray:
    """Return the scores outside void, or all of them where there is nothing else."""
    scores = np.concatenate([row.score[row.anomaly != VOID] for row in rows])
    return scores if scores.size else np.concatenate([row.score.ravel() for row in rows])


def _dimmed(image: np.ndarray, brightness: float) -> np.ndarray:
    """Return the picture in grey, (h, w, 3) in [0, 1], as background for colours."""
    grey = image.mean(axis=2, keepdims=True) / 255.0
    return np.repeat(grey * brightness, 3, axis=2)


def _with_void_striped(row: HeatMapRow, panel: np.ndarray) -> np.ndarray:
    """Make void pixels pale and striped: they are not judged."""
    void = row.anomaly == VOID
    height, width = void.shape
    period = max(width // 60, 4)
    stripes = np.add.outer(np.arange(height), np.arange(width)) % period < period // 2
    pale = np.where(stripes, 0.62, 0.54)[..., None] + 0.2 * _dimmed(row.image, 1.0)
    return np.where(void[..., None], pale, panel)


def _truth_panel(row: HeatMapRow) -> np.ndarray:
    """Draw the anomaly in one colour over the dimmed picture."""
    panel = 0.05 + _dimmed(row.image, 0.6)
    anomaly = row.anomaly == 1
    panel[anomaly] = 0.2 * panel[anomaly] + 0.8 * np.array(ANOMALY_COLOUR)
    return _with_void_striped(row, panel)


def _heat_panel(row: HeatMapRow, heat: np.ndarray) -> np.ndarray:
    """Draw heat over the grey picture, denser where it is hotter."""
    from matplotlib import colormaps

    colour = colormaps[HEAT](heat)[..., :3]
    weight = 0.5 + 0.45 * heat[..., None]
    return _with_void_striped(row, _dimmed(row.image, 0.9) * (1 - weight) + colour * weight)


def _colour_bar(figure: Figure, axes: Axes, low: float, high: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(low, high), HEAT), cax=axes, extend="both")
    bar.set_label("anomaly score", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)


def _truth_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    void = Patch(facecolor="#a0a0a0", edgecolor="#c4c4c4", hatch="////", label="void: not judged")
    figure.legend(
        handles=[Patch(color=ANOMALY_COLOUR, label="anomaly"), void],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )


def curves_figure(
    curves: Mapping[str, PixelCurves],
    title: str,
    path: str | Path,
    results: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Draw precision-recall and ROC of every scorer, the best average precision first.

    `results` holds the exact {"ap", "auroc", "fpr95"} of scorers for the legend; without it they
    are read off the curves, which may be thinned.
    """
    if not curves:
        raise ValueError("curves_figure got no curves; give it at least one scorer's.")
    figure = new_figure(12, 5.4 + 0.2 * max(len(curves) - 4, 0))
    left, right = figure.subplots(1, 2)
    exact = results or {}
    found = {name: {**_areas(curve), **exact.get(name, {})} for name, curve in curves.items()}
    order = sorted(curves, key=lambda name: -np.nan_to_num(found[name]["ap"], nan=-1.0))
    for index, name in enumerate(order):
        curve, style = curves[name], {**line_style(index), "linewidth": 1.8}
        ap, auroc, fpr95 = (_three_digits(found[name][key]) for key in ("ap", "auroc", "fpr95"))
        left.plot(*_drawn_points(curve.recall, curve.precision), label=f"{name}   AP {ap}", **style)
        label = f"{name}   AUROC {auroc}   FPR95 {fpr95}"
        right.plot(*_drawn_points(curve.fpr, curve.tpr), label=label, **style)
        right.plot([found[name]["fpr95"]], [RECALL], "o", color=style["color"], markersize=5)
    chance = max(_share_of_anomaly(curve) for curve in curves.values())
    dashes = {"color": FAINT, "linestyle": (0, (2, 2)), "linewidth": 1.2}
    left.axhline(chance, label=f"chance   AP {chance:.3f}", **dashes)
    right.plot([0, 1], [0, 1], label="chance   AUROC 0.500", **dashes)
    right.axhline(RECALL, color=FAINT, linewidth=0.6)
    tidy(left, "Precision and recall", "recall", "precision")
    tidy(right, "ROC, with FPR95 marked", "false positive rate", "true positive rate")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), frameon=False, fontsize=9)
    figure.suptitle(title, x=0.003, ha="left", fontsize=13, color=INK)
    return save_png(figure, path)


def _three_digits(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "undefined"


def _rising(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 with x rising, whichever way the thresholds go."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return (x[::-1], y[::-1]) if x.size > 1 and x[0] > x[-1] else (x, y)


def _areas(curve: PixelCurves) -> dict[str, float]:
    """Compute "ap", "auroc" and "fpr95" of the points; NaN for the empty curve of no anomaly."""
    recall, precision = _rising(curve.recall, curve.precision)
    fpr, tpr = _rising(curve.fpr, curve.tpr)
    if recall.size == 0:
        return dict.fromkeys(("ap", "auroc", "fpr95"), float("nan"))
    above = np.flatnonzero(tpr >= RECALL)
    return {
        "ap": float(np.sum(np.diff(recall, prepend=0.0) * precision)),
        "auroc": float(np.sum(np.diff(fpr, prepend=0.0) * (tpr + np.append(0.0, tpr[:-1])) / 2)),
        "fpr95": float(fpr[above[0]]) if above.size else float("nan"),
    }


def _share_of_anomaly(curve: PixelCurves) -> float:
    """Return the precision of chance: that of calling every pixel an anomaly."""
    recall, precision = _rising(curve.recall, curve.precision)
    return float(precision[-1]) if recall.size else 0.0


def _drawn_points(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return thinned(*_rising(x, y), MAX_POINTS)
