"""Draws a study: study.html to open in a browser, and the same pictures as PNGs.

The page holds plotly itself, so it needs no network and works from a disk as in MLflow's frame.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from matplotlib import pyplot
from optuna import visualization
from optuna.study import Study
from optuna.trial import TrialState
from optuna.visualization import matplotlib as drawn
from plotly.offline import get_plotlyjs

from eomt_exp.files import replacing, write_text
from eomt_exp.studies.table import short_names

PAGE = "study.html"
_PNGS = dict(optimization_history="history", param_importances="importance", pareto_front="pareto")
MAX_PARAMS = 8  # of a slice or parallel plot: more cannot be read side by side
_log = logging.getLogger(__name__)
_STYLE = """body { max-width: 1200px; margin: 0 auto; padding: 24px; font-family: sans-serif; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 3px 10px; }
tr:nth-child(even) { background: #f3f5f8; } .frame { overflow: auto; max-height: 26rem; }"""


class Plot(NamedTuple):
    """A picture is drawn by Optuna with plotly for the page and with matplotlib as a PNG."""

    title: str
    function: str  # in optuna.visualization and optuna.visualization.matplotlib, after plot_
    study: Study
    settings: dict[str, Any]
    ending: str = ""  # of the PNG's name


def draw(study: Study, folder: Path, objective: Sequence[str]) -> list[Path]:
    """Write study.html and the PNGs into `folder`; return their paths, the page first.

    The page says which picture Optuna could not draw and why, as of a study that is too young.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what cannot be drawn is no news
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experimental functions, on every call
        plots = list(_plots(study, objective))
        write_text(folder / PAGE, _page(study, plots))
        return [folder / PAGE, *filter(None, [_png(plot, folder) for plot in plots])]


def _plots(study: Study, objective: Sequence[str]) -> Iterator[Plot]:
    if several := len(objective) > 1:
        yield Plot("Pareto front", "pareto_front", _copy(study), {"target_names": [*objective]})
    for index, name in enumerate(objective):
        # A study of this objective alone: with `target=` Optuna would forget which way is better.
        one = _copy(study, index)
        complete = one.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        params = sorted({key for trial in complete for key in trial.params})[:MAX_PARAMS]
        whole: dict[str, Any] = {"target_name": name}
        some = {**whole, "params": params}
        ending = f"_{name.rpartition('/')[2]}" if several else ""
        for title, function, settings in (
            (f"{name} over the study", "optimization_history", whole),
            (f"Which parameters matter for {name}", "param_importances", whole),
            (f"{name} by parameter", "slice", some),
            (f"{name}: trials as lines", "parallel_coordinate", some),
        ):
            yield Plot(title, function, one, settings, ending)
        if not several:
            yield Plot(f"{name} while trials ran", "intermediate_values", one, {})


def _copy(study: Study, index: int | None = None) -> Study:
    """Copy the study with names that fit on an axis, with all objectives or the index-th."""
    trials = study.get_trials(deepcopy=True)
    short = short_names(dict.fromkeys(key for trial in trials for key in trial.params))
    directions = study.directions if index is None else [study.directions[index]]
    copy = optuna.create_study(study_name=study.study_name, directions=directions)
    for trial in trials:
        trial.distributions = {short[key]: one for key, one in trial.distributions.items()}
        trial.params = {short[key]: value for key, value in trial.params.items()}
        if index is not None and trial.values is not None:
            trial.values = [trial.values[index]]
        copy.add_trial(trial)
    return copy


def _page(study: Study, plots: Sequence[Plot]) -> str:
    title = escape(study.study_name)
    columns = ("number", "state", "value" if len(study.directions) == 1 else "values")
    frame = study.trials_dataframe(attrs=(*columns, "duration", "params"))
    table = frame.iloc[::-1].to_html(index=False, float_format="{:.4g}".format, na_rep="")
    parts = [f'<h1>{title}</h1><div class="frame">{table}</div>']
    for plot in plots:
        parts.append(f"<h2>{escape(plot.title)}</h2>")
        try:
            figure = getattr(visualization, f"plot_{plot.function}")(plot.study, **plot.settings)
            figure.update_layout(title=None, margin={"t": 30})
            parts.append(figure.to_html(full_html=False, include_plotlyjs=False))
        except Exception as error:  # pictures are never worth a study
            parts.append(f"<p>Not drawn: {escape(f'{type(error).__name__}: {error}')}</p>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _png(plot: Plot, folder: Path) -> Path | None:
    """Draw a PNG into `folder`; None where Optuna could not."""
    pyplot.switch_backend("Agg")
    name = _PNGS.get(plot.function, plot.function)
    path = folder / f"{name}{plot.ending}.png"
    try:
        getattr(drawn, f"plot_{plot.function}")(plot.study, **plot.settings)
        with replacing(path) as scratch:
            pyplot.gcf().savefig(scratch, format="png", dpi=110, bbox_inches="tight")
    except Exception as error:  # pictures are never worth a study
        _log.warning("%s could not be drawn (%s: %s)", path, type(error).__name__, error)
        return None
    finally:
        pyplot.close()
    return path
