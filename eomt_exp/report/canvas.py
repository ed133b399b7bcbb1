"""The look every figure shares, drawn on a canvas of its own: no pyplot, no global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eomt_exp.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind eyes too; its yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444", "#8C564B")
STYLES = ("-", "--", ":", "-.")
INK, FAINT = "#222222", "#8a8a8a"
DPI = 100


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of that many inches (hundreds of pixels), with an Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash of the index-th line: the dash changes when the colours are used up."""
    dash = STYLES[index // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dash}


def tidy(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Title at the left, light grid, no box."""
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
    """Write the figure at one stroke and return its path."""
    with replacing(path) as scratch:
        figure.savefig(scratch, format="png", dpi=DPI)
    return Path(path)
