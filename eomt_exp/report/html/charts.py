"""Draws the report's charts as inline SVG: few marks, colours of the page, nothing to load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eomt_exp.report.canvas import thinned
from eomt_exp.report.html.tags import Html, tag
from eomt_exp.report.leaderboard import Histogram

NUM_COLOURS = 8  # --s0 … --s7 of the style sheet
DASHES = (None, "7 3", "2 3", "9 3 2 3")
MAX_POINTS = 200  # of a curve
MAX_BINS = 60
WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 12, 44  # around the plot itself


class Line(NamedTuple):
    """Holds a curve in the unit square."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: int  # the same method has the same one everywhere


def stroke(style: int) -> dict[str, object]:
    """Choose colour and dash: successive lines differ in both, and the first 32 are unlike."""
    dash = DASHES[(style + style // NUM_COLOURS) % len(DASHES)]
    return {"class_": f"line c{style % NUM_COLOURS}", "stroke_dasharray": dash}


def swatch(style: int) -> Html:
    """Draw a short piece of the line, for legends."""
    line = tag("line", x1=1, x2=27, y1=6, y2=6, **stroke(style))
    return tag("svg", line, class_="swatch", viewBox="0 0 28 12", aria_hidden="true")


def unit_chart(
    lines: Sequence[Line],
    title: str,
    axes: tuple[str, str],
    dots: Sequence[tuple[float, float, int]] = (),
    guide: Sequence[tuple[float, float]] = (),
) -> Html:
    """Draw lines over the unit square; `dots` are (x, y, style), `guide` a faint line."""
    drawn = [_path(line) for line in lines if line.x.size]
    marks = [
        tag("circle", cx=_x(x), cy=_y(y), r=4.5, class_=f"dot c{style % NUM_COLOURS}", data_s=style)
        for x, y, style in dots
        if np.isfinite((x, y)).all()
    ]
    empty = None if drawn else _note("undefined: no anomaly, or nothing else")
    return _svg(
        title,
        _grid(axes),
        tag("polyline", points=_points(guide), class_="guide") if guide else None,
        *drawn,
        *marks,
        empty,
    )


def _path(line: Line) -> Html:
    x, y = thinned(line.x, line.y, MAX_POINTS)
    finite = np.isfinite(x) & np.isfinite(y)
    points = _points(zip(x[finite], y[finite], strict=True))
    return tag(
        "polyline", tag("title", line.name), points=points, data_s=line.style, **stroke(line.style)
    )


def _points(pairs: object) -> str:
    return " ".join(f"{_x(x)},{_y(y)}" for x, y in pairs)  # type: ignore[attr-defined]


def _x(share: float) -> str:
    return f"{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}"


def _y(share: float) -> str:
    return f"{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"


def _svg(title: str, *parts: object, height: float = HEIGHT, width: float = WIDTH) -> Html:
    return tag(
        "svg",
        tag("title", title),
        *parts,
        class_="chart",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=title,
    )


def _grid(axes: tuple[str, str]) -> Html:
    """Draw lines and labels at every fifth."""
    parts = []
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        x, y, text = _x(share), _y(share), f"{share:g}"
        parts += [
            tag("line", x1=_x(0), x2=_x(1), y1=y, y2=y, class_="grid"),
            tag("text", text, x=LEFT - 8, y=float(y) + 4, class_="end"),
            tag("text", text, x=x, y=HEIGHT - BOTTOM + 18, class_="middle"),
        ]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turn = f"rotate(-90 12 {middle})"
    return tag(
        "g",
        *parts,
        tag("text", axes[0], x=_x(0.5), y=HEIGHT - 6, class_="middle axis"),
        tag("text", axes[1], x=12, y=middle, class_="middle axis", transform=turn),
    )


def _note(text: str, width: float = WIDTH, height: float = HEIGHT) -> Html:
    return tag("text", text, x=width / 2, y=height / 2, class_="middle axis")


def histogram_chart(histogram: Histogram, title: str) -> Html:
    """Draw normal and anomalous pixels over their score, by the square root of their density.

    The root keeps the few anomalous pixels of a wide tail visible beside one tall bin.
    """
    width, height, base = 300.0, 150.0, 128.0
    edges = finite_edges(np.asarray(histogram.edges, dtype=np.float64))
    if edges.size < 2 or edges[-1] <= edges[0]:
        note = _note("undefined: no range of scores", width, height)
        return _svg(title, note, width=width, height=height)
    step = -(-(edges.size - 1) // MAX_BINS)
    coarse = np.append(edges[:-1][::step], edges[-1])
    spans = np.maximum(np.diff(coarse), 1e-12 * (edges[-1] - edges[0]))
    heights = [
        np.sqrt(np.nan_to_num(np.add.reduceat(shares, np.arange(0, shares.size, step))) / spans)
        for shares in (np.asarray(histogram.normal), np.asarray(histogram.anomaly))
    ]
    top = max(float(part.max()) for part in heights) or 1.0
    x = 4 + (coarse - coarse[0]) / (coarse[-1] - coarse[0]) * (width - 8)
    areas = [
        tag(
            "polygon", points=_steps(x, base - part / top * (base - 8), base), class_=f"area {kind}"
        )
        for part, kind in zip(heights, ("normal", "anomaly"), strict=True)
    ]
    return _svg(
        title,
        tag("line", x1=4, x2=width - 4, y1=base, y2=base, class_="grid"),
        *areas,
        tag("text", f"{coarse[0]:.3g}", x=4, y=height - 6),
        tag("text", "score", x=width / 2, y=height - 6, class_="middle axis"),
        tag("text", f"{coarse[-1]:.3g}", x=width - 4, y=height - 6, class_="end"),
        width=width,
        height=height,
    )


def finite_edges(edges: np.ndarray) -> np.ndarray:
    """Move infinite edges to one usual bin beyond the finite ones; none are left where all are."""
    inside = edges[np.isfinite(edges)]
    if inside.size == 0:
        return inside
    usual = float(np.median(np.diff(inside))) if inside.size > 1 else 1.0
    limits = {"neginf": inside[0] - (usual or 1.0), "posinf": inside[-1] + (usual or 1.0)}
    return np.nan_to_num(edges, nan=inside[0], **limits)


def _steps(x: np.ndarray, y: np.ndarray, base: float) -> str:
    """Outline bars side by side, closed along the base."""
    corners = np.repeat(x, 2)
    levels = np.concatenate(([base], np.repeat(y, 2), [base]))
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(corners, levels, strict=True))


def bar_chart(
    groups: Sequence[tuple[str, Sequence[tuple[str, float, int]]]], title: str, label: str
) -> Html:
    """Draw shares as bars: groups of (name, share, style), in the order of the legend."""
    parts: list[Html] = []
    width = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    for index, (name, bars) in enumerate(groups):
        start, step = LEFT + width * (index + 0.1), 0.8 * width / max(len(bars), 1)
        for position, (method, share, style) in enumerate(bars):
            value = min(max(share, 0.0), 1.0) if np.isfinite(share) else 0.0
            box = {
                "x": f"{start + position * step:.1f}",
                "width": f"{max(step - 1, 0.5):.1f}",
                "y": _y(value),
                "height": f"{float(_y(0)) - float(_y(value)):.1f}",
            }
            style_of_bar = {"class_": f"bar c{style % NUM_COLOURS}", "data_s": style}
            parts.append(tag("rect", tag("title", method), **style_of_bar, **box))
        middle = start + 0.4 * width
        parts.append(tag("text", name, x=f"{middle:.1f}", y=HEIGHT - 24, class_="middle"))
    axis = tag("text", label, x=_x(0.5), y=HEIGHT - 4, class_="middle axis")
    return _svg(title, _rules(), *parts, axis)


def _rules() -> Html:
    """Draw horizontal lines only: each group has its name."""
    return tag(
        "g",
        *(
            part
            for share in (0, 0.25, 0.5, 0.75, 1)
            for part in (
                tag("line", x1=_x(0), x2=_x(1), y1=_y(share), y2=_y(share), class_="grid"),
                tag("text", f"{share:.0%}", x=LEFT - 6, y=float(_y(share)) + 4, class_="end"),
            )
        ),
    )


def whisker(value: float, low: float, high: float, style: int) -> Html | None:
    """Draw a value in [0, 1] and its interval, small enough for a cell; None where undefined."""
    if not np.isfinite((value, low, high)).all():
        return None
    x = [4 + 112 * min(max(part, 0.0), 1.0) for part in (low, value, high)]
    colour = f"c{style % NUM_COLOURS}"
    return tag(
        "svg",
        tag("line", x1=4, x2=116, y1=8, y2=8, class_="grid"),
        tag("line", x1=f"{x[0]:.1f}", x2=f"{x[2]:.1f}", y1=8, y2=8, class_=f"line {colour}"),
        tag("circle", cx=f"{x[1]:.1f}", cy=8, r=4, class_=f"dot {colour}"),
        class_="whisker",
        viewBox="0 0 120 16",
        aria_hidden="true",
    )
