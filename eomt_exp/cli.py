"""`python -m eomt_exp`: Hydra composes, the chosen task runs.

Lives apart from __main__.py because launchers pickle the task function by its module's name.
Nothing heavy is imported before a task really runs, so that --help and --cfg answer at once.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eomt_exp import jobs, schema
from eomt_exp.config_keys import RANK_OVERRIDES
from eomt_exp.files import LOCK
from eomt_exp.machine_faults import explained, outlive_readers
from eomt_exp.paths import absolute, asset_dir, at_home, database_address
from eomt_exp.run_folders import choose, chosen
from eomt_exp.signals import stop_signals

USER_ERROR = 2  # exit code for wrong input, as for wrong arguments
MACHINE_FAULT = 1  # as for a traceback, but without one
TRACEBACK = "EOMT_TRACEBACK"  # of the environment: set, a wrong input is a traceback too
STOPPED = "stopped; the same command goes on from its last checkpoint (resume=false: afresh)."

# Hydra copies its repository of configurations for every group it lists and every configuration it
# composes, and this store with it. It is a singleton that copies what it hands out, so the copies
# are of no use; without them --help takes a fifth of the time.
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def register() -> None:
    """Make the schema and the options of sweep= known to Hydra; safe to call twice.

    The options are sweeps/*.yaml, each about the whole configuration.
    """
    chosen.clear()
    # conf/config.yaml starts its defaults with this name.
    ConfigStore.instance().store("schema", schema.Config, provider="eomt_exp/schema.py")
    for file in sorted(asset_dir("sweeps").glob("[!.]*.yaml")):
        try:
            node = OmegaConf.load(file)
        except (yaml.YAMLError, OSError, UnicodeError) as error:
            # Somebody may be writing it while the jobs of another study start.
            if any(one.endswith(f"sweep={file.stem}") for one in sys.argv[1:]):
                schema.refuse(f"{file} is no YAML: {error}")
            continue
        ConfigStore.instance().store(
            group="sweep", name=file.stem, node=node, package="_global_", provider=str(file)
        )


def run_task(cfg: DictConfig) -> Any:
    """Run `task`; a UserError is one line and exit code 2, anything else a traceback.

    A pruned trial is a clean end. EOMT_RESULT, a path, gets how it ended in any case.
    """
    if HydraConfig.get().mode != RunMode.RUN:
        return _run_in_sweep(cfg)
    with user_errors_in_one_line():
        try:
            value = _run(cfg)
        except BaseException as error:
            status = jobs.status_of(error)
            # A stopped job is one that died: it may be tried again.
            if isinstance(error, Exception):
                kind = type(error).__name__
                _write_result(jobs.JobResult(status, None, _message(error), kind))
            if status == jobs.PRUNED:
                return None
            if stop_signals:
                raise KeyboardInterrupt from error
            if status == jobs.REFUSED and _rank() == 0:
                _leave_no_empty_folder(Path(HydraConfig.get().runtime.output_dir))
            raise
    _write_result(jobs.JobResult(jobs.COMPLETED, value))
    return value


def main() -> None:
    """Run `python -m eomt_exp`, or the eomt-exp script."""
    stop_signals.clear()
    outlive_readers()
    jobs.refused.clear()
    # SIGTERM ends like Ctrl-C: the run is closed as KILLED instead of staying RUNNING for ever.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_signals.handle)
    warnings.filterwarnings("ignore", message=".*provided to the Hydra.*")
    # Hydra makes the folders of its own keys before the task reads a configuration.
    words = (one.partition("=") for one in sys.argv)
    sys.argv = [k + m + (at_home(v) if k.startswith("hydra.") else v) for k, m, v in words]
    with user_errors_in_one_line():
        register()
        _prepare_ranks()
    application = hydra.main(
        version_base="1.3", config_path=str(asset_dir("conf")), config_name="config"
    )(run_task)
    try:
        application()
    except KeyboardInterrupt as stop:  # of the jobs of a sweep, only a study knows which are done
        print(stop if stop.args else "stopped." if _is_sweep() else STOPPED, file=sys.stderr)
        sys.exit(stop_signals.exit_code)
    _part_ranks()
    if jobs.refused:
        sys.exit(USER_ERROR)


@contextmanager
def user_errors_in_one_line() -> Iterator[None]:
    """Turn a UserError into one line on stderr and exit code 2; EOMT_TRACEBACK=1 shows where it is.

    What is the machine's fault is one line too, with exit code 1. The process that fails prints it;
    the others of its group fail because of that one.
    """
    try:
        yield
    except Exception as error:
        from eomt_exp.contracts import UserError

        is_users = isinstance(error, UserError)
        text = _message(error) if is_users else explained(error)
        if text is None or os.environ.get(TRACEBACK):
            raise
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(USER_ERROR if is_users else MACHINE_FAULT) from error


def _run(cfg: DictConfig) -> Any:
    check_values(cfg)
    _put_at_home(cfg)
    module, _, function = str(cfg.task._target_).rpartition(".")
    if not module.startswith("eomt_exp.tasks."):
        schema.refuse(f"task._target_ must be in eomt_exp.tasks, got {cfg.task._target_!r}.")
    if cfg.data.train is None and module.endswith((".train", ".preview")):
        schema.refuse("data.train is null: there is nothing to learn from; type data=<a set>.")
    task = getattr(import_module(module), function, None)
    if task is None:
        schema.refuse(f"task._target_: {module} has no {function!r}.")
    return task(cfg)


def _run_in_sweep(cfg: DictConfig) -> Any:
    """Run a job in the sweep's own process; a sweep wants the exception itself."""
    try:
        return _run(cfg)
    except Exception as error:
        hydra, status = HydraConfig.get(), jobs.status_of(error)
        failed = jobs.JobFailed(f"job {hydra.job.num} {status}: {_message(error)}", status)
        # With other launchers, nobody reads the exit code of a job's process.
        is_here = str(hydra.launcher._target_).endswith(".BasicLauncher")
        if not is_here or os.environ.get(TRACEBACK) or not jobs.is_told(hydra, failed):
            raise
        _leave_no_empty_folder(Path(hydra.runtime.output_dir))
        return None


def _write_result(result: jobs.JobResult) -> None:
    """Write the result that whoever started this job waits for.

    Rank 0 does, but a failure the first rank that has it: the others fail because of it.
    """
    path = os.environ.get(jobs.RESULT_ENV)
    is_failure = result.status not in (jobs.COMPLETED, jobs.PRUNED)
    if path and (not Path(path).exists() if is_failure else _rank() == 0):
        jobs.write_result(path, result)


def _outputs(folder: str | None) -> str:
    """Return paths.outputs, with ~ expanded."""
    with user_errors_in_one_line():  # Hydra, which asks, would show a traceback
        if not folder:
            got = "null" if folder is None else "no name"
            schema.refuse(f"paths.outputs must be a folder, got {got}. Type paths.outputs=outputs.")
    return at_home(folder)


def _folder_name(name: str) -> str:
    """Return the name of an experiment, below which its runs lie."""
    with user_errors_in_one_line():
        if not schema.is_folder_name(name):
            schema.refuse(
                f"name={name!r} must be a folder's name, of at most {schema.LONGEST_NAME} bytes, "
                "without / and not beginning with a dot: it lies in paths.outputs. Type name=mine."
            )
    return name


def _run_folder(outputs: str | None, name: str, resume: bool) -> str:
    """Choose this command's folder, once and for all its processes."""
    outputs, name = _outputs(outputs), _folder_name(name)
    if (outputs, name) not in chosen:
        box = [choose(outputs, name, resume)]
        if _world() > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(box)
        chosen[outputs, name] = box[0]
        with user_errors_in_one_line():  # Hydra, which would make it next, shows a traceback
            Path(box[0]).mkdir(parents=True, exist_ok=True)
    return chosen[outputs, name]


def _message(error: BaseException) -> str:
    """Return the error's own message, without the traceback that a loader's worker adds to it."""
    return str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()


def check_values(cfg: DictConfig) -> None:
    """Raise UserError for a key without a value or with a number that cannot be.

    And for an interpolation that leads nowhere.
    """
    # First without what refers to them: a size of one number leaves such keys without a value.
    schema.check_numbers(OmegaConf.to_container(cfg), schema.Config)
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        typed = " ".join(f"{key}=…" for key in missing)
        schema.refuse(f"no value for {', '.join(missing)}; add {typed}")
    try:
        schema.check_numbers(OmegaConf.to_container(cfg, resolve=True), schema.Config)
    except OmegaConfBaseException as error:
        schema.refuse(" ".join(str(error).split()))


def _put_at_home(node: DictConfig | ListConfig) -> None:
    """Expand ~ in all texts, wherever they come from: typed, a file, or the environment."""
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        value = node[key]  # type: ignore[index]
        if OmegaConf.is_config(value):
            _put_at_home(value)
        elif isinstance(value, str) and value != at_home(value):
            node[key] = at_home(value)  # type: ignore[index]


def _leave_no_empty_folder(run_dir: Path) -> None:
    """Remove what Hydra made for a run that never began: its .hydra folder, empty log and lock."""
    made = {".hydra", f"{HydraConfig.get().job.name}.log", LOCK}
    if run_dir.is_dir() and all(entry.name in made for entry in run_dir.iterdir()):
        shutil.rmtree(run_dir)


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _is_sweep() -> bool:
    """Return whether several jobs were asked for; hydra.mode=RUN makes a single job."""
    typed = [one.lstrip("+") for one in sys.argv[1:]]
    if {"-m", "--multirun"} & {*typed}:
        return True
    if modes := [one for one in typed if one.startswith("hydra.mode=")]:
        return modes[-1] == "hydra.mode=MULTIRUN"
    return any(one.startswith(("sweep=", "hydra/sweeper=")) for one in typed)


def _prepare_ranks() -> None:
    """Let the processes of torchrun or accelerate launch meet; only the first keeps a log.

    accelerate launch starts several processes on CPUs through mpirun alone; otherwise it starts one
    and says so nowhere, but for the address at which several would have met.
    """
    told = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT", "WORLD_SIZE"} & os.environ.keys()
    if told == {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"}:
        schema.refuse(
            "accelerate launch was to start several processes and has started one, as it does "
            "without a GPU for each: type torchrun --nproc_per_node 2 -m eomt_exp …"
        )
    if _world() <= 1:
        return
    if _is_sweep():
        schema.refuse("a sweep starts its own processes; run it without torchrun or accelerate.")
    atexit.register(_leave)  # before torch is imported: the functions registered first run last
    import torch
    from accelerate import PartialState

    on_cpu = {"trainer.device=cpu", "trainer=cpu", "trainer=ddp_cpu"} & {*sys.argv}
    cpu = bool(on_cpu) or not torch.cuda.is_available()
    if not cpu:  # a loss is tried out on the CPU before it is trained, and NCCL knows GPUs alone
        torch.distributed.init_process_group("cuda:nccl,cpu:gloo")
    # cpu=True, or a machine without a GPU silently becomes many worlds of one process.
    PartialState(cpu=cpu)
    if _rank():
        sys.argv += RANK_OVERRIDES


def _part_ranks() -> None:
    """Close what joins the processes of torchrun, after a clean end alone.

    After an error the others may be inside a collective, which closing would wait for.
    """
    global _parted
    if _world() > 1:
        import torch

        torch.distributed.destroy_process_group()
        _parted = True


_parted = False  # True once the group was closed


def _leave() -> None:
    """End a parted process here, without taking the interpreter down.

    A thread of gloo that meanwhile lets go of a collective's tensor would abort the process, and
    torchrun the others. Closing the group ends these threads, but not where FSDP has a mesh: caches
    of torch keep the mesh, and the mesh the group.
    """
    if _parted:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _choice(group: str) -> str:
    """Return the option of a config group, as `tiny` of backbone; "" of a composition in a test."""
    known = HydraConfig.instance().cfg is not None
    return str(HydraConfig.get().runtime.choices.get(group, "")) if known else ""


_RESOLVERS: dict[str, Callable[..., Any]] = {
    "run_folder": _run_folder,
    "choice": _choice,
    "absolute": lambda folder: absolute(_outputs(folder)),
    "database_address": lambda folder: database_address(_outputs(folder)),
    "folder_name": _folder_name,
    "same": lambda left, right: left == right,
    "times": lambda value, factor: float(f"{value * factor:.4g}"),
}
# At import: the workers of joblib, submitit and Ray import this module and never call main().
for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)
