"""`python -m eomt_exp`: Hydra composes, the chosen task runs.

Lives apart from __main__.py because launchers pickle the task function by its module's name.
Nothing heavy is imported before a task really runs, so that --help and --cfg answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eomt_exp import job_result, run_folders, schema
from eomt_exp.paths import asset_dir

USER_ERROR = 2  # exit code for wrong input, as for wrong arguments
INTERRUPTED = 130  # as a shell says it of Ctrl-C
STOPPED = "stopped; the same command goes on from its last checkpoint (resume=false: afresh)."
STOPPED_STUDY = "stopped; the same command goes on."
# Failures whose text says what to do; looked up when one happens, so that nothing is imported.
EXPLAINED = (
    ("eomt_exp.contracts", "DataError"),
    ("eomt_exp.contracts", "CheckpointError"),
    ("eomt_exp.build", "ConfigError"),
    ("eomt_exp.engine.trainer", "TrainingError"),
    ("eomt_exp.tracking.store", "TrackingError"),
)

_stop_signals: list[int] = []  # that came since this command began
_chosen: dict[tuple[str, str], str] = {}


class UsageError(ValueError):
    """What was typed cannot be done; the message says what can."""


def register() -> None:
    """The schema, the options of sweep= and the folder of this command; safe to call twice."""
    _chosen.clear()
    schema.register()
    _register_sweeps()


def run_task(cfg: DictConfig) -> Any:
    """Run `task`; what a user got wrong is one line and exit code 2, not a traceback.

    A pruned trial is a clean end. EOMT_RESULT, a path, is told how it ended in any case.
    """
    if HydraConfig.get().mode != RunMode.RUN:  # the sweep wants the exception itself
        return _run(cfg)
    try:
        value = _run(cfg)
    except BaseException as error:
        status = status_of(error)
        if isinstance(error, Exception):  # a stopped job is one that died: it may be tried again
            _tell(status, error=error)
        if status == job_result.PRUNED:
            return None
        if was_told_to_stop():
            raise KeyboardInterrupt from error
        # Whoever suspects the code wants the exception itself.
        if not isinstance(error, explained_errors()) or os.environ.get("EOMT_TRACEBACK"):
            raise
        if _rank() == 0:
            _leave_no_empty_folder(Path(HydraConfig.get().runtime.output_dir))
        print(f"error: {_first_hand(error)}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from error
    _tell(job_result.COMPLETED, value)
    return value


def main() -> None:
    """Entry point of `python -m eomt_exp` and of the eomt-exp script."""
    _stop_signals.clear()
    # SIGTERM ends like Ctrl-C: the run is closed as KILLED instead of staying RUNNING for ever.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    warnings.filterwarnings("ignore", message=".*provided to the Hydra.*")
    register()
    _prepare_ranks()
    application = hydra.main(
        version_base="1.3", config_path=str(asset_dir("conf")), config_name="config"
    )(run_task)
    try:
        application()
    except KeyboardInterrupt:
        print(_stopped(), file=sys.stderr)
        sys.exit(INTERRUPTED)


def _register_sweeps() -> None:
    """sweeps/*.yaml as options of the config group `sweep`, each about the whole configuration."""
    for file in sorted(asset_dir("sweeps").glob("[!.]*.yaml")):
        try:
            node = OmegaConf.load(file)
        except (yaml.YAMLError, OSError, UnicodeError) as error:
            # Somebody may be writing it while the jobs of another study start.
            if any(word.endswith(f"sweep={file.stem}") for word in sys.argv[1:]):
                sys.exit(f"error: {file} is no YAML: {error}")
            continue
        ConfigStore.instance().store(
            group="sweep", name=file.stem, node=node, package="_global_", provider=str(file)
        )


def _run(cfg: DictConfig) -> Any:
    _check_missing(cfg)
    return _task(str(cfg.task._target_))(cfg)


def was_told_to_stop() -> bool:
    """Whether Ctrl-C or SIGTERM came, whatever error has reached whoever asks.

    They often go to loader workers too, whose death may be heard of last and hide the interrupt.
    """
    return bool(_stop_signals)


def _stop(number: int, frame: Any) -> None:
    _stop_signals.append(number)
    raise KeyboardInterrupt


def status_of(error: BaseException) -> str:
    """How a job ended that raised this: pruned, out_of_memory, refused or failed."""
    # By name: neither torch nor optuna need be loaded, and allocators raise more than one class.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "TrialPruned" in names:
        return job_result.PRUNED
    if names & {"OutOfMemoryError", "MemoryError"} or "can't allocate memory" in str(error):
        return job_result.OUT_OF_MEMORY
    if "TrainingError" in names:  # its values were tried, and another trial's may do
        return job_result.FAILED
    return job_result.REFUSED if isinstance(error, explained_errors()) else job_result.FAILED


def _tell(status: str, value: Any = None, error: BaseException | None = None) -> None:
    """Write the result that whoever started this job waits for.

    A failure is told by the rank that has it, and only the first: the others fail because of it.
    """
    path = os.environ.get(job_result.RESULT_ENV)
    if not path:
        return
    if status in (job_result.COMPLETED, job_result.PRUNED):
        if _rank() == 0:
            job_result.write_result(path, status, value)
    elif not Path(path).exists():
        text = _first_hand(error) if error else ""
        job_result.write_result(path, status, error=text, kind=type(error).__name__)


def _task(target: str) -> Callable[[DictConfig], Any]:
    module, _, function = target.rpartition(".")
    if not module.startswith("eomt_exp.tasks."):
        raise UsageError(f"task._target_ must be in eomt_exp.tasks, got {target!r}.")
    task = getattr(import_module(module), function, None)
    if task is None:
        raise UsageError(f"task._target_: {module} has no {function!r}.")
    return task


def _run_folder(outputs: str, name: str, resume: bool) -> str:
    """A command has one folder, however often it is asked for, and so have all its processes."""
    key = (outputs, name)
    if key not in _chosen:
        box = [run_folders.choose(outputs, name, resume)]
        if _world() > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(box)
        _chosen[key] = box[0]
    return _chosen[key]


def explained_errors() -> tuple[type[Exception], ...]:
    """ValueError is what parts raise for a value someone chose; EOMT_TRACEBACK=1 shows where."""
    loaded = [(sys.modules.get(module), name) for module, name in EXPLAINED]
    known = [getattr(module, name) for module, name in loaded if module is not None]
    return (OmegaConfBaseException, ValueError, *known)


def _first_hand(error: BaseException) -> str:
    """What a part said, without the traceback that a loader's worker wraps around it."""
    return str(error).rsplit("DataError: ", 1)[-1].strip()


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


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _is_sweep() -> bool:
    """Whether several jobs were asked for; hydra.mode=RUN makes one of a study's words, a job."""
    words = [word.lstrip("+") for word in sys.argv[1:]]
    if "-m" in words or "--multirun" in words:
        return True
    modes = [word for word in words if word.startswith("hydra.mode=")]
    if modes:
        return modes[-1] == "hydra.mode=MULTIRUN"
    return any(word.startswith(("sweep=", "hydra/sweeper=")) for word in words)


def _stopped() -> str:
    """What to say of a command that was stopped; only a study knows which of its jobs are done."""
    if not _is_sweep():
        return STOPPED
    return STOPPED_STUDY if "eomt_exp.studies" in sys.modules else "stopped."


def _prepare_ranks() -> None:
    """Under torchrun or accelerate launch: the processes meet, and only the first keeps a log."""
    if _world() <= 1:
        return
    if _is_sweep():
        sys.exit("error: a sweep starts its own processes; run it without torchrun or accelerate.")
    import torch
    from accelerate import PartialState

    # cpu=True, or a machine without a GPU silently becomes many worlds of one process.
    PartialState(cpu=not torch.cuda.is_available())
    if _rank():
        sys.argv += run_folders.RANK_WORDS


_RESOLVERS: dict[str, Callable[..., Any]] = {
    "run_folder": _run_folder,
    "absolute": lambda path: str(Path(path).resolve()),
    "same": lambda left, right: left == right,
    "times": lambda value, factor: float(f"{value * factor:.4g}"),
}
# At import: the workers of joblib, submitit and Ray import this module and never call main().
for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)
