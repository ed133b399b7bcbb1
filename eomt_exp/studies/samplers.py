"""Samplers whose draws depend on the seed and the trial's number alone, whoever asks.

A sampler that is seeded once repeats its draws after a restart and in each further process; here
every trial gets one of its own. What a sampler must remember it finds in the study.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from eomt_exp.studies.settings import StudyError
from eomt_exp.studies.storage import quiet_optuna, refuse_unknown

_LARGEST_GRID = 1_000_000


class SpaceExhausted(Exception):
    """Every point of a finite space has been asked."""


class Kind(NamedTuple):
    """What a sampler is called in Optuna, our defaults, its other options, its limits."""

    class_name: str
    defaults: dict[str, Any]
    options: tuple[str, ...] = ()
    several_objectives: bool = True
    package: str | None = None  # that Optuna needs for it and does not bring


_LOUD = {"warn_independent_sampling": False}  # a line per trial and parameter otherwise
KINDS: dict[str, Kind] = {
    "tpe": Kind(
        "TPESampler",
        {"multivariate": True, "group": True, "constant_liar": True},
        ("n_startup_trials", "n_ei_candidates"),
    ),
    "cma_es": Kind(
        "CmaEsSampler",
        dict(_LOUD),
        (
            "n_startup_trials",
            "popsize",
            "use_separable_cma",
            "with_margin",
            "lr_adapt",
            "consider_pruned_trials",
        ),
        several_objectives=False,
        package="cmaes",
    ),
    "gp": Kind("GPSampler", dict(_LOUD), ("n_startup_trials", "deterministic_objective")),
    "nsga2": Kind(
        "NSGAIISampler",
        {},
        ("population_size", "mutation_prob", "crossover_prob", "swapping_prob"),
    ),
    "random": Kind("RandomSampler", {}),
    "grid": Kind("", {}),
    "qmc": Kind("QMCSampler", {"scramble": True, **_LOUD}, ("qmc_type",)),
}


def make_sampler(settings: Mapping[str, Any], *, seed: int, space: Any = None) -> SeededSampler:
    """The sampler of {name: tpe, …}; `space.grid()` gives a grid's values by parameter.

    Options that are null keep Optuna's default. Raises StudyError with what is allowed.
    """
    name = str(settings.get("name"))
    if name not in KINDS:
        raise StudyError(
            f"No sampler is called {name!r}; type hydra/sweeper/sampler=<one of "
            f"{', '.join(KINDS)}>."
        )
    kind = KINDS[name]
    if kind.package and find_spec(kind.package) is None:
        raise StudyError(f"The sampler {name} needs a package: pip install {kind.package}")
    given = {key: value for key, value in settings.items() if key != "name"}
    where = f"hydra.sweeper.sampler, {name}"
    hidden = tuple(_LOUD)
    try:
        refuse_unknown(where, given, (*kind.options, *(set(kind.defaults) - set(hidden))))
        quiet_optuna()
        build = _builder(name, {k: v for k, v in given.items() if v is not None}, seed, space)
        build(0)  # wrong values are found now, not at the first trial
    except (TypeError, ValueError) as error:
        text = str(error)
        raise StudyError(text if text.startswith(where) else f"{where}: {text}") from error
    return SeededSampler(name, build)


def seed_of(seed: int, number: int) -> int:
    """A seed for one trial, 32 bits; neighbours have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def point_of(trial: FrozenTrial) -> dict[str, Any]:
    """Parameters of a trial; until it has them all, those it is going to take among them."""
    if "asked" in trial.user_attrs:
        return trial.params
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def point_key(point: Mapping[str, Any]) -> str:
    """Equal for equal points, whatever the order; 4 and 4.0 are one number, 1 and "1" are not."""
    plain = {k: float(v) if type(v) in (int, float) else v for k, v in point.items()}
    return json.dumps(plain, sort_keys=True)


def _builder(
    name: str, given: dict[str, Any], seed: int, space: Any
) -> Callable[[int], BaseSampler]:
    """What makes the sampler of a trial by its number."""
    if name == "grid":
        grid = _Grid(space.grid(), seed)
        return lambda number: grid
    kind = KINDS[name]
    maker = getattr(optuna.samplers, kind.class_name)
    options = {**kind.defaults, **given}
    if name == "qmc":
        # One sequence for the whole study, which counts where it is; the first trial is random.
        return lambda number: maker(
            seed=seed,
            independent_sampler=optuna.samplers.RandomSampler(seed_of(seed, number)),
            **options,
        )
    return lambda number: maker(seed=seed_of(seed, number), **options)


class SeededSampler(BaseSampler):
    """Hands each trial to a sampler made for its number; threads may ask at the same time."""

    def __init__(self, name: str, build: Callable[[int], BaseSampler]) -> None:
        self.name, self.build = name, build
        self._inner: dict[int, BaseSampler] = {}
        self._lock = threading.Lock()

    def check(self, objectives: int) -> None:
        """StudyError if the sampler cannot have that many objectives."""
        if objectives > 1 and not KINDS[self.name].several_objectives:
            able = ", ".join(name for name, kind in KINDS.items() if kind.several_objectives)
            raise StudyError(
                f"The sampler {self.name} has one objective, the study {objectives}; type "
                f"hydra/sweeper/sampler=nsga2 (or one of {able})."
            )

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        with self._lock:
            if trial.number not in self._inner:
                self._inner[trial.number] = self.build(trial.number)
            return self._inner[trial.number]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._of(trial).after_trial(study, trial, state, values)
        with self._lock:
            self._inner.pop(trial.number, None)


class _Grid(BaseSampler):
    """The next point that no trial has had, in an order drawn from the seed.

    Not Optuna's: that one takes a point for tried whose trial was killed before it began, repeats
    points of a grid it has been through, and ends by study.stop(), which ask and tell refuse.
    """

    def __init__(self, values: Mapping[str, Sequence[Any]], seed: int) -> None:
        self.values = {name: list(choices) for name, choices in sorted(values.items())}
        size = math.prod(len(choices) for choices in self.values.values())
        if size > _LARGEST_GRID:
            raise ValueError(f"the grid has {size} points; type hydra/sweeper/sampler=qmc.")
        self.order = random.Random(seed).sample(range(size), size)
        self._chosen: dict[int, dict[str, Any]] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if trial.number not in self._chosen:
            self._chosen[trial.number] = self._free_point(study, trial)
        return self._chosen[trial.number][param_name]

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._chosen.pop(trial.number, None)

    def _free_point(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        taken = {point_key(point_of(t)) for t in others}
        for index in self.order:
            point = self._point(index)
            if point_key(point) not in taken:
                return point
        raise SpaceExhausted

    def _point(self, index: int) -> dict[str, Any]:
        point = {}
        for name, choices in self.values.items():
            index, place = divmod(index, len(choices))
            point[name] = choices[place]
        return point
