"""Draws what all pictures share, each on a canvas of its own: no pyplot, no global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eomt_exp.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, for colour-blind eyes too; its yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444", "#8C564B")
STYLES = ("-", "--", ":", "-.")
INK, FAINT = "#222222", "#8a8a8a"
HEAT = "inferno"  # the colour map of scores
DPI = 100


def new_figure(width: float, height: float) -> Figure:
    """Make a white figure of that many inches (hundreds of pixels), with an Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Choose colour and dash of a line: the dash changes when the colours are used up."""
    dash = STYLES[index // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dash}


def heat_range(scores: np.ndarray) -> tuple[float, float]:
    """Return the ends of a colour scale, percentiles so that one wild pixel cannot set them."""
    low, high = np.percentile(scores, (1, 99.5))
    return float(low), float(high if high > low else low + 1.0)


def thinned(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most that many points of a curve, both ends among them."""
    keep = np.unique(np.linspace(0, max(x.size - 1, 0), min(x.size, most)).astype(int))
    return np.asarray(x)[keep], np.asarray(y)[keep]


def tidy(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Give axes their title at the left, a light grid and no box."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write the figure as a whole and return its path."""
    with replacing(path) as scratch:
        figure.savefig(scratch, format="png", dpi=DPI)
    return Path(path)
