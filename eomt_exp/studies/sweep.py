"""Runs a multirun as an Optuna study: claims trials, launches their jobs, stores their ends."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from eomt_exp import jobs
from eomt_exp.contracts import UserError
from eomt_exp.signals import stop_signals
from eomt_exp.studies.ledger import ClaimedTrial, Ledger
from eomt_exp.studies.plan import Plan
from eomt_exp.studies.record import Record, parent_run
from eomt_exp.studies.rules import quoted
from eomt_exp.studies.storage import hide_password
from eomt_exp.studies.table import shown
from eomt_exp.studies.trial import Trial

WAIT_SECONDS = 1.0  # for jobs to end, at a time, so that Ctrl-C is heard
_log = logging.getLogger(__name__)
_SHOWN = 600  # characters of an error that are kept with its trial
_WORTH_A_RETRY = (jobs.CRASHED, jobs.OUT_OF_MEMORY)  # a wrong value fails for ever


def sweep(
    config: DictConfig, context: HydraContext, task: TaskFunction, overrides: Sequence[str]
) -> None:
    """Run the study of `config.hydra.sweeper`, or go on with it, and show what it found."""
    plan = Plan(config, context.config_loader, overrides)
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(plan.folder)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=task, config=config
    )
    at_once = num_at_once(plan.settings.n_jobs, launcher)
    with (
        plan.ledger() as ledger,
        parent_run(plan.cfg.tracking, plan.folder, ledger.open_elsewhere) as tracker,
    ):
        record = Record(plan, ledger, tracker, at_once)
        record.start()
        try:
            Loop(plan, ledger, record, launcher, at_once).run()
        except Exception:
            record.table.finish(ledger.rows(), ledger.best())
            raise
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("stopped; the same command goes on.") from stop
        record.finish()


def num_at_once(wanted: int | None, launcher: Any) -> int:
    """Return how many trials the launcher is given at once. Raises UserError."""
    name = type(launcher).__name__
    slots = 1 if name == "BasicLauncher" else getattr(launcher, "slots", None)
    if not slots and not wanted:
        raise UserError(
            f"{name} does not say how many jobs it runs at once: type hydra.sweeper.n_jobs=2."
        )
    if slots and wanted and wanted > slots:
        raise UserError(
            f"hydra.sweeper.n_jobs={wanted} is more than the {slots} of {name}: type "
            f"hydra/launcher=process hydra.launcher.slots={wanted}."
        )
    return wanted or slots or 1


@dataclass
class Loop:
    """Runs trials until the ledger has none left."""

    plan: Plan
    ledger: Ledger
    record: Record
    launcher: Any
    at_once: int

    def run(self) -> None:
        """Run to the end of the budget; KeyboardInterrupt ends the jobs that run."""
        logging.getLogger("hydra").setLevel(logging.WARNING)  # it would repeat all overrides
        if getattr(self.launcher, "is_thread_safe", False):
            self._slot_by_slot()
            return
        while batch := self._claim(self.at_once):
            for claimed, job in zip(batch, self._launch(batch), strict=True):
                self._store(claimed, job)
                del job  # and with it the model in the frames of an exception

    def _slot_by_slot(self) -> None:
        """Give each free slot the next trial, whatever the others are at."""
        running: dict[Future[Sequence[JobReturn]], ClaimedTrial] = {}
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                while True:
                    for claimed in self._claim(self.at_once - len(running)):
                        running[pool.submit(self._launch, [claimed])] = claimed
                    if not running:
                        return
                    done, _ = wait(running, WAIT_SECONDS, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._store(running.pop(future), future.result()[0])
            except BaseException:
                self.launcher.stop()  # or the pool would wait for its jobs to come to their end
                raise

    def _claim(self, free: int) -> list[ClaimedTrial]:
        batch: list[ClaimedTrial] = []
        while len(batch) < free and (claimed := self.ledger.claim()) is not None:
            batch.append(claimed)
        return batch

    def _launch(self, batch: Sequence[ClaimedTrial]) -> Sequence[JobReturn]:
        """Run a batch of jobs; a launcher that breaks, as with its node, breaks them all."""
        parent = self.record.tracker.run_id
        overrides = [job_overrides(self.plan, claimed, parent) for claimed in batch]
        try:
            return self.launcher.launch(overrides, initial_job_idx=batch[0].number)
        except Exception as error:
            is_config = isinstance(error, (HydraException, OmegaConfBaseException))
            text = f"{type(error).__name__}: {error}"
            _log.warning("the launcher failed: %s", text)
            lost = JobReturn(status=JobStatus.FAILED)
            lost.return_value = jobs.JobFailed(text, jobs.REFUSED if is_config else jobs.CRASHED)
            return [lost] * len(batch)

    def _store(self, claimed: ClaimedTrial, job: JobReturn) -> None:
        """Tell the ledger how a trial ended."""
        if stop_signals:  # the job's own end then says nothing of it
            raise KeyboardInterrupt
        result = job._return_value
        if isinstance(result, BaseException):
            # Its frames hold the model, which must be gone before the next one comes.
            result.__traceback__ = result.__context__ = result.__cause__ = None
        if job.status is JobStatus.COMPLETED:
            self._complete(claimed, result)
        elif (status := jobs.status_of(result)) == jobs.PRUNED:
            self.ledger.prune(claimed)
        elif status == jobs.REFUSED and not self._has_results():
            # The next ones would fare the same, and that can be known now.
            self.ledger.refuse(claimed, _shortened(str(result)))
            raise UserError(f"the study ends with its first trial: {result}")
        else:
            reason = _shortened(f"{type(result).__name__}: {result}")
            self.ledger.fail(claimed, reason, retry=status in _WORTH_A_RETRY)
        self.record.trial_ended(claimed)

    def _has_results(self) -> bool:
        return any(row.state in ("complete", "pruned") for row in self.ledger.rows())

    def _complete(self, claimed: ClaimedTrial, result: Any) -> None:
        """Store the metrics that a job returned; one that is missing counts as NaN."""
        found = {str(k): float(v) for k, v in result.items()} if isinstance(result, dict) else {}
        values = [found.get(name, math.nan) for name in self.ledger.objective]
        bounds = self.plan.constraints.items()
        limits = {name: bound.violation(found.get(name, math.nan)) for name, bound in bounds}
        # JSON has no NaN, and a storage may insist on that.
        finite = {k: v for k, v in found.items() if math.isfinite(v)}
        self.ledger.complete(claimed, values, limits, {"metrics": finite})


def job_overrides(plan: Plan, claimed: ClaimedTrial, parent_run_id: str | None) -> list[str]:
    """Return the overrides of a trial's job; those of hydra tie it to the study."""
    short = (f"{key.rpartition('.')[2]}={shown(v)}" for key, v in claimed.values.items())
    trial = Trial(
        storage=hide_password(plan.url),
        study=plan.settings.study,
        id=claimed.trial._trial_id,
        number=claimed.number,
        objective=list(plan.settings.directions),
        pruner=plan.settings.pruner,
        parent_run_id=parent_run_id,
        # As "trial-003 lr=0.001 weight=0.3", distinct on MLflow's pages.
        run_name=" ".join((f"trial-{claimed.number:03d}", *short))[:120],
    )
    return [
        *plan.fixed,
        *plan.space.overrides(claimed.values),
        f"hydra.sweep.dir={quoted(str(plan.folder))}",
        f"hydra.sweep.subdir={quoted(claimed.folder)}",
        f"++hydra.job.env_set.{jobs.TRIAL_ENV}={quoted(json.dumps(trial._asdict()))}",
    ]


def _shortened(text: str) -> str:
    """Return the beginning of a text, which says what happened, and its end, which says why."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 3]} … {text[-_SHOWN * 2 // 3 :]}"
