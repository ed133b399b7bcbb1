"""The jobs of a study: who launches them, how many at once, and the words each is given."""

from __future__ import annotations

import json
from typing import Any

from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import open_dict, read_write

from eomt_exp.processes import this_process
from eomt_exp.studies.ledger import Ticket
from eomt_exp.studies.plan import Plan, quoted
from eomt_exp.studies.settings import StudyError
from eomt_exp.studies.storage import kept_apart

_NAME_LENGTH = 120  # characters of a trial's name in MLflow


def make_launcher(plan: Plan, context: HydraContext, task: TaskFunction) -> tuple[Any, int]:
    """The launcher of the configuration, and how many trials it is given at once."""
    config = plan.config
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(plan.folder)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=task, config=config
    )
    return launcher, _at_once(plan, launcher)


def _at_once(plan: Plan, launcher: Any) -> int:
    wanted, name = plan.settings.n_jobs, type(launcher).__name__
    if name == "BasicLauncher":
        if wanted not in (None, 1):
            raise StudyError(
                f"hydra.sweeper.n_jobs={wanted} needs processes: type hydra/launcher=process "
                f"hydra.launcher.slots={wanted}; the launcher inside this process runs one job."
            )
        return 1
    slots = getattr(launcher, "slots", None)
    if slots is not None:
        if wanted is not None and wanted > slots:
            raise StudyError(
                f"hydra.sweeper.n_jobs={wanted} is more than the launcher's {slots} slots: type "
                f"hydra.launcher.slots={wanted}."
            )
        return int(wanted or slots)
    if wanted is None:
        raise StudyError(
            f"{name} does not say how many jobs it runs at once: type hydra.sweeper.n_jobs=2."
        )
    return int(wanted)


def job_words(plan: Plan, ticket: Ticket, parent: str | None) -> list[str]:
    """A trial's overrides; those of hydra tie it to the study."""
    values = plan.space.words(ticket.values)
    told = {
        "storage": kept_apart(plan.storage),
        "study": plan.settings.study,
        "id": ticket.trial_id,
        "number": ticket.number,
        "objective": list(plan.settings.directions),
        "pruner": plan.settings.pruner,
        "parent_run_id": parent,
        "run_name": run_name(ticket.number, ticket.values),
        "experiment": str(plan.cfg.tracking.experiment),
        "controller": this_process(),
    }
    return [
        *plan.fixed,
        *values,
        f"hydra.sweep.dir={quoted(str(plan.folder))}",
        f"hydra.sweep.subdir={quoted(ticket.folder)}",
        f"++hydra.job.env_set.EOMT_TRIAL={quoted(json.dumps(told))}",
    ]


def run_name(number: int, values: dict[str, Any]) -> str:
    """ "trial-003 lr=0.001 weight=0.3": to be told apart on MLflow's pages."""
    pairs = ((key.rpartition(".")[2], value) for key, value in values.items())
    short = (f"{key}={_short(value)}" for key, value in pairs)
    return " ".join((f"trial-{number:03d}", *short))[:_NAME_LENGTH]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
