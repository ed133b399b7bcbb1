"""Draws what all pictures share, each on a canvas of its own: no pyplot, no global state."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eomt_exp.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, for colour-blind eyes too; its yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444", "#8C564B")
STYLES = ("-", "--", ":", "-.")
INK, FAINT, RULE = "#222222", "#8a8a8a", "#e0e0e0"
PAGE_COLOURS = {  # -> the variable of page.css, which has one value for light and one for dark
    **{colour.lower(): f"s{index}" for index, colour in enumerate(COLOURS)},
    **{INK: "ink", FAINT: "quiet", RULE: "rule"},
}
DPI = 100


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Make a white figure of that many inches (hundreds of pixels), with an Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def stroke(index: int) -> dict[str, Any]:
    """Choose colour and dash of a line: the dash changes when the colours are used up."""
    dash = STYLES[index // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dash}


def tidy(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Give axes their title at the left, a light grid and no box."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.grid(True, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)


def save_png(figure: Figure, path: str | Path, title: str) -> Path:
    """Write the figure, under a title, as a whole and return its path."""
    figure.suptitle(title, x=0.003, ha="left", fontsize=13, color=INK)
    with replacing(path) as scratch:
        figure.savefig(scratch, format="png", dpi=DPI)
    return Path(path)


def as_svg(figure: Figure, title: str) -> str:
    """Return the figure as an element of the report, whose style sheet gives fonts and colours.

    An artist with the gid "s3" becomes an element with data-s="3"; all other ids but those that
    the picture refers to are left out, since a page has many pictures.
    """
    from matplotlib import rc_context

    nobody = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(text, format="svg", transparent=True, metadata=nobody)
    svg = text.getvalue()
    svg = re.sub(r"<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="s(\d+)">', r'<g data-s="\1">', svg)
    svg = re.sub(r'<g id="[^"]*"(/?)>', r"<g\1>", svg)
    svg = re.sub(r"font(-family)?: [^;\"]*'DejaVu Sans'[^;\"]*", r"font\1: inherit", svg)
    for colour, name in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', svg)
    label = escape(title)
    head = f'<svg class="chart" role="img" aria-label="{label}" {box[0] if box else ""}>'
    inside = re.sub(r"\s*\n\s*", " ", svg[svg.index(">", svg.index("<svg")) + 1 :])
    return f"{head}<title>{label}</title>{inside}"
