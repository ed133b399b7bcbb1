"""Configuration to objects: the only door to Hydra's `instantiate`.

A `_target_` is code that will be called, and configurations travel inside run folders; so only
classes that live in the rooms of parts may be named there, and only called with named arguments.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

ROOMS = tuple(
    f"eomt_exp.{room}." for room in ("backbones", "models", "heads", "losses", "scorers", "data")
)


class ConfigError(ValueError):
    """A key of the configuration has a value that cannot be; the message says what can."""


def build(node: Any, full_key: str = "") -> Any:
    """Instantiate a config node: numbers, plain lists and dicts, and parts by `_target_`.

    A node whose `_target_` is null is None. Raises ConfigError for a target outside this package,
    an unknown argument or a wrong type; errors of the parts themselves come through as they are.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    plain = _checked(plain, full_key)
    try:
        return instantiate(plain, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from error
        raise ConfigError(f"{full_key}: {error}") from error


def build_all(nodes: DictConfig, full_key: str) -> dict[str, Any]:
    """Every member of a merged group (loss, scorer, benchmark), by name, without the nulls.

    benchmark=none stays empty, whatever debug= has set below it.
    """
    if full_key == "benchmark" and not any(_is_part(node) for _, node in _named(nodes)):
        return {}
    for name, node in _named(nodes):
        if not _is_part(node):  # a misspelt member of a merged group
            raise ConfigError(
                f"{full_key}.{name} is no part: it has no _target_. "
                f"There are {', '.join(n for n, v in _named(nodes) if _is_part(v)) or 'none'}."
            )
    built = {name: build(node, f"{full_key}.{name}") for name, node in _named(nodes)}
    return {name: part for name, part in built.items() if part is not None}


def _is_part(node: Any) -> bool:
    return OmegaConf.is_dict(node) and "_target_" in node


def _named(nodes: DictConfig) -> list[tuple[str, Any]]:
    return [(str(name), node) for name, node in nodes.items()]


def _checked(node: Any, key: str) -> Any:
    """The same tree without null targets; every target allowed and given what it takes."""
    if isinstance(node, list):
        return [_checked(item, f"{key}[{i}]") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" in node and node["_target_"] is None:
        return None
    node = {k: _checked(v, f"{key}.{k}" if key else str(k)) for k, v in node.items()}
    if "_target_" in node:
        _check_call(_locate(str(node["_target_"]), key), node, key)
    return node


def _locate(target: str, key: str) -> Any:
    module, _, name = target.rpartition(".")
    if not module.startswith(ROOMS):
        raise ConfigError(
            f"{key}._target_ is {target!r}; only classes in {', '.join(ROOMS)} are called."
        )
    try:
        part = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_ {target!r} cannot be found: {error}") from error
    # Not what such a module happens to import: that may be anything.
    if not inspect.isclass(part) or part.__module__ != module:
        raise ConfigError(f"{key}._target_ {target!r} is no class of that module.")
    return part


def _check_call(part: Any, node: dict[str, Any], key: str) -> None:
    """Arguments by name and, where the constructor says int, float, bool or str, by type."""
    parameters = inspect.signature(part).parameters
    hints = get_type_hints(part.__init__)
    given = {k: v for k, v in node.items() if k != "_target_"}
    for name in given:
        if name not in parameters:
            raise ConfigError(
                f"{key}.{name} is no key of {node['_target_']}; "
                f"there are {', '.join(sorted(parameters))}."
            )
    for name, value in given.items():
        wanted: Any = hints.get(name)
        if wanted in _ACCEPTS and not _is(value, wanted):
            raise ConfigError(f"{key}.{name} must be {wanted.__name__}, got {value!r}.")


_ACCEPTS: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    bool: (bool,),
    str: (str,),
}


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool) and wanted is not bool:
        return False
    return isinstance(value, _ACCEPTS[wanted])
