"""Draws a result: where a scorer sees anomalies, and how it trades misses for alarms."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eomt_exp.contracts import VOID
from eomt_exp.engine.evaluation import Example
from eomt_exp.report.canvas import (
    COLOURS,
    FAINT,
    INK,
    as_svg,
    new_figure,
    save_png,
    stroke,
    tidy,
)
from eomt_exp.report.leaderboard import Histogram, Leaderboard, Result
from eomt_exp.report.metric_names import metric, shown
from eomt_exp.report.tables import size_range, size_ranges

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANOMALY, ANOMALY_COLOUR = "#ff3d6b", (255, 61, 107)
HEAT = "inferno"  # the colour map of scores
RECALL = 0.95  # the level of FPR95
QUALITY = 80  # of JPEG
CHANCE: Any = {"color": FAINT, "linestyle": (0, (2, 2)), "linewidth": 1.2}


class HeatMaps(NamedTuple):
    """Holds pictures to look at, with one colour scale for all: the ends of the scores' range."""

    panels: list[list[np.ndarray]]  # of each row photo, truth, heat map: (h, w, 3) uint8
    low: float
    high: float


def heat_maps(examples: Sequence[Example]) -> HeatMaps:
    """Draw photo, truth and heat map of each example.

    The scale goes from the 1st to the 99.5th percentile of the pixels that count.
    """
    examples = [example._replace(score=_finite(example.score)) for example in examples]
    low, high = _scale(examples)
    panels = [
        [e.image, truth_panel(e.image, e.anomaly), _heat_panel(e, (e.score - low) / (high - low))]
        for e in examples
    ]
    return HeatMaps([[panel.astype(np.uint8) for panel in row] for row in panels], low, high)


def heat_map_figure(examples: Sequence[Example], path: str | Path, title: str = "") -> Path:
    """Draw heat_maps, a row each, as a PNG 1200 px wide; `title` names the scorer."""
    panels, low, high = heat_maps(examples)
    heights = [photo.shape[0] / photo.shape[1] for photo, *_ in panels]
    figure = new_figure(12, 3.68 * sum(heights) + 0.26 * len(panels) + 0.8)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.04, wspace=0.0, hspace=0.0)
    grid = figure.add_gridspec(len(panels), 4, width_ratios=(1, 1, 1, 0.035), height_ratios=heights)
    for index, (e, drawn) in enumerate(zip(examples, panels, strict=True)):
        others = ("truth", "score, truth outlined") if index == 0 else ("", "")
        names = (f"{e.kind}, AP {e.ap:.3f}: {e.name}", *others)
        for column, (panel, name) in enumerate(zip(drawn, names, strict=True)):
            axes = figure.add_subplot(grid[index, column])
            axes.imshow(panel, interpolation="antialiased")
            axes.set_title(name, loc="left", fontsize=10, color=INK)
            axes.set_axis_off()
    _explain_colours(figure, figure.add_subplot(grid[:, 3]), low, high)
    return save_png(figure, path, title)


def as_jpeg(panel: np.ndarray) -> str:
    """Encode a picture (h, w, 3) uint8 as a data: address, for the report."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(panel).save(file, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def heat_colours() -> list[str]:
    """Return nine colours of the heat map, from the lowest score to the highest."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[HEAT](share)) for share in np.linspace(0, 1, 9)]


def _finite(score: np.ndarray) -> np.ndarray:
    """Put infinite scores at the ends of the finite ones, NaN at the lower end."""
    score = np.asarray(score, dtype=np.float32)
    inside = score[np.isfinite(score)]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    return np.nan_to_num(score, nan=low, posinf=high, neginf=low)


def _scale(examples: Sequence[Example]) -> tuple[float, float]:
    """Return the ends of the colours, percentiles so that one wild pixel cannot set them."""
    scores = np.concatenate([e.score[e.anomaly != VOID] for e in examples])
    if not scores.size:  # nothing but void
        scores = np.concatenate([e.score.ravel() for e in examples])
    low, high = np.percentile(scores, (1, 99.5)).tolist()
    return low, high if high > low else low + 1.0


def dimmed(image: np.ndarray, brightness: float) -> np.ndarray:
    """Return the picture in grey, (h, w, 3) in [0, 255], as background for colours."""
    return np.repeat(image.mean(axis=2, keepdims=True) * brightness, 3, axis=2)


def striped(panel: np.ndarray, image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Make pixels of a panel pale and striped, `where` (h, w) bool says so: they do not count."""
    height, width = where.shape
    period = max(width // 60, 4)
    stripes = np.add.outer(np.arange(height), np.arange(width)) % period < period // 2
    pale = np.where(stripes, 158, 138)[..., None] + 0.2 * dimmed(image, 1.0)
    return np.where(where[..., None], pale, panel)


def truth_panel(image: np.ndarray, anomaly: np.ndarray) -> np.ndarray:
    """Draw the anomaly in one colour over the dimmed picture (h, w, 3), void pixels striped."""
    panel = 13 + dimmed(image, 0.6)
    panel[anomaly == 1] = 0.2 * panel[anomaly == 1] + 0.8 * np.array(ANOMALY_COLOUR)
    return striped(panel, image, anomaly == VOID)


def _heat_panel(row: Example, heat: np.ndarray) -> np.ndarray:
    """Draw heat over the grey picture, denser where it is hotter; the truth outlined in white."""
    from matplotlib import colormaps

    heat = np.clip(heat, 0, 1)
    colour = 255 * colormaps[HEAT](heat)[..., :3]
    weight = 0.5 + 0.45 * heat[..., None]
    panel = dimmed(row.image, 0.9) * (1 - weight) + colour * weight
    panel = striped(panel, row.image, row.anomaly == VOID)
    return np.where(_outline(row.anomaly == 1)[..., None], 255, panel)


def _outline(region: np.ndarray) -> np.ndarray:
    """Return the pixels around a region (h, w), as many as show at this width."""
    from PIL import Image, ImageFilter

    size = 2 * max(region.shape[1] // 400, 1) + 1
    grown = Image.fromarray(region.astype(np.uint8)).filter(ImageFilter.MaxFilter(size))
    return (np.asarray(grown) > 0) & ~region


def _explain_colours(figure: Figure, axes: Axes, low: float, high: float) -> None:
    """Draw the bar of scores, and a legend of the truth below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch

    scale = ScalarMappable(Normalize(low, high), HEAT)
    bar = figure.colorbar(scale, cax=axes, extend="both", label="anomaly score")
    bar.outline.set_visible(False)
    void = Patch(facecolor="#a0a0a0", edgecolor="#c4c4c4", hatch="////", label="void: not judged")
    handles = [Patch(color=ANOMALY, label="anomaly"), void]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def curves_figure(board: Leaderboard, benchmark: str, path: str | Path) -> Path:
    """Draw precision-recall and ROC of every method side by side, as a PNG."""
    figure = new_figure(12, 5.4 + 0.2 * max(len(board.on(benchmark)) - 4, 0))
    for axes, draw in zip(figure.subplots(1, 2), (_draw_precision, _draw_roc), strict=True):
        draw(axes, board, benchmark)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), frameon=False, fontsize=9)
    return save_png(figure, path, benchmark)


def curve_charts(board: Leaderboard, benchmark: str) -> list[str]:
    """Draw the two parts of curves_figure for the report, one below the other on a phone."""
    found = []
    for name, draw in (("precision and recall", _draw_precision), ("ROC", _draw_roc)):
        figure, axes = _chart(4.4, 3.3, 0.2 * (len(board.on(benchmark)) + 1))
        draw(axes, board, benchmark)
        _add_legend(axes)
        found.append(as_svg(figure, f"{benchmark}: {name}"))
    return found


def histogram_chart(histogram: Histogram, title: str) -> str:
    """Draw normal and anomalous pixels over their score, by the square root of their density.

    The root keeps the few anomalous pixels of a wide tail visible beside one tall bin.
    """
    figure, axes = _chart(2.6, 1.3)
    edges = histogram.edges
    for shares, colour in zip((histogram.normal, histogram.anomaly), COLOURS, strict=False):
        heights = np.sqrt(shares / np.diff(edges))
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(heights, edges, color=colour, linewidth=1.0)
    axes.set_yticks([])
    axes.set_xticks([edges[0], edges[-1]], [f"{edges[0]:.3g}", f"{edges[-1]:.3g}"])
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.set_frame_on(False)
    return as_svg(figure, title)


def size_chart(board: Leaderboard, results: Sequence[Result]) -> str:
    """Draw the shares of true components that each method found, by ranges of size, as bars."""
    ranges = size_ranges(results)
    figure, axes = _chart(4.4, 2.4, 0.2 * len(results))
    width = 0.8 / len(results)
    for place, result in enumerate(results):
        found = {(row.low, row.high): row.found for row in result.sizes}
        index = board.methods.index(board.name(result))
        x = np.arange(len(ranges)) + (place + 0.5) * width - 0.4
        shares = np.nan_to_num([found.get(ends, 0.0) for ends in ranges])
        bars = axes.bar(x, shares, 0.9 * width, color=COLOURS[index % len(COLOURS)])
        for bar in bars:
            bar.set_gid(f"s{index}")
        bars.set_label(board.name(result))
    _add_legend(axes)
    tidy(axes, "", "pixels of the component")
    axes.grid(False, axis="x")
    axes.set(ylim=(0, 1), xticks=range(len(ranges)))
    axes.set_xticklabels([size_range(*ends) for ends in ranges])
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    return as_svg(figure, "Share of true components found, by size")


def _chart(width: float, height: float, below: float = 0.0) -> tuple[Figure, Axes]:
    """Make one plot for the report, of inches, with room below it; its place needs no search."""
    whole = height + below
    figure = new_figure(width, whole, layout=None)
    left, bottom, top = (0.5, 0.45 + below, 0.25) if width > 4 else (0.05, 0.25, 0.05)
    sides = (left / width, bottom / whole)
    place = (*sides, 1 - sides[0] - 0.1 / width, 1 - sides[1] - top / whole)
    return figure, figure.add_axes(place)


def _add_legend(axes: Axes) -> None:
    """Write the legend below the plot; its lines belong to the marks of their method."""
    place: Any = {"loc": "upper left", "bbox_to_anchor": (-0.1, -0.16)}
    legend = axes.legend(**place, frameon=False, fontsize=8, labelcolor=INK)
    for handle, text in zip(legend.legend_handles, legend.texts, strict=True):
        text.set_gid(handle.get_gid() if handle else None)


def _draw_precision(axes: Axes, board: Leaderboard, benchmark: str) -> None:
    _draw_curves(axes, board, benchmark, ("recall", "precision"), ("ap",))
    defined = [r.curves.precision for r in board.on(benchmark) if r.curves.recall.size]
    if defined:
        chance = max(float(precision[-1]) for precision in defined)
        axes.axhline(chance, label=f"chance   AP {chance:.3f}", **CHANCE)
    tidy(axes, "Precision and recall", "recall", "precision")


def _draw_roc(axes: Axes, board: Leaderboard, benchmark: str) -> None:
    _draw_curves(axes, board, benchmark, ("fpr", "tpr"), ("auroc", "fpr95"))
    axes.plot([0, 1], [0, 1], label="chance   AUROC 0.500", **CHANCE)
    axes.axhline(RECALL, color=FAINT, linewidth=0.6)
    tidy(axes, "ROC, with FPR95 marked", "false positive rate", "true positive rate")


def _draw_curves(
    axes: Axes, board: Leaderboard, benchmark: str, columns: tuple[str, str], keys: Sequence[str]
) -> None:
    """Draw two columns of each curve, the best AP first in the legend, a dot at RECALL.

    A method has one style on all benchmarks.
    """
    by_ap = sorted(board.on(benchmark), key=lambda r: -np.nan_to_num(r.metrics["ap"], nan=-1))
    for result in by_ap:
        name = board.name(result)
        index = board.methods.index(name)
        numbers = "   ".join(f"{metric(k).heading} {shown(k, result.metrics[k])}" for k in keys)
        style = {**stroke(index), "gid": f"s{index}"}
        x, y = (np.asarray(getattr(result.curves, column)) for column in columns)
        label = f"{name}   {numbers}"
        axes.plot(x, y, label=label, linewidth=1.6, **style)
        for place in np.flatnonzero(np.asarray(result.curves.recall) >= RECALL)[:1]:
            dot = (result.metrics["fpr95"], RECALL) if columns[0] == "fpr" else (x[place], y[place])
            axes.plot(*dot, "o", markersize=5, **{**style, "linestyle": ""})
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    if not any(result.curves.recall.size for result in by_ap):
        text = "undefined: no anomaly, or nothing else"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", fontsize=9, color=INK)
