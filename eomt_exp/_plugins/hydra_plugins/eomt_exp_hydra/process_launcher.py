"""`hydra/launcher=process` runs each job in a fresh process, or in a torchrun group.

A job is the command that somebody would type, run by `eomt_exp.worker`: nothing is pickled, a
crash costs one job, and it leaves no orphan however the sweep ends. Linux ends a job even when
this process is killed -9; that follows the *thread* which started it, and so a thread stays with
its job to the end.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from eomt_exp import jobs
from eomt_exp.config_keys import NOT_FOR_JOBS
from eomt_exp.jobs import JobFailed
from eomt_exp.schema import ProcessLauncherConfig, refuse, typed

LOG = "output.log"  # in a job's folder: what it printed, of all its tries
_Child = subprocess.Popen[bytes]
_RESULT = Path(".job", "result.json")
_TAIL_LINES, _TAIL_BYTES = 15, 20_000
# Under Hydra's name, so that whoever quiets Hydra quiets this.
_log = logging.getLogger("hydra.process_launcher")
_composing = threading.Lock()  # Hydra's state is for one thread at a time


class Job(NamedTuple):
    """A job has not started yet."""

    number: int
    folder: Path
    overrides: list[str]  # of its task
    command: list[str]
    environment: dict[str, str]


class ProcessLauncher(Launcher):
    """Runs up to `slots` jobs at once; `launch` may be called from several threads."""

    is_thread_safe = True
    slots: int  # after setup

    def __init__(self, **settings: Any) -> None:
        # Read in `setup`: before 1.4 Hydra detaches this node from the configuration, and
        # interpolations in it cannot be resolved.
        del settings
        self._starting = threading.Lock()
        self._children: set[_Child] = set()
        self._is_stopping = False
        self._free: queue.Queue[dict[str, str]] = queue.Queue()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Check the settings and divide the GPUs."""
        from eomt_exp.cli import user_errors_in_one_line

        del task_function  # the worker has it
        self.config, self.loader = config, hydra_context.config_loader
        with user_errors_in_one_line():
            node = config.hydra.launcher
            self.settings = typed(node, ProcessLauncherConfig, "hydra.launcher")
            slots = environments(self.settings)
        self.slots = len(slots)
        for environment in slots:
            self._free.put(environment)
        atexit.register(self.stop)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs, up to `slots` at once; return in their order when the last one is done."""
        setup_globals()
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        with ThreadPoolExecutor(self.slots) as pool:
            try:
                return list(pool.map(self._job, job_overrides, numbers))
            except BaseException:  # Ctrl-C, in the thread that waits here
                self.stop()  # or the pool would wait for the jobs to come to their end
                raise

    def stop(self) -> None:
        """End all jobs, and start no more: `launch` returns them as stopped.

        Each is asked first and has `grace_s` seconds to close its run. Only its first process is
        asked: data workers that end by themselves would look like a failure to it.
        """
        with self._starting:
            self._is_stopping = True
            children = list(self._children)
        try:
            for child in children:
                child.terminate()
            end = time.monotonic() + self.settings.grace_s
            for child in children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, end - time.monotonic()))
        finally:
            for child in children:
                if child.poll() is None:
                    _kill_group(child)

    def _job(self, overrides: Sequence[str], number: int) -> JobReturn:
        environment = self._free.get()
        answer = JobReturn(list(overrides), status=JobStatus.COMPLETED)
        try:
            job = compose(self.loader, self.config, overrides, number)
            _log.info(f"\t#{number} : {' '.join(job.overrides)} > {job.folder / LOG}")
            answer.overrides, answer.return_value = job.overrides, self._run(job, environment)
        except (HydraException, OmegaConfBaseException) as error:  # the overrides do not compose
            text = f"job {number} {jobs.REFUSED}: {error}"
            answer.return_value = JobFailed(text, jobs.REFUSED)
        finally:
            self._free.put(environment)
        if jobs.is_told(self.config.hydra, answer._return_value):
            answer.return_value = None
        elif isinstance(answer._return_value, Exception):
            answer.status = JobStatus.FAILED
        return answer

    def _run(self, job: Job, environment: dict[str, str]) -> Any:
        """Return what the job returned, or the exception that says why it returned nothing."""
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / _RESULT).unlink(missing_ok=True)  # of an earlier try
        with (job.folder / LOG).open("ab") as log:
            begin = log.tell()
            child = self._start(job, environment, log.fileno())
        if child is None:
            return JobFailed(f"job {job.number} was not started.", jobs.STOPPED)
        try:
            code = child.wait()
            _kill_group(child)  # what it may have left behind
        finally:
            with self._starting:
                self._children.discard(child)
        return self._result(job, code, begin)

    def _start(self, job: Job, environment: dict[str, str], log: int) -> _Child | None:
        """Start a job's first process, in a session of its own: Ctrl-C is for the sweep alone."""
        settings = {
            "PYTHONUNBUFFERED": "1",  # or the last lines of a killed job are lost
            jobs.STARTER_ENV: str(os.getpid()),
            jobs.PROCESSES_ENV: str(self.settings.num_processes),
            jobs.RESULT_ENV: str(job.folder / _RESULT),
        }
        env = {**os.environ, **environment, **job.environment, **settings}
        with self._starting:
            if self._is_stopping:
                return None
            child = subprocess.Popen(
                job.command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._children.add(child)
            return child

    def _result(self, job: Job, code: int, begin: int) -> Any:
        result = jobs.read_result(job.folder / _RESULT)
        status = result.status if result else jobs.CRASHED
        if result and status == jobs.COMPLETED:
            return result.value
        if status == jobs.PRUNED:
            from eomt_exp.contracts import TrialPruned

            return TrialPruned()
        with (job.folder / LOG).open("rb") as log:
            log.seek(max(begin, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            tail = "\n".join(log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:])
        if self._is_stopping:
            status = jobs.STOPPED
        # Who takes all memory is killed by the kernel; of a group's process, torchrun says so.
        elif code == -signal.SIGKILL or "Signal 9 (SIGKILL)" in tail:
            status = jobs.OUT_OF_MEMORY
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        text = f"job {job.number} {status} ({how})"
        text += f": {result.kind}: {result.error}" if result else ""
        if status != jobs.REFUSED:
            text += f"\nThe end of {job.folder / LOG}:\n{tail}"
        return JobFailed(text, status)


def _kill_group(child: _Child) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone; or, on macOS, only zombies
        os.killpg(child.pid, signal.SIGKILL)


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
    # Those about sweeper and launcher stay: a file of sweeps/ may set keys that only these have.
    given = [*sweep.hydra.overrides.hydra, *overrides]
    command += [one for one in given if not one.lstrip("+~").startswith(NOT_FOR_JOBS)]
    path = QuotedString(str(folder), Quote.single).with_quotes()
    own = (f"run.dir={path}", "mode=RUN", f"job.num={number}", f"job.id={number}")
    command += [f"hydra.{one}" for one in own]
    return Job(number, folder, list(config.hydra.overrides.task), command, environment)


def environments(settings: ProcessLauncherConfig) -> list[dict[str, str]]:
    """Return what each slot adds to the environment of its jobs, one entry a slot.

    Raises UserError where the GPUs cannot be divided evenly, or a job would lack some.
    """
    slots, size = settings.slots, settings.num_processes
    gpus = _visible_gpus() if settings.gpus or slots == "auto" else []
    if slots == "auto":
        slots = max(1, len(gpus) // size)
        gpus = gpus[: slots * size] if len(gpus) >= size else gpus
    share, left = divmod(len(gpus), slots)
    if gpus and (left or share < size):
        refuse(
            f"{len(gpus)} GPUs ({','.join(gpus)}) over {slots} slots: they are divided evenly, "
            f"and a job of {size} processes wants {size}; type hydra.launcher.slots=auto."
        )
    groups = (gpus[index * share : (index + 1) * share] for index in range(slots))
    found = [{"CUDA_VISIBLE_DEVICES": ",".join(group)} if group else {} for group in groups]
    threads = settings.threads
    if threads == "auto":  # each would take all cores, and all of them would wait for one another
        if slots * size == 1 or "OMP_NUM_THREADS" in os.environ:
            return found
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        threads = max(1, cores // (slots * size))
    return [{"OMP_NUM_THREADS": str(threads), **one} for one in found]


def _visible_gpus() -> list[str]:
    """Return names for CUDA_VISIBLE_DEVICES: what it holds already, else all that there are."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        import torch

        return [str(index) for index in range(torch.cuda.device_count())]
    names = map(str.strip, os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    return [name for name in names if name and not name.startswith("-")]  # -1: none
