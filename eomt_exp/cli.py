"""`python -m eomt_exp`: Hydra composes, the chosen task runs.

Lives apart from __main__.py because launchers pickle the task function by its module's name.
Nothing heavy is imported before a task really runs, so that --help and --cfg answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eomt_exp import run_folders, schema
from eomt_exp.paths import asset_dir

USER_ERROR = 2  # exit code for wrong input, as for wrong arguments


def register() -> None:
    """Resolvers of conf/ and the schema; safe to call twice."""
    resolvers = {
        "run_folder": run_folders.choose,
        "absolute": lambda path: str(Path(path).resolve()),
        "same": lambda left, right: left == right,
    }
    for name, function in resolvers.items():
        # Cached: within one process a run has one folder, however often it is asked for.
        OmegaConf.register_new_resolver(
            name, function, replace=True, use_cache=name == "run_folder"
        )
    schema.register()


def run_task(cfg: DictConfig) -> float | None:
    """Run `task`; what a user got wrong is one line and exit code 2, not a traceback."""
    is_single = HydraConfig.get().mode == RunMode.RUN
    try:
        _check_missing(cfg)
        module, _, function = str(cfg.task._target_).rpartition(".")
        if not module.startswith("eomt_exp.tasks."):
            raise ValueError(f"task._target_ must be in eomt_exp.tasks, got {cfg.task._target_!r}.")
        return getattr(import_module(module), function)(cfg)
    except _user_errors() as error:
        if not is_single:  # a sweep wants the exception itself
            raise
        if os.environ.get("EOMT_TRACEBACK"):  # for whoever suspects the code and not the input
            raise
        _leave_no_empty_folder(Path(HydraConfig.get().runtime.output_dir))
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from error


def main() -> None:
    """Entry point of `python -m eomt_exp` and of the eomt-exp script."""
    # SIGTERM ends like Ctrl-C: the run is closed as KILLED instead of staying RUNNING for ever.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", message=".*provided to the Hydra.*")
    register()
    _prepare_ranks()
    application = hydra.main(
        version_base="1.3", config_path=str(asset_dir("conf")), config_name="config"
    )(run_task)
    try:
        application()
    except KeyboardInterrupt:
        sys.exit(_interrupted())


def _interrupted() -> int:
    print(
        "stopped; the same command goes on from its last checkpoint (resume=false: afresh).",
        file=sys.stderr,
    )
    return 130  # as a shell says it of Ctrl-C


def _user_errors() -> tuple[type[Exception], ...]:
    """Only imported once a task failed or ended, when torch is loaded anyway."""
    contracts = sys.modules.get("eomt_exp.contracts")
    build = sys.modules.get("eomt_exp.build")
    known: list[type[Exception]] = [UsageError, OmegaConfBaseException]
    if contracts is not None:
        known += [contracts.DataError, contracts.CheckpointError]
    if build is not None:
        known += [build.ConfigError]
    return (*known, ValueError)


class UsageError(ValueError):
    """What was typed cannot be done; the message says what can."""


def _check_missing(cfg: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        words = " ".join(f"{key}=…" for key in missing)
        raise UsageError(f"no value for {', '.join(missing)}; add {words}")


def _leave_no_empty_folder(run_dir: Path) -> None:
    """Remove what Hydra made for a run that never began: its .hydra folder and empty log."""
    ours = {".hydra", f"{HydraConfig.get().job.name}.log"}
    if not run_dir.is_dir() or any(entry.name not in ours for entry in run_dir.iterdir()):
        return
    for path in sorted(run_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run_dir.rmdir()


def _prepare_ranks() -> None:
    """Under torchrun or accelerate launch: one run folder and one log for all processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return
    if any(word in ("-m", "--multirun") for word in sys.argv[1:]):
        sys.exit("error: a sweep starts its own processes; run it without torchrun or accelerate.")
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # cpu=True, or a machine without a GPU silently becomes many worlds of one process.
    PartialState(cpu=not torch.cuda.is_available())
    stamp = [run_folders.new_stamp()]
    broadcast_object_list(stamp)
    os.environ[run_folders.COMMAND_ENV] = stamp[0]
    if int(os.environ["RANK"]):
        sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=none"]
