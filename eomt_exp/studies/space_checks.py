"""A search space against the configuration it is for: mistakes are found before the first trial."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any

from eomt_exp.studies.rules import Condition, Key, Rule, SpaceError, is_number, same
from eomt_exp.studies.space_domains import Choices, Numbers, text_of
from eomt_exp.studies.space_surroundings import Kind, Surroundings, kind_of
from eomt_exp.studies.space_syntax import Parameter


def check_parameters(around: Surroundings) -> None:
    """Each key is there, and can be what the space would make of it. Raises SpaceError."""
    earlier: list[str] = []
    for name, parameter in around.parameters.items():
        options = around.options(name)
        if parameter.when is not None:
            _check_condition_keys(f"{name}: when", parameter.when, around)
            _check_order(parameter, earlier, around)
        if options is not None:
            _check_group(parameter, options, around)
        elif parameter.prefix != "++":
            _check_key(parameter, around)
        earlier.append(name)


def check_rules(around: Surroundings, rules: Sequence[Rule]) -> None:
    """Each rule looks at keys there are, for values they can have. Raises SpaceError."""
    for index, rule in enumerate(rules):
        _check_condition_keys(f"forbid[{index}]", rule, around)


def _check_key(parameter: Parameter, around: Surroundings) -> None:
    """A key that is no group."""
    name, settings = parameter.name, around.settings(parameter)
    kinds = {words: kind_of(cfg, name) for words, cfg in settings.items()}
    found = [kind for kind in kinds.values() if kind is not None]
    if parameter.prefix == "+":
        if found:
            raise SpaceError(
                f"+{name}: the configuration has this key: write {name}={parameter.text}."
            )
        return
    if settings and not found and not around.is_open():
        raise SpaceError(
            f"there is no key {name}{around.hint(name)} To add one that the configuration has not "
            f"got, write +{name}={parameter.text}."
        )
    for kind in found:
        _check_type(parameter, kind)
    missing = [words for words, kind in kinds.items() if kind is None]
    if missing and found and not around.is_open():
        _complain_of_absence(parameter, missing, list(kinds.keys() - set(missing)))


def _complain_of_absence(
    parameter: Parameter, missing: Sequence[str], having: Sequence[str]
) -> None:
    """A key that some of the searched groups' options have not got."""
    without = ", ".join(word or "the configuration as it is" for word in sorted(missing))
    example = next((word for word in sorted(having) if word), "group=option")
    group, _, option = example.split(" ")[0].lstrip("+").partition("=")
    raise SpaceError(
        f"{parameter.name} is not there with {without}; say when it is searched: "
        f"{parameter.name}: {{space: '{parameter.text}', when: {{{group}: {option}}}}}."
    )


def _check_type(parameter: Parameter, kind: Kind) -> None:
    domain = parameter.domain
    if isinstance(domain, Numbers):
        _check_numbers(parameter, domain, kind)
    elif isinstance(domain, Choices):
        for native in domain.natives:
            _check_native(parameter, native, kind)


def _check_numbers(parameter: Parameter, domain: Numbers, kind: Kind) -> None:
    name = parameter.name
    if kind.name == "int" and not domain.is_int and _is_strict(parameter, kind):
        whole = _whole(domain)
        escape = "" if kind.is_declared else f", or float({domain.text}) if fractions are meant"
        raise SpaceError(f"{name} is an int: write {whole}{escape}.")
    instead = {
        "bool": f"{name} is true or false: write choice(true, false).",
        "enum": f"{name} is a word: write choice({', '.join(kind.options)}).",
        "list": f"{name} is a list: write choice([1, 2], [3, 4]).",
        "mapping": f"{name} holds further keys: write one of {_inside(name, kind)}.",
    }
    if kind.is_declared:
        instead["str"] = f"{name} is a word: write choice(a, b)."
    if kind.name in instead:
        raise SpaceError(f"{parameter.text} cannot be: {instead[kind.name]}")


def _check_native(parameter: Parameter, native: Any, kind: Kind) -> None:
    """One value of a choice; ${…} is looked at when the job is composed."""
    if isinstance(native, str) and "${" in native:
        return
    if native is None:
        is_right = kind.is_optional
    elif kind.name == "int":
        is_whole = is_number(native) and isinstance(native, int)
        is_right = is_whole or (is_number(native) and not _is_strict(parameter, kind))
    else:
        is_right = {
            "bool": isinstance(native, bool),
            "float": is_number(native),
            "enum": isinstance(native, str) and native in kind.options,
            "list": isinstance(native, list),
            "mapping": isinstance(native, dict),
            "str": not isinstance(native, list | dict) or not kind.is_declared,
        }.get(kind.name, True)
    if not is_right:
        raise SpaceError(
            f"{parameter.name} {_wanted(parameter.name, kind)}; "
            f"{text_of(native)} in {parameter.text} is not."
        )


def _wanted(name: str, kind: Kind) -> str:
    """What a key is, with the line to type."""
    texts = {
        "bool": "is true or false: write choice(true, false)",
        "int": "is an int: write choice(1, 2)",
        "float": "is a number: write choice(0.1, 0.2)",
        "enum": f"is one of {', '.join(kind.options)}: write choice({', '.join(kind.options[:2])})",
        "list": "is a list: write choice([1, 2], [3, 4])",
        "mapping": f"holds further keys: write one of {_inside(name, kind)}",
        "str": "is a word: write choice(a, b)",
    }
    return texts.get(kind.name, "is something else")


def _check_group(parameter: Parameter, options: Sequence[str], around: Surroundings) -> None:
    name, domain = parameter.name, parameter.domain
    line = f"{parameter.prefix}{name}=choice({', '.join(options[:2])})"
    if not isinstance(domain, Choices):
        raise SpaceError(
            f"{name} is a config group, {parameter.text} cannot be: write {line}. "
            f"Its options are {', '.join(options)}."
        )
    chosen = around.is_chosen(name)
    if parameter.prefix == "" and not chosen:
        raise SpaceError(f"{name} is not chosen so far: write +{name}={parameter.text}.")
    if parameter.prefix == "+" and chosen:
        raise SpaceError(f"{name} is chosen already: write {name}={parameter.text}.")
    for option in _options_in(domain):
        # A path or an interpolation is left to Hydra.
        is_left = option is None or any(sign in str(option) for sign in ("/", "${"))
        if is_left or option in options:
            continue
        near = get_close_matches(str(option), options, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise SpaceError(
            f"{name} has no option {text_of(option)}{hint} Its options are {', '.join(options)}: "
            f"write {line}."
        )


def _options_in(domain: Choices) -> Iterator[Any]:
    for native in domain.natives:
        yield from native if isinstance(native, list) else [native]


def _check_condition_keys(where: str, rule: Rule, around: Surroundings) -> None:
    for key in rule.keys:
        if not around.has(key):
            quote = ""
            if any(Key(key) in condition.wanted for condition in rule.conditions):
                quote = f" If a word is meant, write \"== '{key}'\"."
            raise SpaceError(f"{where}: there is no key {key}{around.hint(key)}{quote}")
    for condition in rule.conditions:
        _check_comparable(where, condition, around)


def _check_order(parameter: Parameter, earlier: Sequence[str], around: Surroundings) -> None:
    assert parameter.when is not None
    for key in parameter.when.keys:
        if key == parameter.name:
            raise SpaceError(f"{key}: when: a key cannot wait for itself.")
        if key in around.parameters and key not in earlier:
            raise SpaceError(
                f"{parameter.name}: when: {key} is asked later; put the line of {key} above the "
                f"line of {parameter.name}."
            )


def _check_comparable(where: str, condition: Condition, around: Surroundings) -> None:
    """A condition that can never hold was meant otherwise."""
    names = [condition.key, *(one.name for one in condition.wanted if isinstance(one, Key))]
    if condition.is_order:
        for name in names:
            words = [one for one in _possible(name, around) if one is not None]
            if words and not any(is_number(one) for one in words):
                shown = ", ".join(text_of(one) for one in words)
                raise SpaceError(
                    f"{where}: {condition.text} compares numbers, and {name} is {shown}; "
                    f"write {name}: {text_of(words[0])}, or [..] of several."
                )
        return
    allowed = _allowed(condition.key, around)
    for one in condition.wanted:
        if allowed is None or isinstance(one, Key) or any(same(value, one) for value in allowed):
            continue
        shown = ", ".join(text_of(value) for value in allowed)
        raise SpaceError(
            f"{where}: {condition.key} is never {text_of(one)}, only {shown}: "
            f"write {condition.key}: {text_of(allowed[0])}."
        )


def _possible(name: str, around: Surroundings) -> list[Any]:
    """Values that show what a key holds; empty where nothing is known."""
    parameter = around.parameters.get(name)
    if parameter is None:
        try:
            value = around.lookup(name)
        except KeyError:
            return []
        return [value.name if isinstance(value, Enum) else value]
    domain = parameter.domain
    return list(domain.natives) if isinstance(domain, Choices) else []


def _allowed(name: str, around: Surroundings) -> list[Any] | None:
    """All that a key can be, where that is a list."""
    if name in around.parameters:
        domain = around.parameters[name].domain
        return list(domain.natives) if isinstance(domain, Choices) else None
    options = around.options(name)
    return None if options is None else [*options, None]


def _is_strict(parameter: Parameter, kind: Kind) -> bool:
    """Whether an int must stay one: a key without a declared type yields to float(…)."""
    return kind.is_declared or not parameter.is_cast


def _whole(domain: Numbers) -> str:
    low = math.ceil(domain.low)
    low = max(low, 1) if domain.log else low
    text = f"interval({low}, {max(math.floor(domain.high), low + 1)})"
    return f"int(tag(log, {text}))" if domain.log else f"int({text})"


def _inside(name: str, kind: Kind) -> str:
    return ", ".join(f"{name}.{key}" for key in kind.options[:4]) or f"{name}.<key>"
