"""A trial as people see it: what the books give and the table shows."""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    """What one trial came to."""

    number: int
    folder: str  # below the study's folder
    state: str  # complete | pruned | failed | running
    values: tuple[float, ...] | None  # by objective; the last reported one of a pruned trial
    params: dict[str, Any]
    seconds: float  # of its last try
    note: str = ""  # why it failed
    epochs: int = 0  # that it has reported
    is_feasible: bool = True  # keeps all constraints
