"""A study in pictures: one page to open in a browser, and the same pictures as PNGs.

The page holds plotly itself, so it needs no network and works from a disk as in MLflow's frame.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from eomt_exp.files import write_text
from eomt_exp.studies.drawing import Plot, panel, png
from eomt_exp.studies.page import page
from eomt_exp.studies.table import short_names, shown

PAGE = "study.html"
MAX_PARAMS = 8  # of a slice or parallel plot: more cannot be read side by side
MAX_LABEL = 18  # characters of a choice on an axis

_log = logging.getLogger(__name__)


def draw(study: Study, folder: str | Path, objective_names: Sequence[str]) -> list[Path]:
    """Write study.html and the PNGs into `folder`; return their paths, the page first.

    What a study is too young to show is left out, and the page says why.
    """
    folder, names = Path(folder), list(objective_names)
    with _quiet():
        plots = _plots(study, names)
        panels = [panel(plot) for plot in plots]
        text = page(study, names, panels)
        pictures = [png(plot, folder) for plot in plots if plot.has_png and not plot.missing]
    write_text(folder / PAGE, text)
    return [folder / PAGE, *(path for path in pictures if path is not None)]


def _plots(study: Study, names: Sequence[str]) -> list[Plot]:
    short, plots = short_names(names), []
    several = len(names) > 1
    if several:
        plots.append(_pareto(_copy(study), names))
    for index, name in enumerate(names):
        # A study of this objective alone: with `target=` Optuna would forget which way is better.
        one = _copy(study, index)
        end = f"_{short[name].replace('/', '_')}" if several else ""
        plots += _of_one(one, name, end)
    one = _copy(study, 0)
    reported = any(trial.intermediate_values for trial in one.trials)
    missing = "" if reported else "no trial has reported while it ran."
    if several:
        missing = "trials report while they run, and are pruned, for one objective only."
    began = any(trial.datetime_start for trial in one.trials)
    return [
        *plots,
        Plot("intermediate_values", f"{names[0]} while trials ran", "plot_intermediate_values",
             one, {}, (8, 5), missing),
        Plot("timeline", "Timeline", "plot_timeline", one, {}, has_png=False,
             missing="" if began else "no trial has begun."),
    ]  # fmt: skip


def _of_one(one: Study, name: str, end: str) -> list[Plot]:
    """What is drawn of each objective."""
    complete = one.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    none = "" if complete else "no trial is complete."
    weights = _importances(one, complete)
    params = sorted({key for trial in complete for key in trial.params})
    # The important ones first, those that not all trials have last.
    params = sorted(params, key=lambda key: -weights.get(key, -1.0))[:MAX_PARAMS]
    wide = max(len(params), 1)
    named = {"target_name": name}
    unequal = none or ("" if weights else "it takes two complete trials of different values.")
    return [
        Plot(f"history{end}", f"{name} over the study", "plot_optimization_history", one, named,
             missing=none),
        Plot(f"importance{end}", f"Which parameters matter for {name}", "plot_param_importances",
             one, {**named, "evaluator": _Known(weights)}, (8, 1.4 + 0.4 * wide), unequal),
        Plot(f"slice{end}", f"{name} by parameter", "plot_slice", one,
             {**named, "params": params}, (8.0, 4.2), none or _no_params(params)),
        Plot(f"parallel_coordinate{end}", f"Trials as lines through their parameters, {name}",
             "plot_parallel_coordinate", one, {**named, "params": params},
             (max(8.0, 2.0 * wide + 3), 4.8), none or _no_params(params)),
    ]  # fmt: skip


def _pareto(copy: Study, names: Sequence[str]) -> Plot:
    complete = copy.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    missing = "" if complete else "no trial is complete."
    if len(names) > 3:
        missing = f"it has no more than three axes, and this study {len(names)} objectives."
    settings = {"target_names": list(names)}
    return Plot("pareto", "Pareto front", "plot_pareto_front", copy, settings, (7, 5), missing)


def _no_params(params: Sequence[str]) -> str:
    return "" if params else "the trials have no parameters."


class _Known(BaseImportanceEvaluator):
    """Gives what was computed once to both libraries."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights

    def evaluate(
        self,
        study: Study,
        params: list[str] | None = None,
        *,
        target: Callable[[FrozenTrial], float] | None = None,
    ) -> dict[str, float]:
        return self.weights


def _importances(one: Study, complete: Sequence[FrozenTrial]) -> dict[str, float]:
    """fANOVA's share of the variance by parameter; {} where there is no variance yet."""
    if len({trial.value for trial in complete}) < 2:
        return {}
    try:
        return FanovaImportanceEvaluator(n_trees=32, seed=0).evaluate(one)
    except (ValueError, RuntimeError) as error:
        _log.debug("no importances: %s", error)
        return {}


def _copy(study: Study, index: int | None = None) -> Study:
    """The study in memory under names that fit on an axis, with all objectives or the index-th."""
    trials = study.get_trials(deepcopy=True)
    short = short_names(key for trial in trials for key in trial.params)
    ways = study.directions if index is None else [study.directions[index]]
    copy = optuna.create_study(study_name=study.study_name, directions=ways)
    for trial in trials:
        old = trial.distributions
        trial.params = {short[key]: _label(old[key], value) for key, value in trial.params.items()}
        trial.distributions = {short[key]: _labelled(one) for key, one in old.items()}
        if index is not None and trial.values is not None:
            trial.values = [trial.values[index]]
        copy.add_trial(trial)
    return copy


def _labelled(distribution: BaseDistribution) -> BaseDistribution:
    if not isinstance(distribution, CategoricalDistribution):
        return distribution
    return CategoricalDistribution([_label(distribution, one) for one in distribution.choices])


def _label(distribution: BaseDistribution, value: Any) -> Any:
    """A choice as short text, with its place where two would read the same; numbers as they are."""
    if not isinstance(distribution, CategoricalDistribution):
        return value
    if all(type(one) in (int, float) for one in distribution.choices):
        return value
    cut = [_cut(shown(one)) for one in distribution.choices]
    place = list(distribution.choices).index(value)
    return _Word(cut[place] if cut.count(cut[place]) == 1 else f"{cut[place]} {place}")


class _Word(str):
    """Text that Optuna, which labels axes by repr, writes without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _cut(text: str) -> str:
    """Both ends: lists of losses begin alike."""
    half = MAX_LABEL // 2 - 1
    return text if len(text) <= MAX_LABEL else f"{text[:half]}…{text[-half:]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No word of Optuna on every copy and every experimental function."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
