"""Conditions on configuration keys and bounds on metrics, read from YAML and compared without eval.

A condition is a mapping from keys to what is wanted of them, and all of it must hold:
`{optim.name: sgd, trainer.epochs: [10, 20], data.min_scale: ">= data.max_scale"}`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

Lookup = Callable[[str], Any]
"""The value of a key; KeyError where there is no such key."""

_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_OPERATION = re.compile(r"\s*(==|!=|<=|>=|<|>)(?![=<>])\s*(.*?)\s*", re.DOTALL)
_LOOKS_LIKE_ONE = re.compile(r"\s*[=!<>]")
_NAME = re.compile(r"[A-Za-z_][\w/@-]*(\.[A-Za-z_][\w/@-]*)*")
_WORDS: dict[str, Any] = {"null": None, "true": True, "false": False}


class SpaceError(ValueError):
    """A search space that cannot be searched; the message shows the line to type."""


class Key(NamedTuple):
    """An operand that stands for the value of another key."""

    name: str


class Condition(NamedTuple):
    """One part of a rule; `op` is `in` for one of several values, == only for another key's."""

    key: str
    op: str
    wanted: tuple[Any, ...]

    @property
    def is_order(self) -> bool:
        """Whether it compares numbers."""
        return self.op in _ORDER

    @property
    def text(self) -> str:
        """As one reads it; equal for equal conditions."""
        shown = [_shown(value) for value in self.wanted]
        if self.op != "in":
            return f"{self.key} {self.op} {shown[0]}"
        return f"{self.key} == {shown[0]}" if len(shown) == 1 else f"{self.key} in {_list(shown)}"

    def holds(self, lookup: Lookup) -> bool:
        """False where a key is missing, or where what should be a number is none."""
        try:
            value = lookup(self.key)
            wanted = [lookup(w.name) if isinstance(w, Key) else w for w in self.wanted]
        except KeyError:
            return False
        if self.is_order:
            pair = (value, wanted[0])
            return all(is_number(one) for one in pair) and _ORDER[self.op](*pair)
        return any(same(value, one) for one in wanted) != (self.op == "!=")


class Rule(NamedTuple):
    """Conditions that must hold together."""

    conditions: tuple[Condition, ...]

    @property
    def text(self) -> str:
        """As one reads it; equal for equal rules."""
        return " and ".join(condition.text for condition in self.conditions)

    @property
    def keys(self) -> list[str]:
        """Every key it looks at, those on the right of a comparison too."""
        found = [condition.key for condition in self.conditions]
        for condition in self.conditions:
            found += [one.name for one in condition.wanted if isinstance(one, Key)]
        return list(dict.fromkeys(found))

    def holds(self, lookup: Lookup) -> bool:
        """Whether all of it is true of the values that `lookup` gives."""
        return all(condition.holds(lookup) for condition in self.conditions)


class Constraint(NamedTuple):
    """A bound that a metric must keep."""

    op: str
    bound: float

    def violation(self, value: float) -> float:
        """How far `value` is beyond the bound; up to 0 is feasible, as Optuna wants it.

        NaN violates without end: a metric that could not be measured has kept no bound.
        """
        if math.isnan(value):
            return math.inf
        if value == self.bound:  # also of two infinities, whose difference is NaN
            return 0.0 if self.op in ("<=", ">=") else math.ulp(0.0)
        return self.bound - value if self.op in (">", ">=") else value - self.bound


def parse_rule(mapping: Mapping[str, Any], where: str) -> Rule:
    """Read `{key: wanted}`; `where` names the place in messages, as `forbid[0]` does.

    Right of <, <=, >, >= stands a number or a key. Right of == and != a name with a dot is a key,
    one without is a word, and quotes make a word of anything. Raises SpaceError.
    """
    if not isinstance(mapping, Mapping) or not mapping:
        raise SpaceError(
            f"{where}: got {mapping!r}, a condition maps keys to values: "
            'write {optim.name: sgd, optim.lr: ">= 0.1"}.'
        )
    conditions = [_condition(str(key), wanted, where) for key, wanted in mapping.items()]
    return Rule(tuple(sorted(conditions, key=lambda condition: condition.text)))


def parse_constraints(mapping: Mapping[str, Any] | None) -> dict[str, Constraint]:
    """Read `{metric: ">= 0.5"}`. Raises SpaceError."""
    return {str(metric): _constraint(str(metric), text) for metric, text in (mapping or {}).items()}


def is_number(value: Any) -> bool:
    """Whether this is an int or a float; a bool is neither here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(value: Any, wanted: Any) -> bool:
    """Equality of configuration values; what holds several equals each of its members.

    `loss: outlier_margin` is thus true of loss=[mask_classification, outlier_margin].
    """
    value = value.name if isinstance(value, Enum) else value
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str):
        return any(same(member, wanted) for member in value)
    # True == 1 in Python, but not to a person who writes `true`.
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def _condition(key: str, wanted: Any, where: str) -> Condition:
    place = f"{where}: {key}"
    if isinstance(wanted, Mapping):
        raise SpaceError(f"{place}: got {wanted!r}; write nested keys with dots, as {key}.name: 1.")
    if isinstance(wanted, str) and _LOOKS_LIKE_ONE.match(wanted):
        return _comparison(key, wanted, place)
    several = isinstance(wanted, Sequence) and not isinstance(wanted, str)
    values = list(wanted) if several else [wanted]
    values = [one.name if isinstance(one, Enum) else one for one in values]
    if not values or not all(_is_value(one) for one in values):
        raise SpaceError(
            f"{place}: got {wanted!r}; allowed are a value, a list of values such as [1, 2], "
            'or one comparison such as ">= 2".'
        )
    unique = {_shown(one): one for one in values}
    return Condition(key, "in", tuple(unique[text] for text in sorted(unique)))


def _comparison(key: str, text: str, place: str) -> Condition:
    found = _OPERATION.fullmatch(text)
    if found is None:
        raise SpaceError(f"{place}: got {text!r}; the comparisons are == != < <= > >=.")
    op, word = found.groups()
    operand = _operand(word, is_order=op in _ORDER)
    if operand is _NOTHING:
        wanted = "a number or another key" if op in _ORDER else "a number, a word or another key"
        raise SpaceError(
            f"{place}: got {text!r}; right of {op} stands {wanted}: "
            f'write {key}: "{op} 0.5" or {key}: "{op} optim.lr".'
        )
    if op == "==" and not isinstance(operand, Key):
        op = "in"
    return Condition(key, op, (operand,))


_NOTHING = object()


def _operand(word: str, is_order: bool) -> Any:
    """A number, a Key, or for equality any value; _NOTHING for what is none of these."""
    for read in (int, float):
        try:
            number = read(word)
        except ValueError:
            continue
        return _NOTHING if number != number else number
    is_name = _NAME.fullmatch(word) is not None
    if is_order:
        return Key(word) if is_name and word not in _WORDS else _NOTHING
    if word in _WORDS:
        return _WORDS[word]
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        return word[1:-1]
    if not word:
        return _NOTHING
    return Key(word) if is_name and "." in word else word


def _is_value(one: Any) -> bool:
    if isinstance(one, str):
        return not _LOOKS_LIKE_ONE.match(one)
    return one is None or (isinstance(one, bool | int | float) and one == one)


def _constraint(metric: str, text: Any) -> Constraint:
    found = _OPERATION.fullmatch(text) if isinstance(text, str) else None
    bound: Any = _operand(found[2], is_order=True) if found and found[1] in _ORDER else None
    if found is None or not is_number(bound):
        raise SpaceError(
            f"constraints.{metric}: got {text!r}; a bound is < <= > or >= and a number: "
            f'write {metric}: ">= 0.5".'
        )
    return Constraint(found[1], float(bound))


def _shown(value: Any) -> str:
    if isinstance(value, Key):
        return value.name
    if value is None or isinstance(value, bool):
        return next(word for word, meant in _WORDS.items() if meant is value)
    if not isinstance(value, str):
        return repr(value)
    # Quoted where it would be read as something else, so that 1 and '1' differ to the eye too.
    return value if _operand(value, is_order=False) == value else repr(value)


def _list(shown: Sequence[str]) -> str:
    return f"[{', '.join(shown)}]"
