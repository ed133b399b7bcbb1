"""Decides which trial of a study is next, and which trials have lost their process.

Several controllers may run one study, and each may be killed at any instant. They share the
study's folder: a trial is claimed under one file lock there, and whoever works on it holds a lock
file in its run folder, the controller that asked for it as well as the process that trains it. A
RUNNING trial whose locks are free has lost its process, and is retried in its folder.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from eomt_exp.contracts import UserError
from eomt_exp.files import LOCK, hold_lock, is_locked
from eomt_exp.runs import differences
from eomt_exp.schema import StudyConfig
from eomt_exp.studies.storage import open_storage
from eomt_exp.studies.trials import (
    Row,
    earlier_tries,
    folder_of,
    has_point,
    never_ran,
    point_key,
    point_of,
    row_of,
)

_log = logging.getLogger(__name__)
CLAIM_LOCK = ".claim.lock"  # in the study's folder, held while a trial is claimed
CONTROLLER_LOCK = ".controller.lock"  # in a trial's run folder, held by the controller
MAX_DRAWS = 100  # in vain, before a space counts as exhausted, or as forbidden altogether
_MOST_TRIES = 5  # of a trial whose process is lost each time
_ENOUGH_FAILURES = 3  # to judge a study by
_SHOWN_REASONS, _SHOWN_LINES = 3, 7


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial to run has the run folder of its first try, so that training goes on there."""

    number: int
    folder: str
    values: dict[str, Any]
    trial: optuna.Trial
    tries: int  # this one included


@dataclass(kw_only=True)
class Ledger(AbstractContextManager["Ledger"]):
    """Keeps the trials of one study for one controller, as a context manager around its work.

    `suggest` draws a trial's values, `forbidden` names the rule they break; `points` are those of a
    grid, which are enqueued instead of drawn. `facts` must stay the same, {"space": {key: text},
    "fixed": {key: value}}: UserError if they did not.
    """

    settings: StudyConfig
    url: str
    folder: Path
    make_sampler: Callable[[int], BaseSampler]
    facts: Mapping[str, Mapping[str, Any]]
    suggest: Callable[[optuna.Trial], dict[str, Any]]
    forbidden: Callable[[dict[str, Any]], str | None]
    points: Sequence[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        """Open the study, or begin it."""
        self.name, self.objective = self.settings.study, self.settings.directions
        self.facts = json.loads(json.dumps(self.facts, default=str))  # as a storage returns them
        self._is_exhausted = False  # of a finite space: every point was drawn
        self._held: dict[int, FileLock] = {}  # trial id -> its controller lock
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claiming = FileLock(self.folder / CLAIM_LOCK)
        with self._claiming:
            self.study = optuna.create_study(
                storage=open_storage(self.url),
                study_name=self.name,
                directions=list(self.objective.values()),
                load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),  # trials are judged where they run
            )
            # What has not run cannot be mixed with anything: a corrected command may go on with it.
            is_new = all(t.state is TrialState.WAITING or never_ran(t) for t in self._trials())
            if is_new or "facts" not in self.study.user_attrs:
                self.study.set_metric_names(list(self.objective))
                self.study.set_user_attr("facts", self.facts)
            self._check_facts()

    def __exit__(self, *error: object) -> None:
        """Let go of the trials that are still running: the next controller retries them."""
        for trial_id in [*self._held]:
            self._release(trial_id)

    def enqueue(self, values: Mapping[str, Any]) -> None:
        """Add a point to try before those that are drawn; once per study, whoever comes first."""
        with self._claiming:
            taken = {point_key(point_of(t)) for t in self._trials() if not never_ran(t)}
            if point_key(values) not in taken:
                self.study.enqueue_trial(dict(values))

    def claim(self) -> ClaimedTrial | None:
        """Return the next trial to run, None if there is nothing left; call it after each end.

        Raises UserError if too many trials failed, or if every combination drawn is forbidden.
        """
        with self._claiming:
            self._check_facts()
            self._end_stale()
            self._check_failures()
            in_vain = {"doubled": 0, "forbidden": 0}
            while max(in_vain.values()) < MAX_DRAWS and self._has_next():
                claimed, problem, why = self._ask()
                if not problem:
                    return claimed
                self._end(claimed.trial, TrialState.FAIL, {problem: why})
                in_vain[problem] += 1
        self._is_exhausted |= in_vain["doubled"] >= MAX_DRAWS
        if in_vain["forbidden"] >= MAX_DRAWS:
            raise UserError(
                f"{MAX_DRAWS} combinations in a row were forbidden, the last one by: {why}. "
                "Change hydra.sweeper.forbid, or leave those values out of hydra.sweeper.params."
            )
        return None

    def complete(
        self,
        claimed: ClaimedTrial,
        values: Sequence[float],
        constraints: Mapping[str, float] = {},
        attrs: Mapping[str, Any] = {},
    ) -> None:
        """Store a result, one value an objective; constraints <= 0 are kept. NaN is a failure."""
        results = [*zip(self.objective, values, strict=True), *constraints.items()]
        missing = [name for name, value in results if math.isnan(value)]
        if missing:
            # Its run is complete: another try would come to the same.
            notes = {**attrs, "reason": f"{', '.join(missing)} is NaN"}
            self._end(claimed.trial, TrialState.FAIL, notes)
            return
        with suppress(UpdateFinishedTrialError):  # `_end` says so
            for name, limit in constraints.items():
                claimed.trial.set_constraint(name, limit)
        self._end(claimed.trial, TrialState.COMPLETE, attrs, [float(v) for v in values])

    def prune(self, claimed: ClaimedTrial) -> None:
        """End a trial early; its value is the last one it reported."""
        self._end(claimed.trial, TrialState.PRUNED, {})

    def fail(self, claimed: ClaimedTrial, reason: str, retry: bool) -> None:
        """End a trial without a result; with `retry` it is tried again, up to max_retries times."""
        with self._claiming:
            if retry and claimed.tries <= self.settings.max_retries:
                self._retry(claimed.trial)
            self._end(claimed.trial, TrialState.FAIL, {"reason": reason})

    def refuse(self, claimed: ClaimedTrial, reason: str) -> None:
        """Take a trial back whose configuration cannot be run at all: it does not count."""
        self._end(claimed.trial, TrialState.FAIL, {"refused": reason})

    def rows(self) -> list[Row]:
        """Return the trials that run or have ended, without those that are retried."""
        return [row_of(t) for t in self._counted() if t.state is not TrialState.WAITING]

    def best(self) -> list[Row]:
        """Return complete, feasible trials, best first; of several objectives the front."""
        found = [row for row in self.rows() if row.state == "complete" and row.is_feasible]
        if len(self.objective) > 1:
            front = {trial.number for trial in self.study.best_trials}
            found = [row for row in found if row.number in front]
        is_up = next(iter(self.objective.values())) == "maximize"
        return sorted(found, key=lambda row: row.values or (), reverse=is_up)

    def open_elsewhere(self) -> int:
        """Return how many trials other controllers are at."""
        running = [t for t in self._counted() if t.state is TrialState.RUNNING]
        return sum(t._trial_id not in self._held and self._is_alive(t) for t in running)

    def _check_facts(self) -> None:
        lines = differences(self.study.user_attrs["facts"], self.facts)
        ways = [way.name.lower() for way in self.study.directions]
        if not lines and ways != list(self.objective.values()):
            lines = [f"objective: {', '.join(ways)} -> {', '.join(self.objective.values())}"]
        if lines:
            more = len(lines) - _SHOWN_LINES
            shown = "\n  ".join(["", *lines[:_SHOWN_LINES], *[f"and {more} more"] * (more > 0)])
            raise UserError(
                f"The study {self.name} was begun with other settings:{shown}\n"
                "Trials of both cannot be compared. Take the change back, or begin another study: "
                f"hydra.sweeper.study={self.name}_2"
            )

    def _check_failures(self) -> None:
        ended = [t for t in self._counted() if t.state.is_finished()]
        failed = [t for t in ended if t.state is TrialState.FAIL]
        enough, most = min(_ENOUGH_FAILURES, self.settings.n_trials), self.settings.max_failure_rate
        if len(failed) < enough or len(failed) / len(ended) <= most:
            return
        reasons = [f"\n  trial {row.number} ({row.folder}): {row.note or 'unknown'}"
                   for row in map(row_of, failed[:_SHOWN_REASONS])]  # fmt: skip
        raise UserError(
            f"{len(failed)} of {len(ended)} trials failed, more than max_failure_rate="
            f"{most}:{''.join(reasons)}\nCorrect the cause and begin another "
            f"study (hydra.sweeper.study={self.name}_2), or go on with this one: "
            "hydra.sweeper.max_failure_rate=1"
        )

    def _end_stale(self) -> None:
        """End the RUNNING trials whose locks are free, and retry those that have values."""
        for trial in filter(self._is_stale, self._trials()):
            tries, notes = len(earlier_tries(trial)) + 1, {}
            if never_ran(trial) or not has_point(trial):
                notes = {"broken": "killed while it was asked for"}
            elif self.settings.on_stale != "ignore":
                notes = {"reason": f"its process was gone, {tries} times"}
                if self.settings.on_stale == "requeue" and tries < _MOST_TRIES:
                    self._retry(trial)
            if notes:
                self._end(trial, TrialState.FAIL, notes)

    def _has_next(self) -> bool:
        """Return whether a trial waits, or may be drawn, within n_trials."""
        counted = self._counted()
        if sum(t.state is not TrialState.WAITING for t in counted) >= self.settings.n_trials:
            return False
        if any(t.state is TrialState.WAITING for t in counted):
            return True
        if self.points is None:
            return not self._is_exhausted
        taken = {point_key(point_of(t)) for t in self._trials()}
        for point in self.points:
            if point_key(point) not in taken:
                self.study.enqueue_trial(point)
                return True
        return False

    def _ask(self) -> tuple[ClaimedTrial, str, Any]:
        """Return a trial that is ours, and why it must not run: an attribute and its value."""
        self.study.sampler = self.make_sampler(len(self._trials()))
        trial = self.study.ask()
        frozen = self._frozen(trial._trial_id)
        folder, tries = folder_of(frozen), len(earlier_tries(frozen)) + 1
        lock = hold_lock(self.folder / folder / CONTROLLER_LOCK)
        assert lock is not None, f"{folder} is another's, though its trial was claimed here"
        self._held[trial._trial_id] = lock
        try:
            values = self.suggest(trial)
            claimed = ClaimedTrial(trial.number, folder, values, trial, tries)
            if rule := self.forbidden(values):
                return claimed, "forbidden", rule
            if (other := self._earlier_at(trial)) is not None:
                return claimed, "doubled", other
            trial.set_user_attr("asked", True)  # from here on its values are worth a retry
        except BaseException:
            self._release(trial._trial_id)
            raise
        return claimed, "", None

    def _earlier_at(self, trial: optuna.Trial) -> int | None:
        """Return the number of a trial at the same point that has not failed for good."""
        mine = point_key(trial.params)
        for row in self.rows():
            is_other = row.number != trial.number and row.state != "failed"
            if is_other and point_key(row.params) == mine:
                return row.number
        return None

    def _retry(self, trial: optuna.Trial | FrozenTrial) -> None:
        """Enqueue the trial again with its values and reports; before its end, so none is lost."""
        if not any(trial.number in earlier_tries(other) for other in self._trials()):
            again = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
            again(self.study, self._frozen(trial._trial_id))

    def _is_alive(self, trial: FrozenTrial) -> bool:
        """Return whether a controller or a job holds a lock in the trial's run folder."""
        folder = self.folder / folder_of(trial)
        return is_locked(folder / CONTROLLER_LOCK) or is_locked(folder / LOCK)

    def _is_stale(self, trial: FrozenTrial) -> bool:
        """Return whether a trial has lost its process; it may have ended meanwhile."""
        is_lost = trial.state is TrialState.RUNNING and not self._is_alive(trial)
        return is_lost and self._frozen(trial._trial_id).state is TrialState.RUNNING

    def _counted(self) -> list[FrozenTrial]:
        """Return the trials but those that never ran, were retried, or are to be ignored."""
        trials = self._trials()
        retried = {number for trial in trials for number in earlier_tries(trial)}
        found = [t for t in trials if t.number not in retried and not never_ran(t)]
        return [t for t in found if self.settings.on_stale != "ignore" or not self._is_stale(t)]

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _frozen(self, trial_id: int) -> FrozenTrial:
        return self.study._storage.get_trial(trial_id)

    def _release(self, trial_id: int) -> None:
        if lock := self._held.pop(trial_id, None):
            lock.release()

    def _end(
        self,
        trial: optuna.Trial | FrozenTrial,
        state: TrialState,
        notes: Mapping[str, Any],
        values: Sequence[float] | None = None,
    ) -> None:
        """Store the end of a trial; notes first, since a finished trial takes none."""
        try:
            for name, note in notes.items():
                self.study._storage.set_trial_user_attr(trial._trial_id, name, note)
            self.study.tell(trial.number, values, state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            # Another machine, which a lock on this file system does not reach, has retried it.
            _log.warning("A trial was taken for dead and retried; this end of it does not count.")
        finally:
            self._release(trial._trial_id)
