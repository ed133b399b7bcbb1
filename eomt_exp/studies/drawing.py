"""One plot drawn with both of Optuna's libraries, and what their looks need mended.

plotly draws for the page, matplotlib for PNGs; a plot that fails is a word on the page, no more.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from optuna.distributions import CategoricalDistribution
from optuna.study import Study, StudyDirection

from eomt_exp.files import replacing
from eomt_exp.studies.page import Panel

DPI = 110

_log = logging.getLogger(__name__)
_SCALE = ("#8a8f98", "#D55E00")  # grey to orange
# Of the line of a trial over its steps: colour, width, dash of plotly, dash of matplotlib.
_LINES = {
    "best": ("#0072B2", 3.0, "solid", "-"),
    "complete": ("#56B4E9", 1.2, "solid", "-"),
    "pruned": ("#D55E00", 1.2, "dot", ":"),
    "running": ("#8a8a8a", 1.2, "dash", "--"),
}


class Plot(NamedTuple):
    """A picture that Optuna draws twice, for the page and as a PNG."""

    name: str  # of the PNG
    title: str
    function: str  # in optuna.visualization and optuna.visualization.matplotlib
    study: Study
    settings: dict[str, Any]
    size: tuple[float, float] = (8, 4.5)  # inches of the PNG
    missing: str = ""  # why it cannot be drawn yet
    has_png: bool = True


def panel(plot: Plot) -> Panel:
    """The plot for the page; whatever stops Optuna is said there instead."""
    from optuna import visualization

    if plot.missing:
        return Panel(plot.title, None, plot.missing)
    try:
        figure = getattr(visualization, plot.function)(plot.study, **plot.settings)
        _dress(figure, plot)
    except Exception as error:  # pictures are never worth a study
        return Panel(plot.title, None, f"{type(error).__name__}: {error}")
    return Panel(plot.title, figure.to_json(), "")


def _dress(figure: Any, plot: Plot) -> None:
    """Colours that can be told apart on white as on black; Optuna's blues end in either."""
    if plot.name == "intermediate_values":
        kinds = _kinds(plot.study)
        for trace in figure.data:
            kind = kinds[int(trace.name.removeprefix("Trial"))]
            colour, width, dash, _ = _LINES[kind]
            trace.update(line={"color": colour, "width": width, "dash": dash}, mode="lines+markers")
            trace.update(marker={"color": colour, "size": 5}, name=f"{trace.name}, {kind}")
    elif plot.name == "pareto":
        for trace, colour in zip(figure.data, _SCALE, strict=False):
            trace.update(marker={"color": colour, "showscale": False, "size": 8})
    else:
        figure.update_traces(marker={"colorscale": _SCALE}, selector=_has_scale)
    if plot.function == "plot_parallel_coordinate":
        is_less_better = plot.study.direction is StudyDirection.MINIMIZE
        for trace in figure.select_traces({"mode": "lines"}):
            place = trace.y[0]  # on the axis of the objective, 0 to 1; None in the legend
            if place is None:
                continue
            trace.update(line={"color": _mixed(1 - place if is_less_better else place)})
        figure.update_traces(opacity=0.8)
        figure.update_annotations(font={"color": _SCALE[0]})
    if plot.function == "plot_slice":
        figure.update_xaxes(exponentformat="e")  # 1e-4 instead of 100μ
        figure.update_xaxes(dtick=1, selector={"type": "log"})  # powers of ten alone
        figure.update_xaxes(tickangle=30, selector={"type": "category"})
    figure.update_layout(title=None, template="plotly_white", margin={"t": 30})
    if plot.function == "plot_slice" and len(plot.settings["params"]) > 4:
        figure.update_layout(width=240 * len(plot.settings["params"]))


def _mixed(share: float) -> str:
    from plotly.colors import find_intermediate_color, hex_to_rgb

    grey, orange = (hex_to_rgb(colour) for colour in _SCALE)
    return "rgb({:.0f},{:.0f},{:.0f})".format(*find_intermediate_color(grey, orange, share))


def _has_scale(trace: Any) -> bool:
    return trace.type == "scatter" and trace.marker.colorscale is not None


def png(plot: Plot, folder: Path) -> Path | None:
    """Draw `<folder>/<name>.png`; None where Optuna could not."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as sisters

    path, before = folder / f"{plot.name}.png", set(pyplot.get_fignums())
    with matplotlib.rc_context({"figure.figsize": plot.size}):
        try:
            axes = getattr(sisters, plot.function)(plot.study, **plot.settings)
            _mend(axes, plot)
            with replacing(path) as scratch:
                pyplot.gcf().savefig(scratch, format="png", dpi=DPI, bbox_inches="tight")
        except Exception as error:  # pictures are never worth a study
            _log.warning("%s could not be drawn (%s: %s)", path, type(error).__name__, error)
            return None
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
    return path


def _mend(axes: Any, plot: Plot) -> None:
    """Put the title in our words, and the kinds of trials into the legend instead of each one."""
    from matplotlib import pyplot

    first = axes if hasattr(axes, "set_title") else axes.flat[0]
    figure = pyplot.gcf()
    for one in figure.axes:
        one.set_title("")
        one.set_title("", loc="left")
    figure.suptitle(plot.title, fontsize=12, y=1.0)
    if plot.function == "plot_slice":
        for one in figure.axes:
            if _is_choice(plot.study, one.get_xlabel()):  # names stand too close to lie flat
                pyplot.setp(one.get_xticklabels(), rotation=30, ha="right", size=8)
    if plot.function == "plot_param_importances" and first.get_legend():
        first.get_legend().remove()
    if plot.name != "intermediate_values":
        return
    kinds = _kinds(plot.study)
    seen = {}
    for line in first.get_lines():
        kind = kinds[int(str(line.get_label()).removeprefix("Trial"))]
        colour, width, _, dash = _LINES[kind]
        line.set(color=colour, linewidth=width, linestyle=dash, zorder=3 if kind == "best" else 2)
        seen[kind] = line
    first.legend(seen.values(), seen.keys(), loc="best")


def _is_choice(one: Study, key: str) -> bool:
    spaces = [trial.distributions.get(key) for trial in one.trials]
    return any(isinstance(space, CategoricalDistribution) for space in spaces)


def _kinds(one: Study) -> dict[int, str]:
    """best, complete, pruned or running, by the trial's number."""
    kinds = {trial.number: trial.state.name.lower() for trial in one.trials}
    # Optuna's own choice, which looks at constraints as well.
    kinds.update({trial.number: "best" for trial in one.best_trials[:1]})
    return kinds
