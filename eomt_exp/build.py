"""Builds objects from a configuration: only this module calls Hydra's `instantiate`.

A `_target_` is code that will be called, and configurations travel inside run folders; so only
classes of our own parts, and samplers and pruners of Optuna, may be named there, and only called
with named arguments.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from eomt_exp.contracts import UserError
from eomt_exp.ranges import Count, fault, range_of

PARTS = ("backbones", "models", "heads", "losses", "scorers", "data")
ALLOWED = (*(f"eomt_exp.{part}." for part in PARTS), "optuna.samplers.", "optuna.pruners.")


def build(node: Any, full_key: str = "") -> Any:
    """Instantiate a config node: numbers, plain lists and dicts, and parts by `_target_`.

    A node whose `_target_` is null is None. Raises UserError for a target that is not allowed, an
    unknown or missing argument or a wrong type; errors of our parts come through as they are.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    plain = _checked(plain, full_key)
    try:
        return instantiate(plain, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        # Our parts say UserError of a wrong value, Optuna's say ValueError.
        if isinstance(cause, ValueError) and plain["_target_"].startswith("optuna."):
            raise UserError(f"{full_key}: {cause}") from cause
        raise cause from None


def build_all(nodes: DictConfig, full_key: str) -> dict[str, Any]:
    """Build all members of a merged group (loss, scorer, benchmark), by name, without the nulls."""
    parts = {
        str(name): node
        for name, node in nodes.items()
        if OmegaConf.is_dict(node) and "_target_" in node
    }
    for name in map(str, nodes):
        if name not in parts:  # a misspelt member of a merged group
            raise UserError(
                f"{full_key}.{name} is no part: it has no _target_. "
                f"There are {', '.join(parts) or 'none'}."
            )
    built = {name: build(node, f"{full_key}.{name}") for name, node in parts.items()}
    return {name: part for name, part in built.items() if part is not None}


def _checked(node: Any, key: str) -> Any:
    """Return the tree without null targets, once every target and its arguments are checked."""
    if isinstance(node, list):
        return [_checked(item, f"{key}[{i}]") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" in node and node["_target_"] is None:
        return None
    node = {k: _checked(v, f"{key}.{k}" if key else str(k)) for k, v in node.items()}
    if "_target_" in node:
        part = _locate(str(node["_target_"]), key)
        _check_call(part, node, key)
        if "where" in inspect.signature(part).parameters:  # for the part's own messages
            node = {"where": key} | node
    return node


def _locate(target: str, key: str) -> Any:
    module, _, name = target.rpartition(".")
    if not target.startswith(ALLOWED):
        raise UserError(
            f"{key}._target_ is {target!r}; only classes in {', '.join(ALLOWED)} are called."
        )
    try:
        part = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}._target_ {target!r} cannot be found: {error}") from error
    # Not what such a module happens to import: that may be anything.
    if not inspect.isclass(part) or not f"{part.__module__}.".startswith(f"{module}."):
        raise UserError(f"{key}._target_ {target!r} is no class of that module.")
    return part


def _check_call(part: Any, node: dict[str, Any], key: str) -> None:
    """Check arguments by name and, by the types of the constructor, choices and plain values.

    Whole numbers of our parts are counts, where their types do not say otherwise.
    """
    parameters = inspect.signature(part).parameters
    given = {k: v for k, v in node.items() if k != "_target_"}
    for name in given:
        if name not in parameters:
            raise UserError(
                f"{key}.{name} is no key of {node['_target_']}; "
                f"there are {', '.join(sorted(parameters))}."
            )
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    if missing:
        raise UserError(f"{key} lacks {', '.join(missing)}, which {node['_target_']} needs.")
    hints: dict[str, Any] = {}
    with suppress(NameError):  # some of Optuna's types exist for type checkers only
        hints = get_type_hints(part.__init__, include_extras=True)
    for name, value in given.items():
        hint = hints.get(name)
        is_count = hint in _COUNTED and part.__module__.startswith("eomt_exp.")
        if text := fault(value, range_of(Count if is_count else hint)):
            raise UserError(f"{key}.{name} {text}.")
        wanted: Any = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if get_origin(wanted) is Literal and value not in get_args(wanted):
            allowed = ", ".join(get_args(wanted))
            raise UserError(f"{key}.{name} must be one of {allowed}, got {value!r}.")
        # Not isinstance: true is an int of Python's, but no number that somebody means.
        if wanted in _ACCEPTS and type(value) not in _ACCEPTS[wanted]:
            raise UserError(f"{key}.{name} must be {wanted.__name__}, got {value!r}.")


_COUNTED = (int, int | None, list[int], tuple[int, int])
_ACCEPTS: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    bool: (bool,),
    str: (str,),
}
