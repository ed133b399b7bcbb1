"""Which trials of a study count, worked out from the trials alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from eomt_exp.studies.row import Row

# A trial with one of these was never run: a point that is taken, a combination that is not
# allowed, one more than wanted, an error or a kill before it had its values, a configuration that
# its task refused.
NEVER_RUN = ("doubled", "forbidden", "surplus", "broken", "refused")
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
_SHOWN_DIFFERENCES = 8


class Tally:
    """Trials sorted into those that count, that are stale, that must be asked again.

    A trial that is asked again gets an heir: a new trial with its values, in its folder. The heir
    takes its place in the line, so the line is ordered by the number of the first try.
    """

    def __init__(
        self, trials: Sequence[FrozenTrial], alive: Callable[[FrozenTrial], bool], on_stale: str
    ) -> None:
        self.trials = trials
        self._heirs: dict[int, int] = {}
        for trial in trials:
            origin = trial.user_attrs.get("requeue_of")
            # Two controllers may have thought of it at once: the first heir is the heir.
            if origin is not None and origin not in self._heirs:
                self._heirs[origin] = trial.number
        running = [t for t in trials if t.state is TrialState.RUNNING]
        self.stale = [t for t in running if not alive(t)]
        left_out = {t.number for t in self.stale} if on_stale == "ignore" else set()
        self.counted = [t for t in trials if t.number not in left_out and self._counts(t)]

    @property
    def total(self) -> int:
        """How much of the budget is used."""
        return len(self.counted)

    @property
    def without_heir(self) -> list[FrozenTrial]:
        """Ended to be asked again, and not asked again yet."""
        return [t for t in self.counted if _is_to_be_repeated(t)]

    @property
    def failed(self) -> list[FrozenTrial]:
        """Ended by a failure for good."""
        return [t for t in self.of(TrialState.FAIL) if not _is_to_be_repeated(t)]

    def of(self, *states: TrialState) -> list[FrozenTrial]:
        """Those that count and are in one of these states."""
        return [t for t in self.counted if t.state in states]

    def is_within(self, number: int, n_trials: int) -> bool:
        """Whether a trial counts and fewer than n_trials stand before it in the line."""
        mine = [t for t in self.counted if t.number == number]
        if not mine:
            return False
        place = folder_of(mine[0])
        return sum(int(folder_of(t)) < int(place) for t in self.counted) < n_trials

    def rows(self) -> list[Row]:
        """Trials that run or have ended."""
        seen = [t for t in self.counted if t.state in _STATES and not _is_to_be_repeated(t)]
        return [_row(trial) for trial in seen]

    def _counts(self, trial: FrozenTrial) -> bool:
        if was_never_run(trial):
            return False
        origin = trial.user_attrs.get("requeue_of")
        if origin is not None and self._heirs[origin] != trial.number:
            return False
        return not (_is_to_be_repeated(trial) and trial.number in self._heirs)


def folder_of(trial: FrozenTrial) -> str:
    """Name of a trial's run folder: the number of its first try, three digits or more."""
    return str(trial.user_attrs.get("folder", f"{trial.number:03d}"))


def was_never_run(trial: FrozenTrial) -> bool:
    """Whether a trial was thrown away before it ran."""
    return any(name in trial.user_attrs for name in NEVER_RUN)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines `key: old -> new` for {section: {key: value}}; a section is named unless "fixed"."""
    lines = []
    for section in dict.fromkeys((*old, *new)):
        was, now = old.get(section, {}), new.get(section, {})
        label = "" if section == "fixed" else f"{section} "
        lines += [
            f"{label}{key}: {was.get(key, 'absent')} -> {now.get(key, 'absent')}"
            for key in dict.fromkeys((*was, *now))
            if key not in was or key not in now or was[key] != now[key]
        ]
    more = len(lines) - _SHOWN_DIFFERENCES + 1
    return [*lines[: _SHOWN_DIFFERENCES - 1], f"and {more} more"] if more > 1 else lines


def _is_to_be_repeated(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL and "requeue" in trial.user_attrs


def _row(trial: FrozenTrial) -> Row:
    end = trial.datetime_complete or datetime.now()
    return Row(
        number=trial.number,
        folder=folder_of(trial),
        state=_STATES[trial.state],
        values=tuple(trial.values) if trial.values else None,
        params=dict(trial.params),
        seconds=(end - (trial.datetime_start or end)).total_seconds(),
        note=str(trial.user_attrs.get("reason", "")),
        epochs=len(trial.intermediate_values),
        is_feasible=all(violation <= 0 for violation in trial.constraints.values()),
    )
