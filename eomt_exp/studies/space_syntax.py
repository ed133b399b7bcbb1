"""Hydra's sweep grammar, on the command line and in YAML, to parameters of a search space.

`choice(a, b)`, `range(4, 13, 4)`, `tag(log, interval(1e-5, 1e-1))`, `int(interval(4, 64))`,
`glob(*)`: https://hydra.cc/docs/advanced/override_grammar/extended. Values keep their types.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException

from eomt_exp.studies.rules import Rule, SpaceError, is_number, parse_rule
from eomt_exp.studies.space_domains import (
    Domain,
    Numbers,
    Pattern,
    choices,
    exact,
    numbers,
)

EXAMPLES = (
    "choice(a, b) · null,a · range(4, 13, 4) (without 13) · interval(0.1, 0.5) · "
    "tag(log, interval(1e-5, 1e-1)) · int(interval(4, 64))"
)


@dataclass(frozen=True)
class Parameter:
    """A key that is searched, how it is put on a command line, and when."""

    name: str
    prefix: str  # "", "+" or "++", as typed
    domain: Domain
    is_cast: bool = False  # float(…) was written, and so is meant
    when: Rule | None = None

    @property
    def text(self) -> str:
        """Its domain in canonical words."""
        return self.domain.text


def name_of(override: Override) -> str:
    """The key with its package, without + or ~."""
    return override.get_key_element().lstrip("+~")


def parameter_of(override: Override, when: Rule | None = None) -> Parameter:
    """Of a swept override. Raises SpaceError."""
    if override.is_hydra_override():
        raise SpaceError(
            f"{name_of(override)}: a setting of Hydra cannot be searched; give it one value."
        )
    name, prefix = _head(override)
    is_cast = override.get_value_string().strip().startswith("float(")
    return Parameter(name, prefix, _domain_of(name, override), is_cast, when)


def read_parameter(key: str, node: Any) -> Parameter:
    """Of an entry in YAML: text, a list, {space:, when:} or {low:, high:, …}. Raises SpaceError."""
    if not isinstance(node, Mapping):
        return _of_value(key, node, None)
    when = parse_rule(node["when"], f"{key}: when") if "when" in node else None
    rest = {name: value for name, value in node.items() if name != "when"}
    if rest.keys() == {"space"}:
        return _of_value(key, rest["space"], when)
    name, prefix = _head(parse(f"{key}=0"))
    return Parameter(name, prefix, _from_mapping(name, rest), rest.get("int") is False, when)


def _head(override: Override) -> tuple[str, str]:
    """Name and prefix of an override's key."""
    name, element = name_of(override), override.get_key_element()
    return name, element[: len(element) - len(name)]


def _of_value(key: str, value: Any, when: Rule | None) -> Parameter:
    """Of sweep text, or of a YAML list, which is a choice."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        name, prefix = _head(parse(f"{key}=0"))
        return Parameter(name, prefix, choices(name, list(value)), when=when)
    override = parse(f"{key}={value}") if isinstance(value, str) else None
    if override is None or not override.is_sweep_override():
        raise SpaceError(
            f"{key}: got {value!r}, which is no space; write one of {EXAMPLES}, or put a fixed "
            "value among the overrides."
        )
    return parameter_of(override, when)


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def parse(line: str) -> Override:
    """One override. Raises SpaceError with Hydra's complaint and examples of right lines."""
    try:
        return _parser().parse_overrides([line])[0]
    except HydraException as error:
        key, _, text = line.partition("=")
        inner = re.fullmatch(r"choice\((.*)\)", text.strip())
        if "NoneType" in str(error) and inner:
            raise SpaceError(
                f"{key}: Hydra's choice() takes no null: "
                f"write {key}={','.join(part.strip() for part in inner[1].split(','))}"
            ) from error
        complaint = str(error).split("\nSee https")[0].strip().replace("\n", " ")
        raise SpaceError(
            f"{key}: {text!r} is not in Hydra's grammar ({complaint}). Right are {EXAMPLES}."
        ) from error


def _domain_of(name: str, override: Override) -> Domain:
    """The domain of a swept override. Raises SpaceError."""
    sweep: Any = override.value()
    if isinstance(sweep, Glob):
        return Pattern(sweep, override.get_value_string())
    if sweep.tags - {"log"}:
        raise SpaceError(
            f"{name}: tag {', '.join(sorted(sweep.tags - {'log'}))} means nothing here; "
            "write tag(log, interval(1e-5, 1e-1)), or no tag."
        )
    log = "log" in sweep.tags
    if isinstance(sweep, ChoiceSweep):
        if log:
            raise SpaceError(f"{name}: a choice has no log; write choice(…) without tag(log, …).")
        return choices(name, [_plain(element) for element in sweep.list])
    if isinstance(sweep, RangeSweep):
        return _range(name, sweep, log)
    assert isinstance(sweep, IntervalSweep), sweep
    return numbers(name, sweep.start, sweep.end, None, log)


def _range(name: str, sweep: RangeSweep, log: bool) -> Numbers:
    """The stop is left out, in decimals as typed.

    Hydra adds up binary fractions, and so takes 0.8 into range(0.1, 0.8, 0.1) but not 0.6 into
    range(0.1, 0.6, 0.1).
    """
    ends = (sweep.start, sweep.stop, sweep.step)
    if not sweep.step or not all(one is not None and math.isfinite(one) for one in ends):
        raise SpaceError(f"{name}: a range needs finite numbers and a step that is not 0.")
    start, stop, step = map(exact, ends)  # type: ignore[arg-type]
    count = math.ceil((stop - start) / step)
    if count <= 0:
        raise SpaceError(
            f"{name}: range({start}, {stop}, {step}) is empty: "
            f"write range({min(start, stop)}, {max(start, stop)}, {abs(step)}); the stop is left "
            "out."
        )
    kind = int if all(isinstance(one, int) for one in ends) else float
    low, high = sorted((start, start + (count - 1) * step))
    return numbers(name, kind(low), kind(high), kind(abs(step)), log)


def _from_mapping(name: str, node: Mapping[str, Any]) -> Numbers:
    """`{low: 4, high: 64, step: 4, log: false, int: true}`; high is included. Raises SpaceError."""
    allowed = {"low", "high", "step", "log", "int"}
    ends = [node.get("low"), node.get("high"), node.get("step", 1)]
    flags = [node.get("log", False), node.get("int", False)]
    is_right = node.keys() <= allowed and all(map(is_number, ends))
    if not is_right or not all(isinstance(flag, bool) for flag in flags) or ends[2] <= 0:
        raise SpaceError(
            f"{name}: got {dict(node)!r}; a mapping is {{space: 'choice(a, b)', when: {{key: "
            "value}} or {low: 4, high: 64, step: 4, log: false, int: true}."
        )
    log, is_int = flags
    if is_int and any(one != int(one) for one in ends):
        raise SpaceError(f"{name}: int: true needs whole numbers, got {dict(node)!r}.")
    kind = int if is_int else float
    step = kind(node["step"]) if "step" in node else None
    low, high = kind(ends[0]), kind(ends[1])
    if step is not None:  # an end that no step reaches is none
        count = math.floor((exact(high) - exact(low)) / exact(step))
        high = kind(exact(low) + count * exact(step))
    return numbers(name, low, high, step, log)


def _plain(element: Any) -> Any:
    """A parsed element without the parser's own types."""
    if isinstance(element, QuotedString):
        return element.text
    if isinstance(element, list):
        return [_plain(member) for member in element]
    if isinstance(element, dict):
        return {str(_plain(key)): _plain(member) for key, member in element.items()}
    return element
