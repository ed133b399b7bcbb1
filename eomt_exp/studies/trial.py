"""A training as a trial of an Optuna study: it reports while it runs, and ends when it is pruned.

The sweeper says in the environment (EOMT_TRIAL) which trial a job is; only that process group's
first process speaks to the study, and all of them end together. A study that cannot be reached
costs warnings and the pruning, never the training.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from eomt_exp.engine.device import agreed, is_first_process
from eomt_exp.files import write_text
from eomt_exp.processes import this_process
from eomt_exp.studies.storage import put_together

VARIABLE = "EOMT_TRIAL"
PRUNED = "pruned.json"  # in the folder of a run that a pruner ended; gone once it goes on
BEAT_SECONDS = 60.0  # between two signs of life
LOOK_METRICS = ("ap", "fpr95")  # of each tuning set, and their means: val/<set>/ap, val/ap
_log = logging.getLogger(__name__)


class TrialError(ValueError):
    """The study asks for what this training does not give; the message says what to type."""


class TrialLost(RuntimeError):
    """The study has given this trial to another job."""


class NullTrial:
    """A run outside any study: nobody is told anything, and nothing ends early.

    A context manager around the job, as a real trial is.
    """

    is_of_study = False
    run_name: str | None = None  # of its MLflow run; these None or empty: as without a study
    parent_run_id: str | None = None
    experiment: str | None = None  # of MLflow
    tags: Mapping[str, str] = {}

    def __enter__(self) -> NullTrial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """An exception goes on its way."""

    def expect(self, folder: Path, epochs: int, looks: Collection[str]) -> None:
        """Say what comes: a training in `folder`, and the metrics of each look at it.

        TrialError where the study's objective could never be among them.
        """

    def stay_pruned(self, folder: Path) -> None:
        """TrialPruned where this trial was pruned and killed before the study had heard of it."""

    def look(self, metrics: Mapping[str, float], epoch: int, step: int = 0) -> None:
        """Report what was found after `epoch` epochs; TrialPruned in all processes, or nothing."""

    def in_words(self, metrics: Mapping[str, float]) -> str:
        """How the trial ended, for the log."""
        return ""


class Trial(NullTrial):
    """One trial, as the sweeper describes it in EOMT_TRIAL."""

    is_of_study = True

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.url, self.study = put_together(str(told["storage"])), str(told["study"])
        self.id, self.number = int(told["id"]), int(told["number"])
        self.objective = [str(name) for name in told["objective"]]
        self.pruner: dict[str, Any] = dict(told.get("pruner") or {"name": "none"})
        self.run_name, self.parent_run_id = told.get("run_name"), told.get("parent_run_id")
        self.experiment = told.get("experiment")
        self.tags = {"optuna.study": self.study, "optuna.trial": str(self.number)}
        self.controller: dict[str, Any] = dict(told.get("controller") or {})
        # Optuna prunes by one number only.
        self.prunes = len(self.objective) == 1 and self.pruner["name"] != "none"
        self._folder, self._epochs = Path(), 0
        self._handle: Any = None  # optuna's Trial, once it has been reached
        self._line: Any = None  # the storage as the sign of life uses it
        self._is_over = threading.Event()
        self._was_ended = False  # by the study, which took this job for dead
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Trial:
        owner = this_process()
        is_ours = all(self.controller.get(key) == owner[key] for key in ("host", "pid"))
        if is_first_process() and not is_ours:
            # Once from here: optuna cannot be imported by two threads at the same time.
            self._say({"job_owner": owner, "alive": time.time()})
            self._heart = threading.Thread(target=self._keep_alive, name="alive", daemon=True)
            self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        if self._heart is not None:
            self._heart.join(timeout=5)  # it may be waiting for a lock; it is a daemon

    def expect(self, folder: Path, epochs: int, looks: Collection[str]) -> None:
        """As above; what ends with ap or fpr95 is found in looks only, and so is what prunes."""
        self._folder, self._epochs = folder, epochs
        for name in self.objective:
            if name not in looks and self._is_of_looks(name):
                raise TrialError(self._lacking(name, looks))

    def stay_pruned(self, folder: Path) -> None:
        """As above."""
        found = (folder / PRUNED).read_text() if (folder / PRUNED).is_file() else ""
        if self.prunes and (found := agreed(found)):
            facts = json.loads(found)
            self._prune(facts)

    def look(self, metrics: Mapping[str, float], epoch: int, step: int = 0) -> None:
        """As above. Of several objectives none is reported: Optuna keeps one number an epoch."""
        if agreed(self._was_ended):
            raise TrialLost(self._ended())
        if len(self.objective) != 1:
            return
        (name,) = self.objective
        if name not in metrics:
            if self._is_of_looks(name):
                raise TrialError(self._lacking(name, metrics))
            return
        value = float(metrics[name])
        is_pruned = is_first_process() and self._report(value, epoch)
        is_pruned, was_ended = agreed((is_pruned, self._was_ended))
        if was_ended:
            raise TrialLost(self._ended())
        if not is_pruned:
            return
        facts = {"epoch": epoch, "of": self._epochs, "step": step, "metric": name, "value": value}
        if is_first_process():
            write_text(self._folder / PRUNED, json.dumps(facts) + "\n")
        self._prune(facts)

    def _prune(self, facts: Mapping[str, Any]) -> NoReturn:
        from optuna import TrialPruned

        raise TrialPruned(
            f"pruned after epoch {facts['epoch']} of {facts['of']}: {facts['metric']} "
            f"{facts['value']:.3f} ({self.pruner['name']} pruner)"
        )

    def in_words(self, metrics: Mapping[str, float]) -> str:
        """ "trial 3 of eim: val/ap 0.412"."""
        found = [f"{n} {metrics[n]:.3f}" if n in metrics else f"no {n}" for n in self.objective]
        return f"trial {self.number} of {self.study}: {', '.join(found)}"

    def _is_of_looks(self, name: str) -> bool:
        """Whether looks must give it; other objectives may come with the final metrics."""
        anomalies = name.startswith("val/") and name.endswith(("/ap", "/fpr95"))
        return self.prunes or anomalies

    def _lacking(self, name: str, metrics: Collection[str]) -> str:
        there = ", ".join(sorted(metrics)) or "none"
        why = ", and its pruner needs it while it trains" if self.prunes else ""
        return (
            f"the objective of study {self.study} is {name}{why}; metrics of looks: {there}. "
            "Type trainer.validate_every=1 benchmark@tuning=pasted_validation (val/ap, val/fpr95, "
            "val/miou), or another hydra.sweeper.objective."
        )

    def _report(self, value: float, epoch: int) -> bool:
        """Tell the study; whether its pruner ends the trial."""
        try:
            trial = self._reached()
            # A trial that goes on after a kill comes by an epoch that has been judged already.
            if epoch in trial.storage.get_trial(self.id).intermediate_values:
                return False
            trial.report(value, epoch)
            # After the last epoch there is nothing left to save.
            return self.prunes and epoch != self._epochs and bool(trial.should_prune())
        except Exception as error:
            if self._is_lost(error):
                return False
            self._handle = None
            _log.warning(
                "The study has not got epoch %d of trial %d (%s: %s); the training goes on.",
                epoch, self.number, type(error).__name__, error,
            )  # fmt: skip
            return False

    def _reached(self) -> Any:
        """The trial as Optuna has it."""
        if self._handle is None:
            import optuna

            from eomt_exp.studies.storage import make_pruner, open_storage

            study = optuna.load_study(
                study_name=self.study,
                storage=open_storage(self.url),
                sampler=optuna.samplers.RandomSampler(),  # asks nothing and keeps nothing
                pruner=make_pruner(self.pruner, self._epochs or None),
            )
            self._handle = optuna.trial.Trial(study, self.id)
        return self._handle

    def _ended(self) -> str:
        return (
            f"trial {self.number} of {self.study} was taken for dead and given to another job, "
            f"which works in {self._folder} now; this one stops."
        )

    def _is_lost(self, error: Exception) -> bool:
        """Whether the study has ended this trial: then another works in this very folder."""
        self._was_ended |= type(error).__name__ == "UpdateFinishedTrialError"
        return self._was_ended

    def _keep_alive(self) -> None:
        """Go on saying that this process lives, until the job is over."""
        while not self._is_over.wait(BEAT_SECONDS):
            self._say({"alive": time.time()})

    def _say(self, news: Mapping[str, Any]) -> None:
        """Attributes of the trial, as far as the study can be reached."""
        try:
            from eomt_exp.studies.storage import open_storage

            self._line = self._line or open_storage(self.url)
            for name, value in news.items():
                self._line.set_trial_user_attr(self.id, name, value)
        except Exception as error:
            if self._is_lost(error):
                return
            self._line = None
            kind = type(error).__name__
            _log.warning(
                "No sign of trial %d reaches the study (%s: %s).", self.number, kind, error
            )


def current_trial() -> NullTrial:
    """The trial this job is, or a NullTrial outside a study; ValueError for what cannot be read."""
    text = os.environ.get(VARIABLE)
    if not text:
        return NullTrial()
    try:
        return Trial(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise TrialError(
            f"{VARIABLE} is set by the sweeper, and this is none of its values: {text[:200]} "
            f"({type(error).__name__}: {error}). Unset it to run outside a study."
        ) from error


def forget_pruning(folder: Path) -> bool:
    """Before a run goes on; whether it had been pruned."""
    was_pruned = (folder / PRUNED).is_file()
    (folder / PRUNED).unlink(missing_ok=True)
    return was_pruned
