"""What a job of the process launcher is: a folder, the words of its command, an environment.

Underlined, or Hydra would import it twice, and its classes with it.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from eomt_exp.paths import asset_dir

# A job's folder and mode are said by the launcher, its environment is set from its first line, and
# a study's address may hold a password, which any user could read in the list of processes.
_NOT_FOR_JOBS = (
    *("hydra.mode=", "hydra.run.", "hydra.sweep.", "hydra.job.env_set."),
    "hydra.sweeper.storage=",
)
_composing = threading.Lock()  # Hydra's state is for one thread at a time


class Job(NamedTuple):
    """A job before it starts; `answer` lacks only status and value."""

    number: int
    folder: Path
    words: list[str]
    environment: dict[str, str]
    answer: JobReturn


def compose(loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int) -> Job:
    """A job of the multirun `sweep`, as Hydra's own launcher makes it; for any thread.

    Raises what Hydra raises for words that do not compose.
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
            HydraConfig.instance().set_config(config)
            environment: Any = OmegaConf.to_container(config.hydra.job.env_set, resolve=True)
            answer = _answer(config)
        finally:
            HydraConfig.instance().cfg = before
    words = job_words([*sweep.hydra.overrides.hydra, *overrides], folder, number)
    return Job(number, folder, [*_flags(config), *words], environment, answer)


def command(words: Iterable[str]) -> list[str]:
    """A job's process: the words are those of `python -m eomt_exp`."""
    return [sys.executable, "-m", "eomt_exp.worker", *words]


def job_words(words: Iterable[str], folder: Path, number: int) -> list[str]:
    """The overrides of a job that runs alone, of those of its sweep.

    Those about sweeper and launcher stay: a file of sweeps/ may set keys that only these have.
    """
    kept = [word for word in words if not word.lstrip("+~").startswith(_NOT_FOR_JOBS)]
    place = QuotedString(str(folder), Quote.single).with_quotes()
    own = (f"run.dir={place}", "mode=RUN", f"job.num={number}", f"job.id={number}")
    return [*kept, *(f"hydra.{word}" for word in own)]


def _flags(config: DictConfig) -> list[str]:
    """--config-dir and its like, as far as they were typed."""
    flags = []
    for source in config.hydra.runtime.config_sources:
        path = source.path if source.schema == "file" else f"{source.schema}://{source.path}"
        if source.provider == "command-line":
            flags += ["--config-dir", path]
        elif source.provider == "main" and path != str(asset_dir("conf")):
            flags += ["--config-path", path]
    return [*flags, "--config-name", str(config.hydra.job.config_name)]


def _answer(config: DictConfig) -> JobReturn:
    """What a sweeper is told of a job beside its status and value."""
    task = copy.deepcopy(config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    hydra_cfg: Any = copy.deepcopy(HydraConfig.instance().cfg)
    words = list(config.hydra.overrides.task)
    return JobReturn(words, task, hydra_cfg, os.getcwd(), config.hydra.job.name)
