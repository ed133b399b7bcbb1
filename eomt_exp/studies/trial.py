"""Reports a training to the Optuna study it is a trial of, and ends it when it is pruned.

The sweeper says in the environment (EOMT_TRIAL) which trial a job is. The first process of a job
alone speaks to the study, and all of them end together. A study that cannot be reached costs
warnings and the pruning, never the training.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import optuna

from eomt_exp.build import build
from eomt_exp.contracts import TrialPruned
from eomt_exp.engine.device import agreed, is_first_process
from eomt_exp.files import write_text
from eomt_exp.jobs import STORAGE_ENV, TRIAL_ENV
from eomt_exp.studies.storage import open_storage
from eomt_exp.tracking.provenance import without_passwords as hidden

PRUNED = "pruned.json"  # in the folder of a run that a pruner ended; gone once it goes on
_log = logging.getLogger(__name__)


class Trial(NamedTuple):
    """A job knows from the sweeper which trial it is."""

    storage: str  # without its password
    study: str
    id: int
    number: int
    objective: list[str]  # metrics
    pruner: dict[str, Any]  # a node with a _target_
    parent_run_id: str | None = None  # of MLflow
    run_name: str | None = None  # of its MLflow run

    def stay_pruned(self, folder: Path) -> None:
        """Raise TrialPruned if this trial was pruned and killed before the study knew of it."""
        path = folder / PRUNED
        found = agreed(path.read_text() if path.is_file() else "")
        if found and "NopPruner" not in self.pruner["_target_"]:
            _prune(json.loads(found))

    def report(
        self, metrics: Mapping[str, float], folder: Path, epoch: int, epochs: int, step: int
    ) -> None:
        """Report the validation after `epoch` of `epochs`; raise TrialPruned in all processes."""
        name, *others = self.objective
        if others or name not in metrics:  # Optuna keeps, and prunes by, one number an epoch
            return
        value = float(metrics[name])
        # After the last epoch there is nothing left to save.
        if not agreed(is_first_process() and self._is_pruned(value, epoch) and epoch != epochs):
            return
        facts = {"epoch": epoch, "of": epochs, "step": step, "metric": name, "value": value}
        if is_first_process():
            write_text(folder / PRUNED, json.dumps(facts) + "\n")
        _prune(facts)

    def _is_pruned(self, value: float, epoch: int) -> bool:
        """Report to the study; return whether its pruner ends the trial."""
        whole = os.environ.get(STORAGE_ENV, "")  # with its password
        try:
            study = optuna.load_study(
                study_name=self.study,
                storage=open_storage(whole if hidden(whole) == self.storage else self.storage),
                sampler=optuna.samplers.RandomSampler(),  # asks nothing and keeps nothing
                pruner=build(self.pruner, "hydra.sweeper.pruner"),
            )
            trial = optuna.trial.Trial(study, self.id)
            # A trial that goes on after a kill comes by an epoch that has been judged already.
            if epoch in trial.storage.get_trial(self.id).intermediate_values:
                return False
            trial.report(value, epoch)
            return bool(trial.should_prune())
        except Exception as error:
            _log.warning(
                "The study has not got epoch %d of trial %d (%s: %s); the training goes on.",
                epoch, self.number, type(error).__name__, error,
            )  # fmt: skip
            return False


def current_trial() -> Trial | None:
    """Return the trial this job is, None outside a study."""
    text = os.environ.get(TRIAL_ENV)
    return Trial(**json.loads(text)) if text else None


def forget_pruning(folder: Path) -> bool:
    """Remove the note of a pruning before the run goes on; return whether there was one."""
    was_pruned = (folder / PRUNED).is_file()
    (folder / PRUNED).unlink(missing_ok=True)
    return was_pruned


def _prune(facts: Mapping[str, Any]) -> NoReturn:
    raise TrialPruned(
        f"pruned after epoch {facts['epoch']} of {facts['of']}: {facts['metric']} "
        f"{facts['value']:.3f}"
    )
