"""`hydra/sweeper=optuna`: the door through which Hydra finds our studies.

Hydra imports this module on every start, so the substance waits in eomt_exp.studies.
"""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Runs one Optuna study over the jobs of a multirun."""

    def __init__(self, **settings: Any) -> None:
        # Read again in `setup`: here, interpolations have lost the root they point to.
        del settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what `sweep` needs."""
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config  # with its root: interpolations in hydra.sweeper can be resolved

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study to its end, or go on with it; `arguments` are the task's overrides."""
        from eomt_exp.studies.sweep import sweep

        assert self.config is not None  # Hydra has called setup()
        assert self.hydra_context is not None
        return sweep(self.config, self.hydra_context, self.task_function, arguments)
