"""A multirun as an Optuna study: from words to a finished, recorded study."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from eomt_exp.cli import USER_ERROR, explained_errors
from eomt_exp.studies.jobs import job_words, make_launcher
from eomt_exp.studies.loop import Loop
from eomt_exp.studies.plan import Plan
from eomt_exp.studies.record import Record


def sweep(
    config: DictConfig, context: HydraContext, task: TaskFunction, words: Sequence[str]
) -> None:
    """Run the study of `config.hydra.sweeper`, or go on with it, and show what it found.

    What a user got wrong is one line and exit code 2, as it is for single runs.
    """
    try:
        plan = Plan(config, context, words)
        launcher, at_once = make_launcher(plan, context, task)
        run(plan, launcher, at_once)
    except Exception as error:
        if not isinstance(error, explained_errors()) or os.environ.get("EOMT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from error


def run(plan: Plan, launcher: Any, at_once: int) -> None:
    """All trials of a plan, then tables, pictures, the winner's file and MLflow's last word."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with plan.ledger() as ledger, Record(plan, ledger, at_once) as record:
        loop = Loop(
            ledger=ledger,
            launcher=launcher,
            at_once=at_once,
            overrides=lambda ticket: job_words(plan, ticket, record.parent_run_id),
            objective=list(plan.settings.directions),
            constraints=plan.constraints,
            ended=record.ended,
        )
        loop.run()
        record.finish()
