"""Makes samplers of Optuna whose draws depend only on the seed and the trial's number.

A sampler that is seeded once repeats its draws after a restart and in each further process; here
every trial gets one of its own. What a sampler must remember it finds in the study.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler

from eomt_exp.build import build
from eomt_exp.contracts import UserError
from eomt_exp.studies.storage import quiet_optuna

GRID = "optuna.samplers.GridSampler"  # the ledger enqueues its points, nothing is drawn


def make_sampler(node: Mapping[str, Any], seed: int, number: int) -> BaseSampler:
    """Make the sampler of hydra.sweeper.sampler for one trial; a seed in the YAML stays."""
    if node.get("_target_") == GRID:
        return optuna.samplers.RandomSampler()
    return build(_seeded(node, seed_of(seed, number)), "hydra.sweeper.sampler")


def check_sampler(node: Mapping[str, Any], directions: Sequence[Any]) -> None:
    """Raise UserError for options that cannot be, or objectives that the sampler cannot have."""
    quiet_optuna()
    study = optuna.create_study(directions=[*directions], sampler=make_sampler(node, 0, 0))
    try:
        study.ask({"x": FloatDistribution(0, 1)})
    except (TypeError, ValueError) as error:
        hint = " For several objectives: hydra/sweeper/sampler=nsga2." if directions[1:] else ""
        raise UserError(f"hydra.sweeper.sampler, {node['_target_']}: {error}{hint}") from error


def seed_of(seed: int, number: int) -> int:
    """Return a seed for one trial, 32 bits; those of two numbers have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def _seeded(node: Any, seed: int) -> Any:
    """Return the node with a seed in it and in the samplers inside it that take one."""
    if not isinstance(node, Mapping):
        return node
    found = {key: _seeded(value, seed) for key, value in node.items()}
    kind = getattr(optuna.samplers, str(node.get("_target_")).rpartition(".")[2], None)
    takes_seed = inspect.isclass(kind) and "seed" in inspect.signature(kind).parameters
    return {"seed": seed, **found} if takes_seed else found
