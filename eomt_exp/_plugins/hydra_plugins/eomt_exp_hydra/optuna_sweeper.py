"""`hydra/sweeper=optuna` is what Hydra finds of the studies.

Hydra imports this module on every start, so all that is heavy waits in eomt_exp.studies.
"""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Runs one Optuna study over the jobs of a multirun."""

    config: DictConfig
    hydra_context: HydraContext

    def __init__(self, **settings: Any) -> None:
        """Leave the settings to `setup`, as ProcessLauncher does."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study to its end, or go on with it; `arguments` are the task's overrides."""
        from eomt_exp.cli import user_errors_in_one_line
        from eomt_exp.studies.sweep import sweep

        with user_errors_in_one_line():
            sweep(self.config, self.hydra_context, self.task_function, arguments)
