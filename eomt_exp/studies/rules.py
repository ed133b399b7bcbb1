"""Reads conditions on configuration keys and bounds on metrics, as a study's YAML has them.

A rule maps keys to what is wanted of them, and all of it must hold:
`{optim.name: sgd, trainer.epochs: [10, 20], data.min_scale: ">= data.max_scale"}`. Nothing in it is
run as code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Quote, QuotedString

from eomt_exp.contracts import UserError

Lookup = Callable[[str], Any]
"""Gives the value of a key; None where there is no such key."""

_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARISON = re.compile(r"\s*(<=|>=|<|>)\s*(\S+)\s*")
_NUMBER = re.compile(r"[+-]?(inf|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", re.IGNORECASE)
_BARE = re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*")


class Condition(NamedTuple):
    """One part of a rule; `op` is a comparison, or "in" for one of several values."""

    key: str
    op: str
    wanted: Any  # of a comparison a number or another key, else a list of values

    @property
    def text(self) -> str:
        """Return the condition as one writes it; equal for equal conditions."""
        if self.op != "in":
            return f"{self.key} {self.op} {self.wanted}"
        values = sorted(set(map(text_of, self.wanted)))
        is_one = len(values) == 1
        return f"{self.key} == {values[0]}" if is_one else f"{self.key} in [{', '.join(values)}]"

    def holds(self, lookup: Lookup) -> bool:
        """Return whether it is true; a comparison never is of what is no number."""
        value = lookup(self.key)
        if self.op == "in":
            return any(same(value, one) for one in self.wanted)
        wanted = lookup(self.wanted) if isinstance(self.wanted, str) else self.wanted
        return is_number(value) and is_number(wanted) and _ORDER[self.op](value, wanted)

    def violation(self, value: float) -> float:
        """Return how far `value` is beyond the bound; up to 0 is feasible, as Optuna wants it.

        NaN violates without end: a metric that could not be measured has kept no bound.
        """
        if math.isnan(value):
            return math.inf
        beyond = self.wanted - value if self.op in (">", ">=") else value - self.wanted
        return beyond or (0.0 if self.op in ("<=", ">=") else math.ulp(0.0))


class Rule(NamedTuple):
    """A rule holds where all its conditions do."""

    conditions: list[Condition]
    where: str  # it is written, as forbid[0]

    @property
    def text(self) -> str:
        """Return the rule as one writes it; equal for equal rules."""
        return " and ".join(sorted(condition.text for condition in self.conditions))

    @property
    def keys(self) -> set[str]:
        """Return every key it asks for, those on the right of a comparison too."""
        return {key for c in self.conditions for key in (c.key, c.wanted) if isinstance(key, str)}

    def holds(self, lookup: Lookup) -> bool:
        """Return whether all conditions are true of the values that `lookup` gives."""
        return all(condition.holds(lookup) for condition in self.conditions)


def parse_rule(mapping: Any, where: str) -> Rule:
    """Read `{key: wanted}`; `where` says in messages which rule it is.

    `wanted` is a value, a list of values, or a comparison with a number or with another key. Raises
    UserError.
    """
    if not isinstance(mapping, Mapping) or not mapping:
        raise UserError(f"{where}: got {mapping!r}; write {{key: value, other.key: '>= 0.1'}}.")
    return Rule([_condition(str(key), wanted, where) for key, wanted in mapping.items()], where)


def parse_constraint(metric: str, text: Any) -> Condition:
    """Read the bound of a metric, ">= 0.5". Raises UserError."""
    found = _condition(metric, text, "hydra.sweeper.constraints")
    if not is_number(found.wanted):
        raise UserError(f"hydra.sweeper.constraints: {metric}: got {text!r}; write '>= 0.5'.")
    return found


def is_number(value: Any) -> bool:
    """Return whether this is an int or a float; a bool is neither here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(value: Any, wanted: Any) -> bool:
    """Return whether configuration values are equal; a list equals each of its members.

    `loss: outlier_margin` is thus true of loss=[mask_classification,outlier_margin].
    """
    value = value.name if isinstance(value, Enum) else value
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str):
        return any(same(member, wanted) for member in value)
    # True == 1 in Python, but not to a person who writes `true`.
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def text_of(value: Any) -> str:
    """Write a scalar in Hydra's grammar; read back it is equal and of the same type."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    return value if _BARE.fullmatch(value) else quoted(value)


def quoted(text: str) -> str:
    """Write text as one value in Hydra's grammar, whatever is in it."""
    return QuotedString(text, Quote.single).with_quotes()


def _condition(key: str, wanted: Any, where: str) -> Condition:
    values = wanted if isinstance(wanted, list) else [wanted]
    if isinstance(wanted, str) and wanted.lstrip()[:1] in ("<", ">", "=", "!"):
        op, right = match.groups() if (match := _COMPARISON.fullmatch(wanted)) else ("", "")
        if _BARE.fullmatch(right.replace("@", "/")):  # a key; groups may have a package
            return Condition(key, op, right)
        if _NUMBER.fullmatch(right):
            return Condition(key, op, float(right))
    elif values and not any(isinstance(one, Mapping | list) for one in values):
        return Condition(key, "in", values)
    raise UserError(
        f"{where}: {key}: got {wanted!r}; write a value, a list of values such as [1, 2], or a "
        'comparison with a number or a key: ">= 0.5", "< optim.lr". Nested keys have dots.'
    )
