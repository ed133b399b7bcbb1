"""Reads what the trials of a study say: which of them ran, at which point, in which folder.

All of it is worked out from the trials alone, so that every controller comes to the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial

# A trial with one of these attributes never ran: its point is taken, its combination is forbidden,
# it was killed before it had values, or its task refused its configuration.
_NEVER_RAN = ("doubled", "forbidden", "broken", "refused")


class Row(NamedTuple):
    """A row says what one trial came to, as people see it."""

    number: int
    folder: str  # in the study's folder
    state: str  # complete | pruned | failed | running
    values: tuple[float, ...] | None  # by objective; the last reported one of a pruned trial
    params: dict[str, Any]
    seconds: float  # of its last try
    note: str = ""  # why it failed
    is_feasible: bool = True  # keeps all constraints


def folder_of(trial: FrozenTrial) -> str:
    """Return the name of a trial's run folder: the number of its first try."""
    return f"{trial.system_attrs.get('failed_trial', trial.number):03d}"


def point_key(point: Mapping[str, Any]) -> str:
    """Write a point so that equal ones are equal; 4 and 4.0 are one number, 1 and "1" are not."""
    plain = {k: float(v) if type(v) in (int, float) else v for k, v in point.items()}
    return json.dumps(plain, sort_keys=True)


def point_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial, with those it is going to take until it has them all."""
    if "asked" in trial.user_attrs:
        return trial.params
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def has_point(trial: FrozenTrial) -> bool:
    """Return whether a trial has all its values, or is to take them."""
    return "asked" in trial.user_attrs or "fixed_params" in trial.system_attrs


def earlier_tries(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the tries before this one."""
    return trial.system_attrs.get("retry_history", [])


def never_ran(trial: FrozenTrial) -> bool:
    """Return whether a trial was ended before it ran, so that it does not count."""
    return any(name in trial.user_attrs for name in _NEVER_RAN)


def row_of(trial: FrozenTrial) -> Row:
    """Summarise a trial that runs or has ended."""
    end = trial.datetime_complete or datetime.now()
    return Row(
        number=trial.number,
        folder=folder_of(trial),
        state={"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
        values=tuple(trial.values) if trial.values else None,
        params=dict(trial.params),
        seconds=(end - (trial.datetime_start or end)).total_seconds(),
        note=str(trial.user_attrs.get("reason", "")),
        is_feasible=all(violation <= 0 for violation in trial.constraints.values()),
    )
