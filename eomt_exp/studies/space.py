"""The search space of a study: which keys are searched, through which values, and when.

Read from the sweeper's `params` and the words of the command line; asked of an Optuna trial; given
out again as Hydra overrides that say the same values to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from eomt_exp.studies.rules import Lookup, Rule, SpaceError, parse_rule
from eomt_exp.studies.space_checks import check_parameters, check_rules
from eomt_exp.studies.space_domains import Pattern, choices, text_of
from eomt_exp.studies.space_surroundings import Compose, Groups, Surroundings
from eomt_exp.studies.space_syntax import Parameter, name_of, parameter_of, parse, read_parameter

__all__ = ["SearchSpace", "SpaceError", "read_space"]


def read_space(
    params: Mapping[str, Any],
    words: Sequence[str],
    forbid: Sequence[Mapping[str, Any]] = (),
) -> tuple["SearchSpace", list[str]]:
    """The space of `params` and of the sweeps among `words`, and the words that are no sweep.

    The command line wins: a sweep there replaces the key's space (its `when` stays), a plain value
    or a deletion takes the key out. `forbid` holds combinations that are never tried. Raises
    SpaceError.
    """
    found = [read_parameter(str(key), node) for key, node in (_plain(params) or {}).items()]
    written = {parameter.name: parameter for parameter in found}
    typed: dict[str, Parameter] = {}
    fixed: list[tuple[str, str]] = []
    for word in words:
        override = parse(word)
        name = name_of(override)
        if not override.is_sweep_override():
            written.pop(name, None)
            typed.pop(name, None)
            fixed.append((name, word))
            continue
        fixed = [(key, kept) for key, kept in fixed if key != name or kept.startswith("~")]
        home = written if name in written else typed
        home[name] = parameter_of(override, home[name].when if name in home else None)
    rules = [parse_rule(rule, f"forbid[{i}]") for i, rule in enumerate(_plain(forbid) or ())]
    # Those typed anew come first: a `when` in YAML may look at them.
    return SearchSpace([*typed.values(), *written.values()], rules), [word for _, word in fixed]


class SearchSpace:
    """Parameters in the order in which they are asked, and combinations that are forbidden.

    Values are what Optuna stores: numbers, words, true, false and null; a list or mapping to
    choose is its override text.
    """

    def __init__(self, parameters: Sequence[Parameter], rules: Sequence[Rule] = ()) -> None:
        self.parameters = {parameter.name: parameter for parameter in parameters}
        self.rules = list(rules)
        self._lookup: Lookup = _nothing

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def names(self) -> list[str]:
        """Keys, without + or ++."""
        return list(self.parameters)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """As Optuna knows them, conditional ones too."""
        return {name: p.domain.distribution for name, p in self.parameters.items()}

    def check(
        self,
        cfg: DictConfig,
        groups: Groups,
        compose: Compose | None = None,
    ) -> None:
        """Compare the space with the configuration it is for, and list the options of globs.

        `cfg` is a job's configuration without swept values, best with its hydra node; `groups(key)`
        the options of a config group, or None. A searched group brings keys that `cfg` has not got:
        with `compose(words)`, the configuration under further overrides, they are checked too;
        without, they are let through. Raises SpaceError with the line to type.
        """
        self._fill_globs(groups)
        around = Surroundings(cfg, groups, self.parameters, compose)
        check_parameters(around)
        check_rules(around, self.rules)
        self._lookup = around.lookup

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Ask for each parameter whose `when` holds of the values so far and the configuration."""
        values: dict[str, Any] = {}
        lookup = self._over(values, self._lookup)
        for name, parameter in self.parameters.items():
            if parameter.when is None or parameter.when.holds(lookup):
                asked = _ask(trial, name, parameter.domain.distribution)
                values[name] = parameter.domain.find(asked)
        return values

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Hydra overrides that set these values. Raises SpaceError for one outside the space."""
        foreign = [name for name in values if name not in self.parameters]
        if foreign:
            raise SpaceError(
                f"{', '.join(foreign)}: not searched; the space has {', '.join(self.names)}."
            )
        return [
            f"{parameter.prefix}{name}={text_of(self._native(name, values[name]))}"
            for name, parameter in self.parameters.items()
            if name in values
        ]

    def fingerprint(self) -> dict[str, str]:
        """What is searched under each key, in canonical words; equal for equal spaces.

        Forbidden combinations are no part of it: a study may learn what cannot be.
        """
        return {
            name: p.text + (f" when {p.when.text}" if p.when else "")
            for name, p in self.parameters.items()
        }

    def grid(self) -> dict[str, list[Any]]:
        """All values of each parameter, for a grid. Raises SpaceError where that is not finite."""
        endless, found = [], {}
        for name, parameter in self.parameters.items():
            values = parameter.domain.values
            if parameter.when is not None:
                endless.append(f"{name} has a condition")
            elif values is None:
                endless.append(f"{name} is {parameter.text}")
            else:
                found[name] = values
        if endless:
            raise SpaceError(
                f"a grid needs a finite list for every key, always: {'; '.join(endless)}. Write "
                "choice(…) or range(…) without `when`, or take another sampler: "
                "hydra/sweeper/sampler=tpe."
            )
        return found

    def forbidden(self, values: Mapping[str, Any], lookup: Lookup) -> str | None:
        """The text of the first forbidden combination that these values make, or None.

        `lookup(key)` is the configuration's value of a key that is not among them.
        """
        combined = self._over(values, lookup)
        return next((rule.text for rule in self.rules if rule.holds(combined)), None)

    def defaults(self, lookup: Lookup) -> dict[str, Any] | None:
        """The configuration's own values as a point of the space.

        None where one lies outside it, is no scalar, or where together they are forbidden.
        """
        values: dict[str, Any] = {}
        combined = self._over(values, lookup)
        for name, parameter in self.parameters.items():
            if parameter.when is not None and not parameter.when.holds(combined):
                continue
            if parameter.prefix == "+":
                return None  # a key to be added has no value of its own
            try:
                values[name] = parameter.domain.find(_scalar(lookup(name)))
            except LookupError:
                return None
        return values if self.forbidden(values, lookup) is None else None

    def num_points(self) -> int:
        """How many points a grid over this space has; 0 where it has none."""
        try:
            return math.prod(len(values) for values in self.grid().values())
        except SpaceError:
            return 0

    def outsiders(self, lookup: Lookup) -> list[str]:
        """Parameters whose value in the configuration lies outside the space."""
        found = []
        for name, parameter in self.parameters.items():
            try:
                parameter.domain.find(_scalar(lookup(name)))
            except LookupError:
                found.append(name)
        return found

    def probes(self, name: str) -> list[str]:
        """Words that set a parameter to each of its choices, or to both ends of its range."""
        distribution = self.parameters[name].domain.distribution
        if isinstance(distribution, CategoricalDistribution):
            values = list(distribution.choices)
        else:
            values = [distribution.low, distribution.high]  # type: ignore[attr-defined]
        return [word for value in values for word in self.words({name: value})]

    def _over(self, values: Mapping[str, Any], lookup: Lookup) -> Lookup:
        """Chosen values first, then the configuration's."""
        return lambda key: self._native(key, values[key]) if key in values else lookup(key)

    def _native(self, name: str, value: Any) -> Any:
        domain = self.parameters[name].domain
        try:
            return domain.native(value)
        except LookupError as error:
            raise SpaceError(f"{name}: {value!r} is not in {domain.text}.") from error

    def _fill_globs(self, groups: Groups) -> None:
        for name, parameter in self.parameters.items():
            if not isinstance(parameter.domain, Pattern):
                continue
            options = groups(name.partition("@")[0])
            if options is None:
                raise SpaceError(
                    f"{name}: glob is for config groups, and this is none: write choice(a, b)."
                )
            chosen = parameter.domain.glob.filter(options)
            if len(chosen) < 2:
                raise SpaceError(
                    f"{name}: {parameter.text} finds {len(chosen)} of the options "
                    f"{', '.join(options)}; write a wider pattern, such as glob(*)."
                )
            self.parameters[name] = replace(parameter, domain=choices(name, chosen))


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _nothing(key: str) -> Any:
    raise KeyError(key)


def _scalar(value: Any) -> Any:
    """An Enum's name; LookupError for what is several values."""
    value = value.name if isinstance(value, Enum) else value
    if isinstance(value, Mapping):
        raise LookupError(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _ask(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    return trial.suggest_categorical(name, distribution.choices)  # type: ignore[attr-defined]
