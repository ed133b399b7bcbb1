"""`hydra/launcher=process`: each job in a fresh process, or in a torchrun group of several.

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
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import CompactHydraException, HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.eomt_exp_hydra._jobs import Job, command, compose
from hydra_plugins.eomt_exp_hydra._slots import environments, read_settings
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eomt_exp import job_result
from eomt_exp.worker import PROCESSES_ENV, STARTER_ENV

LOG = "output.log"  # in a job's folder: what it printed, of all its tries
_RESULT = Path(".job", "result.json")
_TAIL_LINES, _TAIL_BYTES = 15, 20_000
# Under Hydra's name, so that whoever quiets Hydra quiets this.
_log = logging.getLogger("hydra.process_launcher")


class JobFailed(CompactHydraException, RuntimeError):
    """A job gave no value; Hydra prints the message without a traceback of this process.

    `kind` is refused (an explained error), failed, out_of_memory, crashed (it ended without a
    word) or stopped; `exit_code` is negative for a signal, None where no process was started.
    """

    def __init__(self, text: str, kind: str, exit_code: int | None) -> None:
        super().__init__(text)
        self.kind, self.exit_code = kind, exit_code


class ProcessLauncher(Launcher):
    """Runs up to `slots` jobs at once; `launch` may be called from several threads."""

    is_thread_safe = True
    slots: int  # after setup

    def __init__(self, **settings: Any) -> None:
        # Read again in `setup`: here, interpolations have lost the root they point to.
        del settings
        self._starting = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._is_stopping = False
        self._free: queue.Queue[dict[str, str]] = queue.Queue()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Check the settings and divide the GPUs; raises LauncherError."""
        del task_function  # the worker has it
        self.config, self.loader = config, hydra_context.config_loader
        node: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        self.settings = read_settings(node)
        slots = environments(self.settings)
        self.slots = len(slots)
        for environment in slots:
            self._free.put(environment)
        atexit.register(self.stop)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """All jobs, up to `slots` at once; returns in their order when the last one is done."""
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
        try:
            job = compose(self.loader, self.config, overrides, number)
            _log.info(f"\t#{number} : {' '.join(job.answer.overrides or [])} > {job.folder / LOG}")
            return self._run(job, environment)
        except (HydraException, OmegaConfBaseException) as error:  # its words do not compose
            text = f"job {number} {job_result.REFUSED}: {error}"
            return _failed(JobReturn(list(overrides)), JobFailed(text, job_result.REFUSED, None))
        finally:
            self._free.put(environment)

    def _run(self, job: Job, environment: dict[str, str]) -> JobReturn:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / _RESULT).unlink(missing_ok=True)  # of an earlier try
        with (job.folder / LOG).open("ab") as log:
            begin = log.tell()
            child = self._start(job, environment, log.fileno())
        if child is None:
            return _failed(
                job.answer, JobFailed(f"job {job.number} was not started.", "stopped", None)
            )
        try:
            code = child.wait()
            _kill_group(child)  # what it may have left behind
        finally:
            with self._starting:
                self._children.discard(child)
        return self._settled(job, code, _tail(job.folder / LOG, begin))

    def _start(
        self, job: Job, environment: dict[str, str], log: int
    ) -> subprocess.Popen[bytes] | None:
        """The first process of a job, in a session of its own: Ctrl-C is for the sweep alone."""
        told = {
            "PYTHONUNBUFFERED": "1",  # the last words of a killed job
            STARTER_ENV: str(os.getpid()),
            PROCESSES_ENV: str(self.settings.num_processes),
            job_result.RESULT_ENV: str(job.folder / _RESULT),
        }
        with self._starting:
            if self._is_stopping:
                return None
            child = subprocess.Popen(
                command(job.words),
                env={**os.environ, **environment, **job.environment, **told},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._children.add(child)
            return child

    def _settled(self, job: Job, code: int, tail: str) -> JobReturn:
        result = job_result.read_result(job.folder / _RESULT)
        status = result.status if result else "crashed"
        if result and status == job_result.COMPLETED:
            job.answer.status, job.answer.return_value = JobStatus.COMPLETED, result.value
            return job.answer
        if status == job_result.PRUNED:
            from optuna import TrialPruned

            return _failed(job.answer, TrialPruned())
        if self._is_stopping:
            status = "stopped"
        # Who takes all memory is killed by the kernel; of a group's process, torchrun says so.
        elif code == -signal.SIGKILL or "Signal 9 (SIGKILL)" in tail:
            status = job_result.OUT_OF_MEMORY
        text = f"job {job.number} {status} ({ending(code)})"
        text += f": {result.kind}: {result.error}" if result else ""
        if status != job_result.REFUSED:
            text += f"\nThe end of {job.folder / LOG}:\n{tail}"
        return _failed(job.answer, JobFailed(text, status, code))


def ending(code: int) -> str:
    """ "exit code 1", or "killed by SIGSEGV" for -11."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _failed(answer: JobReturn, error: Exception) -> JobReturn:
    answer.status, answer.return_value = JobStatus.FAILED, error
    return answer


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone; or, on macOS, only zombies
        os.killpg(child.pid, signal.SIGKILL)


def _tail(log: Path, begin: int) -> str:
    """The last lines of what this try wrote."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])
