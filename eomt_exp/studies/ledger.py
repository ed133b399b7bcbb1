"""What a study knows and what may be asked next, by Optuna's ask and tell.

Several controllers may keep one study, and each may be killed at any instant: all that is known
is in the study's storage, and where two did the same at once the lower trial number wins.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from eomt_exp.studies.asking import Asker, NotThisOne
from eomt_exp.studies.heartbeat import Heartbeat
from eomt_exp.studies.row import Row
from eomt_exp.studies.samplers import SpaceExhausted, point_key
from eomt_exp.studies.settings import StudyError
from eomt_exp.studies.storage import quiet_optuna
from eomt_exp.studies.tally import difference, folder_of, was_never_run
from eomt_exp.studies.trial_queue import TrialQueue

_log = logging.getLogger(__name__)
MAX_DRAWS = 100  # in vain, before a space counts as exhausted, or as forbidden altogether
_SHOWN_REASONS = 3
_ENOUGH_FAILURES = 3  # to judge a study by


@dataclass(frozen=True)
class Ticket:
    """A trial to run; its run folder is that of its first try, so that training goes on there."""

    number: int
    folder: str
    values: dict[str, Any]
    trial: optuna.Trial
    trial_id: int
    attempt: int


class Ledger:
    """The books of one study for one controller, whose threads may use it at the same time.

    `suggest` draws a trial's values, `forbidden` names the rule they break. `facts` must stay the
    same, {"space": {key: text}, "fixed": …, "objective": …}: StudyError if they did not.
    """

    def __init__(
        self,
        *,
        storage: BaseStorage,
        study: str,
        objective: Mapping[str, str],
        n_trials: int,
        sampler: BaseSampler,
        facts: Mapping[str, Mapping[str, Any]],
        suggest: Callable[[optuna.Trial], dict[str, Any]],
        forbidden: Callable[[dict[str, Any]], str | None],
        on_stale: str = "requeue",
        max_retries: int = 0,
        max_failure_rate: float = 0.5,
    ) -> None:
        quiet_optuna()
        if check := getattr(sampler, "check", None):
            check(len(objective))
        self.objective, self.n_trials = dict(objective), n_trials
        self.max_retries, self.max_failure_rate = max_retries, max_failure_rate
        self.exhausted = False
        self._facts = json.loads(json.dumps(facts, default=str))  # as a storage gives them back
        self._lock = threading.Lock()
        self._storage = optuna.storages.get_storage(storage)
        self.study = self._begin(study, sampler)
        self._queue = TrialQueue(self.study, self._storage, n_trials, on_stale)
        self._asker = Asker(self._queue, sampler, suggest, forbidden)
        self._heartbeat = Heartbeat(self._storage, self._queue.open_trials)

    def __enter__(self) -> Ledger:
        self._heartbeat.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._heartbeat.stop()
        self._queue.close()  # what is still open is for the next one to go on with

    def enqueue(self, values: Mapping[str, Any]) -> None:
        """A point to try before those that are drawn; once per study, whoever comes first."""
        mark = point_key(values)
        trials = self.study.get_trials(deepcopy=False)
        ran = (t for t in trials if "refused" not in t.user_attrs)
        if not any(t.user_attrs.get("enqueued") == mark for t in ran):
            self.study.enqueue_trial(dict(values), user_attrs={"enqueued": mark})

    def claim(self) -> Ticket | None:
        """The next trial to run, None if there is nothing left to ask.

        A failed trial may be asked again: call this after each end. Raises StudyError if too many
        trials failed, or if every combination that was drawn is forbidden.
        """
        with self._lock:
            self._check_facts(self.study)
            self._queue.settle_stale()
            self._check_failures()
            vain = {"doubled": 0, "forbidden": 0}
            while (trial_id := self._queue.take(new_ones=not self.exhausted)) is not None:
                try:
                    return _ticket(*self._asker.ask(trial_id))
                except NotThisOne as no:
                    self._queue.discard(trial_id, no.name, no.why)
                    vain[no.name] += 1
                    self._give_up(vain, no.why)
                except SpaceExhausted:
                    self._queue.discard(trial_id, "doubled", "every point of the grid is taken")
                    self.exhausted = True
                except BaseException:
                    self._queue.drop(trial_id)
                    raise
            return None

    def complete(
        self,
        ticket: Ticket,
        values: Sequence[float],
        constraints: Mapping[str, float] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """A result, one value an objective; constraints <= 0 are kept. NaN is a failure."""
        if len(values) != len(self.objective):
            raise ValueError(f"{len(self.objective)} objectives, {len(values)} values: {values}.")
        limits = dict(constraints or {})
        results = [*zip(self.objective, values, strict=True), *limits.items()]
        missing = [name for name, value in results if math.isnan(value)]
        if missing:
            # Its run is complete: another try would come to the same.
            self.fail(ticket, f"{', '.join(missing)} is NaN", retry=False, attrs=attrs)
            return
        numbers = [float(value) for value in values]
        self._tell(ticket, TrialState.COMPLETE, attrs or {}, numbers, limits)

    def prune(self, ticket: Ticket, attrs: Mapping[str, Any] | None = None) -> None:
        """Ended early; its value is the last one it reported."""
        self._tell(ticket, TrialState.PRUNED, attrs or {})

    def fail(
        self,
        ticket: Ticket,
        reason: str,
        retry: bool,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """No result; with `retry` it is asked again, up to max_retries times and in its folder."""
        retries = int(self._storage.get_trial(ticket.trial_id).user_attrs.get("retries", 0))
        notes = {**(attrs or {}), "reason": reason}
        if retry and retries < self.max_retries:
            notes |= {"retries": retries + 1, "requeue": True}
        self._tell(ticket, TrialState.FAIL, notes)
        with self._lock:
            self._queue.enqueue_heirs()

    def refuse(self, ticket: Ticket, reason: str) -> None:
        """Its configuration cannot be run at all: as if it had never been asked for."""
        self._queue.discard(ticket.trial_id, "refused", reason)

    @property
    def has_results(self) -> bool:
        """Whether any trial is complete or pruned."""
        return bool(self._queue.tally().of(TrialState.COMPLETE, TrialState.PRUNED))

    def rows(self) -> list[Row]:
        """Trials that count and run or have ended, by number; what is asked again is left out."""
        return self._queue.tally().rows()

    def open_elsewhere(self) -> int:
        """How many trials other controllers are at."""
        mine = self._queue.open_trials()
        running = self._queue.tally().of(TrialState.RUNNING)
        return sum(t._trial_id not in mine and self._queue.alive(t) for t in running)

    def _begin(self, name: str, sampler: BaseSampler) -> optuna.Study:
        study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=[StudyDirection[way.upper()] for way in self.objective.values()],
            load_if_exists=True,
            sampler=sampler,
            pruner=optuna.pruners.NopPruner(),  # trials are judged where they run
        )
        trials = study.get_trials(deepcopy=False)
        # What has not run yet cannot be mixed with anything: a mended command may go on with it.
        is_fresh = all(t.state is TrialState.WAITING or was_never_run(t) for t in trials)
        if "facts" not in study.user_attrs or is_fresh:
            study.set_metric_names(list(self.objective))
            study.set_user_attr("facts", self._facts)
        self._check_facts(study)
        return study

    def _check_facts(self, study: optuna.Study) -> None:
        # Again at each claim: of two who began a study at once, the last one wrote its facts.
        lines = difference(study.user_attrs["facts"], self._facts)
        ways = [way.name.lower() for way in study.directions]
        if not lines and ways != list(self.objective.values()):
            lines = [f"objective: {', '.join(ways)} -> {', '.join(self.objective.values())}"]
        if lines:
            raise StudyError(
                f"The study {study.study_name} was begun with other settings:\n  "
                + "\n  ".join(lines)
                + "\nTrials of both cannot be compared. Take the change back, or begin another "
                f"study: hydra.sweeper.study={study.study_name}_2"
            )

    def _check_failures(self) -> None:
        tally = self._queue.tally()
        failed = tally.failed
        ended = len(failed) + len(tally.of(TrialState.COMPLETE, TrialState.PRUNED))
        if len(failed) < min(_ENOUGH_FAILURES, self.n_trials):
            return
        if len(failed) / ended > self.max_failure_rate:
            reasons = [
                f"\n  trial {t.number} ({folder_of(t)}): {t.user_attrs.get('reason', 'unknown')}"
                for t in failed[:_SHOWN_REASONS]
            ]
            raise StudyError(
                f"{len(failed)} of {ended} trials failed, more than max_failure_rate="
                f"{self.max_failure_rate}:{''.join(reasons)}\nMend the cause and begin another "
                f"study (hydra.sweeper.study={self.study.study_name}_2), or go on with this one: "
                "hydra.sweeper.max_failure_rate=1"
            )

    def _give_up(self, vain: Mapping[str, int], why: Any) -> None:
        if vain["forbidden"] >= MAX_DRAWS:
            raise StudyError(
                f"{MAX_DRAWS} combinations in a row were forbidden, the last one by: {why}. "
                "Change hydra.sweeper.forbid, or leave those values out of hydra.sweeper.params."
            )
        if vain["doubled"] >= MAX_DRAWS:
            self.exhausted = True

    def _tell(
        self,
        ticket: Ticket,
        state: TrialState,
        notes: Mapping[str, Any],
        values: Sequence[float] | None = None,
        constraints: Mapping[str, float] | None = None,
    ) -> None:
        """Notes first, since a finished trial takes none."""
        try:
            for name, note in notes.items():
                ticket.trial.set_user_attr(name, note)
            for name, limit in (constraints or {}).items():
                ticket.trial.set_constraint(name, limit)
            if self._storage.get_trial(ticket.trial_id).state is TrialState.RUNNING:
                self.study.tell(ticket.trial, values, state)
                return
        except UpdateFinishedTrialError:
            pass
        finally:
            self._queue.release(ticket.trial_id)
        _log.warning(
            "Trial %d was taken for dead and given to another; this end of it does not count.",
            ticket.number,
        )


def _ticket(trial: optuna.Trial, values: dict[str, Any], frozen: FrozenTrial) -> Ticket:
    attempt = int(frozen.user_attrs.get("attempt", 1))
    return Ticket(trial.number, folder_of(frozen), values, trial, trial._trial_id, attempt)
