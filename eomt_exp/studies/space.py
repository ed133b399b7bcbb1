"""Reads the search space of a study: which keys are searched, in which values, and when.

Hydra's own parser reads it, from the sweeper's `params` and from the command line, and Optuna draws
from it. Its values are given out again as overrides of a job, equal to the last bit.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from optuna import Trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from eomt_exp.contracts import UserError
from eomt_exp.studies.rules import Lookup, Rule, is_number, parse_rule, same, text_of

EXAMPLES = (
    "choice(a, b) · null,a · range(4, 13, 4) (without 13) · interval(0.1, 0.5) · "
    "tag(log, interval(1e-5, 1e-1)) · int(interval(4, 64))"
)
MAX_GRID = 10_000  # points
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


class Parameter(NamedTuple):
    """A parameter is a key that is searched."""

    name: str
    prefix: str  # "", "+" or "++", as typed
    distribution: Distribution
    when: Rule | None = None  # it is only asked for where this holds

    @property
    def text(self) -> str:
        """Return the space in Hydra's grammar, equal for equal spaces."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            shown = [text_of(one) for one in d.choices]
            # choice(null, …) is an error of Hydra's grammar, hence the bare commas.
            return ",".join(shown) if None in d.choices else f"choice({', '.join(shown)})"
        is_int = isinstance(d, IntDistribution)
        if d.step is not None and not (is_int and d.step == 1):
            stop = _exact(d.high) + _exact(d.step)
            return f"range({d.low!r}, {int(stop) if is_int else float(stop)!r}, {d.step!r})"
        text = f"interval({d.low!r}, {d.high!r})"
        text = f"tag(log, {text})" if d.log else text
        return f"int({text})" if is_int else text

    def values(self, only_ends: bool = False) -> list[Any]:
        """Return all choices or steps, or only the ends of a range; none where endless."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return list(d.choices)
        if only_ends or d.step is None:
            return [d.low, d.high] if only_ends else []
        count = round((d.high - d.low) / d.step) + 1
        return [self.clean(d.low + index * d.step) for index in range(count)]

    def suggest(self, trial: Trial) -> Any:
        """Ask Optuna for a value."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return trial.suggest_categorical(self.name, d.choices)
        ask: Any = trial.suggest_int if isinstance(d, IntDistribution) else trial.suggest_float
        return self.clean(ask(self.name, d.low, d.high, step=d.step, log=d.log))

    def contains(self, value: Any) -> bool:
        """Return whether a value of the configuration is one of this space."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return any(same(one, value) for one in d.choices)
        return is_number(value) and d._contains(d.to_internal_repr(value))

    def clean(self, value: Any) -> Any:
        """Undo Optuna's adding up of float steps: 0.30000000000000004 is 0.3 again."""
        d = self.distribution
        is_stepped = isinstance(d, FloatDistribution) and d.step is not None
        return float(f"{value:.12g}") if is_stepped else value


@dataclass
class SearchSpace:
    """Holds parameters in the order they are asked for, and combinations that are forbidden."""

    parameters: dict[str, Parameter]
    rules: list[Rule]
    lookup: Lookup  # gives the value of a key that is not searched

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Ask for each parameter whose `when` holds of the values so far."""
        values: dict[str, Any] = {}
        for name in self._asked_for(values):
            values[name] = self.parameters[name].suggest(trial)
        return values

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a job that has these values."""
        found = [(self.parameters[name], value) for name, value in values.items()]
        return [f"{p.prefix}{p.name}={text_of(p.clean(value))}" for p, value in found]

    def fingerprint(self) -> dict[str, str]:
        """Return what is searched under each key; equal for equal spaces, however written.

        Forbidden combinations are no part of it: a study may learn what cannot be.
        """
        return {
            name: p.text + (f" when {p.when.text}" if p.when else "")
            for name, p in self.parameters.items()
        }

    def forbidden(self, values: Mapping[str, Any]) -> str | None:
        """Return the text of the first rule that these values break, None where they break none."""
        over = self._over(values)
        return next((rule.text for rule in self.rules if rule.holds(over)), None)

    def defaults(self) -> tuple[dict[str, Any], list[str]]:
        """Return the configuration's own values as a point, and the keys that lie outside."""
        values: dict[str, Any] = {}
        outside: list[str] = []
        for name in self._asked_for(values):
            value = self.lookup(name)
            values[name] = value.name if isinstance(value, Enum) else value
            outside += [] if self.parameters[name].contains(values[name]) else [name]
        return values, outside

    def probes(self) -> list[dict[str, Any]]:
        """Return points that together show both ends of every range and every choice."""
        ends = {name: p.values(only_ends=True) for name, p in self.parameters.items()}
        points: list[dict[str, Any]] = []
        for index in range(max(map(len, ends.values()))):
            points.append({})
            for name in self._asked_for(points[-1]):
                points[-1][name] = ends[name][min(index, len(ends[name]) - 1)]
        return points

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """Return all points, in an order drawn from the seed. Raises UserError if endless."""
        values = {name: self.parameters[name].values() for name in sorted(self.parameters)}
        endless = [name for name, found in values.items() if not found]
        endless += [name for name, p in self.parameters.items() if p.when]
        if endless or math.prod(map(len, values.values())) > MAX_GRID:
            raise UserError(
                "a grid needs a finite list for every key, without a condition, and at most "
                f"{MAX_GRID} points ({', '.join(endless) or 'there are more'}). Write choice(…) or "
                "range(…), or take another sampler: hydra/sweeper/sampler=tpe."
            )
        rows = itertools.product(*values.values())
        points = [dict(zip(values, row, strict=True)) for row in rows]
        random.Random(seed).shuffle(points)
        return points

    def _asked_for(self, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield each parameter whose `when` holds; `values` may grow between two of them."""
        over = self._over(values)
        for name, parameter in self.parameters.items():
            if parameter.when is None or parameter.when.holds(over):
                yield name

    def _over(self, values: Mapping[str, Any]) -> Lookup:
        """Look up values of a trial first, then the configuration's."""
        return lambda key: values[key] if key in values else self.lookup(key)


def read_space(
    params: Mapping[str, Any], overrides: Sequence[str], forbid: Sequence[Any], lookup: Lookup
) -> tuple[SearchSpace, list[str]]:
    """Read the space of `params` and of the swept overrides; return it and the other overrides.

    The command line wins: a sweep there replaces the key's space (its `when` stays), a plain value
    or a deletion takes the key out. Raises UserError.
    """
    found = {p.name: p for p in (_from_yaml(str(key), node) for key, node in params.items())}
    fixed: list[tuple[str, str]] = []
    for text in overrides:
        override = _parsed(text)
        name = override.get_key_element().lstrip("+~")
        if override.is_sweep_override():
            found[name] = _parameter(override, found[name].when if name in found else None)
            fixed = [(key, one) for key, one in fixed if key != name or one.startswith("~")]
        else:
            found.pop(name, None)
            fixed.append((name, text))
    rules = [parse_rule(rule, f"hydra.sweeper.forbid[{i}]") for i, rule in enumerate(forbid)]
    return SearchSpace(_in_order(found), rules, lookup), [text for _, text in fixed]


def _in_order(found: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Sort each parameter with a condition behind those that the condition asks for."""
    needs = {name: (p.when.keys if p.when else set()) & set(found) for name, p in found.items()}
    try:
        return {name: found[name] for name in TopologicalSorter(needs).static_order()}
    except CycleError as error:
        names = ", ".join(error.args[1])
        raise UserError(f"{names}: their conditions wait for one another; take one out.") from error


def _from_yaml(key: str, node: Any) -> Parameter:
    """Read a parameter of an entry `key: space` or `key: {space: …, when: {…}}`."""
    entry = node if isinstance(node, dict) else {"space": node}
    space = entry.get("space")
    override = _parsed(f"{key}={space}") if isinstance(space, str) else None
    if override is None or entry.keys() - {"space", "when"} or not override.is_sweep_override():
        raise UserError(
            f"hydra.sweeper.params: {key}: got {node!r}; write one of {EXAMPLES}, alone or as "
            "{space: …, when: {key: value}}, or put a fixed value among the overrides."
        )
    when = parse_rule(entry["when"], f"{key}: when") if "when" in entry else None
    return _parameter(override, when)


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except HydraException as error:
        complaint = " ".join(str(error).split("\nSee https")[0].split())
        raise UserError(f"{text}: {complaint}. Right are {EXAMPLES}.") from error


def _parameter(override: Override, when: Rule | None) -> Parameter:
    """Read a parameter of a swept override. Raises UserError for a space that cannot be."""
    element = override.get_key_element()
    name = element.lstrip("+~")
    if override.is_hydra_override():
        raise UserError(f"{name}: a setting of Hydra cannot be searched; give it one value.")
    try:
        return Parameter(name, element[: -len(name)], _distribution(override), when)
    except (ValueError, TypeError, AttributeError) as error:
        problem = str(error).rstrip(".")
        raise UserError(f"{override.input_line}: {problem}. Right are {EXAMPLES}.") from error


def _distribution(override: Override) -> Distribution:
    """Return what Optuna draws from; raise ValueError and its like for a wrong space."""
    sweep: Any = override.value()
    if wrong := sweep.tags - (set() if isinstance(sweep, ChoiceSweep) else {"log"}):
        raise ValueError(f"there is no tag {', '.join(sorted(wrong))} here, only log of a range")
    if isinstance(sweep, ChoiceSweep):
        listed: list[Any] = sweep.list
        choices = [one.text if isinstance(one, QuotedString) else one for one in listed]
        if any(isinstance(one, list | dict) or one != one for one in choices):
            raise ValueError("lists, mappings and nan cannot be chosen")
        if len(set(choices)) < len(choices):  # Optuna too takes 1, 1.0 and true for one choice
            raise ValueError("two choices are one and the same")
        return CategoricalDistribution(sorted(choices, key=_rank))
    log, step = "log" in sweep.tags, None
    if isinstance(sweep, RangeSweep):
        # In decimals as typed: Hydra adds up binary fractions, and so takes 0.8 into
        # range(0.1, 0.8, 0.1) but not 0.6 into range(0.1, 0.6, 0.1).
        ends: Any = (sweep.start, sweep.stop, sweep.step)
        start, stop, by = map(_exact, ends)
        count = math.ceil((stop - start) / by) if by else 0
        if count < 1:
            raise ValueError("the range is empty")
        kind: Any = int if all(isinstance(one, int) for one in ends) else float
        low, high = sorted(map(kind, (start, start + (count - 1) * by)))
        step = kind(abs(by))
    else:
        low, high = sweep.start, sweep.end
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("both ends must be finite")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(float(low), float(high), log=log, step=step)


def _exact(number: float) -> Decimal:
    """Return a number as it is written: 0.1 is a tenth."""
    return Decimal(repr(number))


def _rank(value: Any) -> tuple[int, Any]:
    """Sort choices, so that another order in which they are written is no other study."""
    if value is None or isinstance(value, bool):
        return (0 if value is None else 1, value or 0)
    return (2 if is_number(value) else 3, value)
