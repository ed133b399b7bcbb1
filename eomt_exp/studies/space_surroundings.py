"""What a search space is put into: the keys, types and config groups of a job's configuration.

A searched group brings keys of its own, so there may be several configurations to look at.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eomt_exp.studies.rules import Key, Lookup, Rule
from eomt_exp.studies.space_domains import Choices, text_of
from eomt_exp.studies.space_syntax import Parameter

Groups = Callable[[str], list[str] | None]
Compose = Callable[[list[str]], DictConfig]
_SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}


class Kind(NamedTuple):
    """What a key holds: bool, int, float, str, enum, list, mapping, or any."""

    name: str
    is_declared: bool = False  # by a type of the schema, not just by the value it has now
    is_optional: bool = True
    options: tuple[str, ...] = ()  # of an enum, or the keys of a mapping


class Surroundings:
    """The configuration a space is for, and those that its searched groups make of it."""

    def __init__(
        self,
        cfg: DictConfig,
        groups: Groups,
        parameters: Mapping[str, Parameter],
        compose: Compose | None = None,
    ) -> None:
        self.cfg, self.parameters, self._compose = cfg, parameters, compose
        self._groups = groups
        self._composed: dict[tuple[str, ...], DictConfig | None] = {}
        self.lookup = lookup_of(cfg)

    def options(self, key: str) -> list[str] | None:
        """Of a config group; None where the key is none."""
        return self._groups(key.partition("@")[0])

    def is_chosen(self, group: str) -> bool:
        """Whether the defaults list has it, so that it is changed without +."""
        # Of groups with several options Hydra keeps no record, hence the second look.
        return group in _chosen(self.cfg) or kind_of(self.cfg, group) is not None

    def settings(self, parameter: Parameter) -> dict[str, DictConfig]:
        """The configurations in which a parameter is going to be set, by the words that make them.

        None at all where its condition can never hold. Without a way to compose them there is at
        most the one that everything starts from.
        """
        found = {"": self.cfg, **dict(self._variants())}
        if parameter.when is None:
            return found
        rule = self._without_searched_values(parameter.when)
        held = {words: cfg for words, cfg in found.items() if rule.holds(lookup_of(cfg))}
        return held or dict(self._under(parameter.when))

    def is_open(self) -> bool:
        """Whether there may be keys that cannot be seen from here."""
        return bool(self._searched_groups) and self._compose is None

    def has(self, key: str) -> bool:
        """Whether a rule may look at a key."""
        if key in self.parameters or self.options(key) is not None or self.is_open():
            return True
        seen = [self.cfg, *(cfg for _, cfg in self._variants())]
        return any(kind_of(cfg, key) is not None for cfg in seen)

    def hint(self, key: str) -> str:
        """ "; did you mean …?", or nothing."""
        seen = [self.cfg, *(cfg for _, cfg in self._variants())]
        names = {name for cfg in seen for name in _keys(cfg)} | set(self.parameters)
        near = get_close_matches(key, sorted(names - {key}), n=1)
        return f"; did you mean {near[0]}?" if near else "."

    @cached_property
    def _searched_groups(self) -> list[Parameter]:
        return [p for name, p in self.parameters.items() if self.options(name) is not None]

    def _variants(self) -> Iterator[tuple[str, DictConfig]]:
        """The configuration under each option of each searched group, one at a time."""
        for parameter in self._searched_groups:
            if isinstance(parameter.domain, Choices):
                for native in parameter.domain.natives:
                    yield from self._made_by(_word(parameter, native))

    def _without_searched_values(self, rule: Rule) -> Rule:
        """What of a rule a configuration can answer: searched values may come to be anything."""
        groups = {parameter.name for parameter in self._searched_groups}
        values = self.parameters.keys() - groups
        return Rule(tuple(c for c in rule.conditions if not values & set(Rule((c,)).keys)))

    def _under(self, rule: Rule) -> Iterator[tuple[str, DictConfig]]:
        """The configuration that has all searched groups as a rule wants them."""
        searched = {parameter.name: parameter for parameter in self._searched_groups}
        words = [
            _word(searched[condition.key], condition.wanted[0])
            for condition in rule.conditions
            if condition.key in searched and condition.op == "in"
        ]
        if words and not any(isinstance(c.wanted[0], Key) for c in rule.conditions):
            yield from self._made_by(*words)

    def _made_by(self, *words: str) -> Iterator[tuple[str, DictConfig]]:
        """One configuration, or none where it cannot be composed: the trial itself will say so."""
        if self._compose is None:
            return
        if words not in self._composed:
            try:
                self._composed[words] = self._compose(list(words))
            except (HydraException, OmegaConfBaseException):
                self._composed[words] = None
        cfg = self._composed[words]
        if cfg is not None:
            yield " ".join(words), cfg


def lookup_of(cfg: DictConfig) -> Lookup:
    """The values of a configuration; a config group's is the option that was chosen."""
    chosen = _chosen(cfg)

    def lookup(key: str) -> Any:
        if key in chosen:
            return chosen[key]
        if _node(cfg, key) is None:
            raise KeyError(key)
        return _value(cfg, key)

    return lookup


def kind_of(cfg: DictConfig, key: str) -> Kind | None:
    """What a key holds, by its declared type or else by its value; None where there is no key."""
    node = _node(cfg, key)
    if node is None:
        return None
    value = _value(cfg, key)
    optional = node._metadata.optional
    declared = node._metadata.ref_type
    if isinstance(node, ListConfig) or isinstance(value, ListConfig):
        return Kind("list", True, optional)
    if isinstance(node, DictConfig) or isinstance(value, DictConfig):
        return Kind("mapping", True, optional, tuple(map(str, value or ())))
    if isinstance(declared, type) and issubclass(declared, Enum):
        return Kind("enum", True, optional, tuple(member.name for member in declared))
    if declared in _SCALARS:
        return Kind(_SCALARS[declared], True, optional)
    return Kind(_SCALARS.get(type(value), "any"))


def _node(cfg: DictConfig, key: str) -> Any:
    """The node of a key whatever it holds, null and ??? too; None where there is none."""
    parent, _, name = key.rpartition(".")
    holder = _value(cfg, parent) if parent else cfg
    if not isinstance(holder, DictConfig) or name not in holder.keys():  # noqa: SIM118
        return None  # `in holder` would say that a ??? is not there
    return holder._get_node(name)


def _value(cfg: DictConfig, key: str) -> Any:
    """Resolved; None where it is not set or where its interpolation has no answer yet."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _chosen(cfg: DictConfig) -> Mapping[str, Any]:
    """The options of the defaults list by group, as Hydra records them."""
    return _value(cfg, "hydra.runtime.choices") or types.MappingProxyType({})


def _word(parameter: Parameter, native: Any) -> str:
    return f"{parameter.prefix}{parameter.name}={text_of(native)}"


def _keys(cfg: DictConfig) -> Iterator[str]:
    """Dotted names of everything but Hydra's own."""

    def walk(node: Any, path: str) -> Iterator[str]:
        for name, member in node.items():
            yield f"{path}{name}"
            if isinstance(member, dict):
                yield from walk(member, f"{path}{name}.")

    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    yield from walk({name: member for name, member in plain.items() if name != "hydra"}, "")
