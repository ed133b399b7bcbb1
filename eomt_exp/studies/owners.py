"""Who runs a trial, and whether it is still there: a process here, or a sign from elsewhere.

A trial carries `owner`, the controller that asked for it, `job_owner`, the process that trains it
where that is another, and `alive`, when one of them last gave a sign.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial

from eomt_exp.processes import lives

BEAT_SECONDS = 60.0  # between two signs
STALE_AFTER_SECONDS = 300.0  # without one, a process of another machine counts as dead
# Of a trial that was taken out of the queue, before its new owner has signed it.
_UNSIGNED_SECONDS = 60.0

# Of the ledgers of this process: a ledger may be gone while its process lives on.
LIVING: set[str] = set()


def is_alive(
    trial: FrozenTrial,
    ledger: str,
    open_trials: Collection[int],
    stale_after: float = STALE_AFTER_SECONDS,
) -> bool:
    """Whether somebody still works on a running trial, as far as `ledger` can tell.

    `open_trials` are the ids of its own.
    """
    attrs = trial.user_attrs
    owner, job = attrs.get("owner"), attrs.get("job_owner")
    silence = time.time() - float(attrs.get("alive", 0.0))
    if owner is None:
        started = trial.datetime_start
        return started is not None and _seconds_since(started) < _UNSIGNED_SECONDS
    if job and lives(job):
        return True
    if silence < stale_after and any(lives(p) is None for p in (owner, job) if p):
        return True
    return _controller_lives(owner, trial, ledger, open_trials, silence)


def _controller_lives(
    owner: Mapping[str, Any],
    trial: FrozenTrial,
    ledger: str,
    open_trials: Collection[int],
    silence: float,
) -> bool:
    if not lives(owner):
        return False
    if owner["pid"] != os.getpid():
        return True
    if owner.get("ledger") == ledger:
        # Signed by us and not ours: another was quicker and has yet to sign it.
        return trial._trial_id in open_trials or silence < _UNSIGNED_SECONDS
    return owner.get("ledger") in LIVING


def _seconds_since(moment: datetime) -> float:
    return (datetime.now() - moment).total_seconds()
