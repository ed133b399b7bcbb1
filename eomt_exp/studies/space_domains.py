"""Domains of a search space: a set, numbers between two ends, or a pattern of a group's options."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import Glob, Quote, QuotedString
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from eomt_exp.studies.rules import SpaceError, is_number

MAX_VALUES = 10_000  # of a range that is written out, as for a grid
_BARE = re.compile(r"[A-Za-z_][\w./-]*")
_RESERVED = {"null", "true", "false", "nan", "inf"}


def text_of(value: Any) -> str:
    """A value in Hydra's grammar; read back it is equal and of the same type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(text_of(member) for member in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{text_of(member)}" for key, member in value.items()) + "}"
    if not isinstance(value, str):
        return repr(value)
    if _BARE.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return QuotedString(value, Quote.single).with_quotes()


@dataclass(frozen=True)
class Choices:
    """Some values without order, sorted, so that another way to write them is no other study."""

    natives: tuple[Any, ...]

    @property
    def values(self) -> list[Any]:
        """What Optuna stores: JSON scalars as they are, lists and mappings as override text."""
        return [_category(native) for native in self.natives]

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        return CategoricalDistribution(self.values)

    @property
    def text(self) -> str:
        """Canonical; `choice(null, …)` is an error of Hydra's grammar, hence the bare commas."""
        shown = [text_of(native) for native in self.natives]
        return ",".join(shown) if None in self.natives else f"choice({', '.join(shown)})"

    def native(self, value: Any) -> Any:
        """The plain value behind a stored one, or behind an equal one. Raises LookupError."""
        value = _category(value)
        for native in self.natives:
            stored = _category(native)
            if stored == value and isinstance(stored, bool) == isinstance(value, bool):
                return native
        raise LookupError(value)

    def find(self, value: Any) -> Any:
        """The stored value that equals this one. Raises LookupError."""
        return _category(self.native(value))


@dataclass(frozen=True)
class Numbers:
    """Numbers from `low` to `high`, both included; ints if `low` is one."""

    low: int | float
    high: int | float
    step: int | float | None = None  # None: every float between
    log: bool = False

    @property
    def is_int(self) -> bool:
        """Whether its values are ints."""
        return isinstance(self.low, int)

    @property
    def values(self) -> list[Any] | None:
        """All of them, or None where there is no finite list worth writing out."""
        if self.step is None or self._steps(self.high) >= MAX_VALUES:
            return None
        return [self._at(index) for index in range(self._steps(self.high) + 1)]

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        if isinstance(self.low, int):
            return IntDistribution(self.low, int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def text(self) -> str:
        """Canonical, in the grammar of Hydra."""
        if self.step is None or (self.is_int and self.step == 1):
            text = f"interval({self.low!r}, {self.high!r})"
            text = f"tag(log, {text})" if self.log else text
            return f"int({text})" if self.is_int else text
        stop = self._at(self._steps(self.high) + 1)
        return f"range({self.low!r}, {stop!r}, {self.step!r})"

    def native(self, value: Any) -> Any:
        """The number among these that is meant. Raises LookupError.

        Optuna adds up float steps (0.30000000000000004); here 0.3 is 0.3.
        """
        if not is_number(value) or not self.low <= value <= self.high:
            raise LookupError(value)
        if self.is_int and value != int(value):
            raise LookupError(value)
        if self.step is None:
            return float(value)
        value = float(value) if isinstance(value, float) else value  # of NumPy too
        nearest = self._at(self._steps(value))
        if not math.isclose(nearest, value, rel_tol=1e-9, abs_tol=1e-9 * abs(self.step)):
            raise LookupError(value)
        return nearest

    find = native

    def _steps(self, value: float) -> int:
        assert self.step is not None
        return round((exact(value) - exact(self.low)) / exact(self.step))

    def _at(self, index: int) -> int | float:
        assert self.step is not None
        number = exact(self.low) + index * exact(self.step)
        return int(number) if self.is_int else float(number)


@dataclass(frozen=True)
class Pattern:
    """Options of a config group by name; becomes Choices when the options are known."""

    glob: Glob
    text: str

    @property
    def values(self) -> None:
        """Not known before SearchSpace.check."""

    @property
    def distribution(self) -> BaseDistribution:
        """Raises SpaceError: there is none before the options are known."""
        raise SpaceError(f"{self.text}: SearchSpace.check lists the options of a glob first.")

    def native(self, value: Any) -> Any:
        """Raises LookupError: no value is known to be among these."""
        raise LookupError(value)

    find = native


Domain = Choices | Numbers | Pattern


def choices(name: str, natives: Sequence[Any]) -> Choices:
    """Checked and sorted. Raises SpaceError for fewer than two values, doubled ones and NaN."""
    if any(native != native for native in natives):
        raise SpaceError(f"{name}: nan is no value to choose.")
    if len(natives) < 2:
        shown = ", ".join(map(text_of, natives))
        raise SpaceError(
            f"{name}: choice({shown}) has one value and nothing to search: "
            f"write {name}={shown} among the overrides, or add a second value."
        )
    stored = [_category(native) for native in natives]
    for index, value in enumerate(stored):
        if value in stored[:index]:  # Optuna too takes 1, 1.0 and true for one category
            twin = natives[stored.index(value)]
            raise SpaceError(
                f"{name}: {text_of(twin)} and {text_of(natives[index])} are one and the same "
                "choice; leave one out."
            )
    return Choices(tuple(sorted(natives, key=_rank)))


def numbers(name: str, low: Any, high: Any, step: Any, log: bool) -> Numbers:
    """Checked; `high` is included. Raises SpaceError."""
    if low is None or high is None or not all(map(math.isfinite, (low, high))):
        raise SpaceError(f"{name}: needs two finite ends, got {low} and {high}.")
    if low > high:
        raise SpaceError(
            f"{name}: from {low!r} to {high!r} there is nothing: write interval({high!r}, {low!r})."
        )
    if low == high:
        raise SpaceError(
            f"{name}: from {low!r} to {high!r} there is one value and nothing to search: "
            f"write {name}={low!r} among the overrides."
        )
    is_int = all(isinstance(one, int) for one in (low, high, step or 1))
    kind = int if is_int else float
    step = 1 if is_int and step is None else step
    if log and low <= 0:
        start = "int(tag(log, interval(1, 64)))" if is_int else "tag(log, interval(1e-5, 1e-1))"
        raise SpaceError(f"{name}: log needs a low end above 0, got {low!r}: write {start}.")
    if log and step not in (None, 1):
        raise SpaceError(
            f"{name}: log has no step, got {step!r}: write tag(log, interval({low!r}, {high!r}))."
        )
    if log and not is_int:
        step = None
    return Numbers(kind(low), kind(high), None if step is None else kind(step), log)


def exact(number: float) -> Decimal:
    """As it is written: 0.1 is a tenth."""
    return Decimal(repr(number))


def _category(native: Any) -> Any:
    return text_of(native) if isinstance(native, list | dict) else native


def _rank(native: Any) -> tuple[int, Any]:
    if native is None:
        return (0, 0)
    if is_number(native) or isinstance(native, bool):
        return (1 if isinstance(native, bool) else 2, native)
    return (3, native) if isinstance(native, str) else (4, text_of(native))
