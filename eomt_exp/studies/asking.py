"""Values for one trial: drawn, allowed, and of a point that no other trial has."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from eomt_exp.studies.samplers import point_key, point_of
from eomt_exp.studies.trial_queue import TrialQueue

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 10.0  # for the values of trials that were asked for just before


class NotThisOne(Exception):
    """A trial that must not run; `name` is its attribute, forbidden or doubled, `why` its value."""

    def __init__(self, name: str, why: Any) -> None:
        super().__init__(name)
        self.name, self.why = name, why


class Asker:
    """Asks the sampler for the values of trials that are already ours."""

    def __init__(
        self,
        queue: TrialQueue,
        sampler: BaseSampler,
        suggest: Callable[[optuna.Trial], dict[str, Any]],
        forbidden: Callable[[dict[str, Any]], str | None],
    ) -> None:
        self.queue, self.sampler = queue, sampler
        self.suggest, self.forbidden = suggest, forbidden

    def ask(self, trial_id: int) -> tuple[optuna.Trial, dict[str, Any], FrozenTrial]:
        """Trial, values and record; NotThisOne if they are forbidden or taken already."""
        # A study object of its own: Optuna keeps a list of trials with it, and that grows old.
        study = optuna.load_study(
            study_name=self.queue.study.study_name,
            storage=self.queue.storage,
            sampler=self.sampler,
            pruner=self.queue.study.pruner,
        )
        trial = optuna.Trial(study, trial_id)
        values = self.suggest(trial)
        if rule := self.forbidden(values):
            raise NotThisOne("forbidden", rule)
        trial.set_user_attr("asked", True)
        frozen = self.queue.storage.get_trial(trial_id)
        if (twin := self._twin(frozen)) is not None:
            raise NotThisOne("doubled", twin)
        self._note_outsiders(trial, frozen)
        self._inherit(trial, frozen)
        return trial, values, frozen

    def _twin(self, trial: FrozenTrial) -> int | None:
        """Number of an earlier trial at the same point, which has it or has had it."""
        deadline = time.monotonic() + _WAIT_SECONDS
        tally = self.queue.tally()
        while time.monotonic() < deadline and any(
            t.number < trial.number and "asked" not in t.user_attrs and self.queue.alive(t)
            for t in tally.of(TrialState.RUNNING)
        ):
            time.sleep(0.05)
            tally = self.queue.tally()
        final = {t.number for t in tally.failed}  # may be tried again, by chance
        mine = point_key(point_of(trial))
        earlier = [t for t in tally.counted if t.number < trial.number and t.number not in final]
        return next((t.number for t in earlier if point_key(point_of(t)) == mine), None)

    def _note_outsiders(self, trial: optuna.Trial, frozen: FrozenTrial) -> None:
        """Optuna runs an enqueued value that is out of its range; that should not go unseen."""
        outside = [
            name
            for name, space in frozen.distributions.items()
            if isinstance(space, (FloatDistribution, IntDistribution))
            and not space.low <= frozen.params[name] <= space.high
        ]
        if outside:
            trial.set_user_attr("outside", outside)
            _log.warning(
                "Trial %d has values outside the search space: %s", trial.number, ", ".join(outside)
            )

    def _inherit(self, trial: optuna.Trial, frozen: FrozenTrial) -> None:
        """An heir goes on where its origin stopped, and with the values reported until then."""
        if len(trial.study.directions) > 1 or "requeue_of" not in frozen.user_attrs:
            return
        by_number = {t.number: t for t in self.queue.study.get_trials(deepcopy=False)}
        reported: dict[int, float] = {}
        ancestor = frozen
        while (origin := ancestor.user_attrs.get("requeue_of")) is not None:
            ancestor = by_number[origin]
            reported = {**ancestor.intermediate_values, **reported}
        for step in sorted(reported):
            trial.report(reported[step], step)
