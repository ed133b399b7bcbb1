"""Trials taken, given up and asked again: the steps that another controller must survive."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any
from uuid import uuid4

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from eomt_exp.processes import this_process
from eomt_exp.studies.owners import LIVING, is_alive
from eomt_exp.studies.samplers import point_of
from eomt_exp.studies.tally import Tally, folder_of, was_never_run

_MOST_ATTEMPTS = 5  # at a trial whose process dies each time


class TrialQueue:
    """The trials of a study as one controller sees and changes them.

    A step that takes two writes is written so that whoever comes next can see the first alone and
    do the second: attributes before the end, since finished trials take none.
    """

    def __init__(
        self, study: optuna.Study, storage: BaseStorage, n_trials: int, on_stale: str
    ) -> None:
        self.study, self.storage = study, storage
        self.n_trials, self.on_stale = n_trials, on_stale
        self._open: set[int] = set()
        self._guard = threading.Lock()
        self._me = uuid4().hex
        LIVING.add(self._me)
        # Also if nobody closes it: what it has open is then stale.
        self.close = weakref.finalize(self, LIVING.discard, self._me)

    def open_trials(self) -> list[int]:
        """Ids of the trials that this controller is at."""
        with self._guard:
            return list(self._open)

    def tally(self) -> Tally:
        """What counts, as of now."""
        return Tally(self.study.get_trials(deepcopy=False), self.alive, self.on_stale)

    def alive(self, trial: FrozenTrial) -> bool:
        """Whether somebody is still at a running trial."""
        return is_alive(trial, self._me, self.open_trials())

    def settle_stale(self) -> None:
        """End the trials whose process is gone, and ask again those that are to be."""
        for trial in self.tally().stale:
            if was_never_run(trial):
                self._end(trial._trial_id, {})
            elif "asked" not in trial.user_attrs and "fixed_params" not in trial.system_attrs:
                # Nothing of it is worth keeping, and half a point could become another's.
                self.discard(trial._trial_id, "broken", "killed while it was asked")
            elif self.on_stale != "ignore":
                attempt = int(trial.user_attrs.get("attempt", 1))
                notes: dict[str, Any] = {"reason": f"its process was gone, {attempt} times"}
                # Not for ever: some trials take their controller with them.
                if self.on_stale == "requeue" and attempt < _MOST_ATTEMPTS:
                    notes["requeue"] = True
                self._end(trial._trial_id, notes)
        self.enqueue_heirs()

    def enqueue_heirs(self) -> None:
        """The second half of asking again; who was killed between the halves left it to us."""
        for trial in self.tally().without_heir:
            attrs = trial.user_attrs
            heritage = {
                "requeue_of": trial.number,
                "folder": folder_of(trial),
                "attempt": int(attrs.get("attempt", 1)) + 1,
                "retries": int(attrs.get("retries", 0)),
            }
            self.study.enqueue_trial(point_of(trial), user_attrs=heritage)

    def take(self, new_ones: bool = True) -> int | None:
        """Id of a trial that is ours now: a waiting one, else a new one within the budget."""
        while True:
            trial_id = self._waiting()
            if trial_id is None and new_ones and self.tally().total < self.n_trials:
                trial_id = self._new()
            if trial_id is None:
                return None
            number = self.storage.get_trial(trial_id).number
            # Others may have asked in the same instant: who stands too far back goes away again.
            if self.tally().is_within(number, self.n_trials):
                return trial_id
            self.discard(trial_id, "surplus", True)

    def discard(self, trial_id: int, name: str, why: Any) -> None:
        """End a trial that shall not run; it does not count."""
        self._end(trial_id, {name: why})

    def drop(self, trial_id: int) -> None:
        """Stopped while it was asked: what has a point by itself is left for the next one."""
        if "fixed_params" in self.storage.get_trial(trial_id).system_attrs:
            self.release(trial_id)
        else:
            self.discard(trial_id, "broken", "stopped while it was asked")

    def release(self, trial_id: int) -> None:
        """It has come to an end: no more signs of life."""
        with self._guard:
            self._open.discard(trial_id)

    def _end(self, trial_id: int, notes: dict[str, Any]) -> None:
        try:
            for name, value in notes.items():
                self.storage.set_trial_user_attr(trial_id, name, value)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            pass  # another controller was quicker
        self.release(trial_id)

    def _waiting(self) -> int | None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            trial_id = trial._trial_id
            try:
                # Signed before and after: no kill leaves it without an owner, and of two
                # controllers the one that got it has the last word.
                self._sign(trial_id)
                if self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                    self._hold(trial_id)
                    self._sign(trial_id)
                    return trial_id
            except UpdateFinishedTrialError:
                continue
        return None

    def _new(self) -> int:
        # Born with its owner: no kill can come in between.
        born = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=self._signature())
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trial_id = self.storage.create_new_trial(study_id, born)
        self._hold(trial_id)
        return trial_id

    def _hold(self, trial_id: int) -> None:
        with self._guard:
            self._open.add(trial_id)

    def _sign(self, trial_id: int) -> None:
        for name, value in self._signature().items():
            self.storage.set_trial_user_attr(trial_id, name, value)

    def _signature(self) -> dict[str, Any]:
        return {"owner": {**this_process(), "ledger": self._me}, "alive": time.time()}
