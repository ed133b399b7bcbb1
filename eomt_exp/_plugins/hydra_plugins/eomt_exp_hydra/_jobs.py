"""Makes jobs of the process launcher: a folder, a command, an environment.

Underlined, or Hydra would import it twice, and its classes with it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from eomt_exp.config_keys import NOT_FOR_JOBS

_composing = threading.Lock()  # Hydra's state is for one thread at a time


class Job(NamedTuple):
    """A job has not started yet."""

    number: int
    folder: Path
    overrides: list[str]  # of its task
    command: list[str]
    environment: dict[str, str]


def compose(loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int) -> Job:
    """Make a job of the multirun `sweep`, as Hydra's own launcher makes it; for any thread.

    Raises what Hydra raises for overrides that do not compose.
    """
    with _composing:
        before = HydraConfig.instance().cfg
        config = loader.load_sweep_config(sweep, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        try:
            HydraConfig.instance().set_config(config)  # for ${hydra:…} in the folder's name
            folder = Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir)).absolute()
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = str(folder)
            environment: Any = OmegaConf.to_container(config.hydra.job.env_set, resolve=True)
        finally:
            HydraConfig.instance().cfg = before
    command = [sys.executable, "-m", "eomt_exp.worker"]
    # The options that name where the configuration comes from.
    flags = {"main": "--config-path", "command-line": "--config-dir"}
    for source in config.hydra.runtime.config_sources:
        if source.provider in flags:
            command += [flags[source.provider], source.path]
    command += ["--config-name", str(config.hydra.job.config_name)]
    command += job_overrides([*sweep.hydra.overrides.hydra, *overrides], folder, number)
    return Job(number, folder, list(config.hydra.overrides.task), command, environment)


def job_overrides(overrides: Iterable[str], folder: Path, number: int) -> list[str]:
    """Return the overrides of a job that runs alone, of those of its sweep.

    Those about sweeper and launcher stay: a file of sweeps/ may set keys that only these have.
    """
    kept = [one for one in overrides if not one.lstrip("+~").startswith(NOT_FOR_JOBS)]
    path = QuotedString(str(folder), Quote.single).with_quotes()
    own = (f"run.dir={path}", "mode=RUN", f"job.num={number}", f"job.id={number}")
    return [*kept, *(f"hydra.{one}" for one in own)]
