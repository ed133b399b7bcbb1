"""A job of a sweep ends in one of several ways, and writes its result for who started it.

The result is a small JSON file and no pickle: it can be read by eye, and reading it runs nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import CompactHydraException

from eomt_exp.files import write_text

# In the environment of a job.
RESULT_ENV = "EOMT_RESULT"  # path of the file that the starting process reads
PROCESSES_ENV = "EOMT_PROCESSES"  # how many processes the job is
STARTER_ENV = "EOMT_STARTER"  # number of the process that started it
TRIAL_ENV = "EOMT_TRIAL"  # which trial of a study it is, as JSON
STORAGE_ENV = "EOMT_STORAGE"  # address of the study's storage, with its password

# How a job ended; refused is a UserError, and crashed and stopped ones left no result.
COMPLETED, PRUNED, REFUSED = "completed", "pruned", "refused"
FAILED, OUT_OF_MEMORY, CRASHED, STOPPED = "failed", "out_of_memory", "crashed", "stopped"


class JobResult(NamedTuple):
    """Says how a job ended."""

    status: str
    value: Any = None  # what the task returned: None, a number or {metric: number}
    error: str = ""
    kind: str = ""  # the class of the error


class JobFailed(CompactHydraException, RuntimeError):
    """A job gave no value; Hydra prints the message without a traceback of this process."""

    def __init__(self, text: str, status: str) -> None:
        super().__init__(text)
        self.status = status


refused: list[str] = []  # what was told of this grid's jobs; its exit code is theirs


def is_told(hydra: Any, result: Any) -> bool:
    """Print why a job of a grid was refused, so that the grid goes on; of other jobs, return False.

    Hydra would raise the first such error after all jobs, and say nothing of the others. A study
    has an end of its own for them. `hydra` is the configuration of the multirun.
    """
    is_grid = str(hydra.sweeper._target_).endswith(".BasicSweeper")
    if not is_grid or not isinstance(result, JobFailed) or result.status != REFUSED:
        return False
    refused.append(str(result))
    print(f"error: {result}", file=sys.stderr, flush=True)
    return True


def status_of(error: BaseException) -> str:
    """Say how a job ended that raised `error`; a JobFailed carries its status."""
    from eomt_exp.contracts import TrainingError, TrialPruned, UserError, is_out_of_memory

    if isinstance(error, JobFailed):
        return error.status
    if isinstance(error, TrialPruned):
        return PRUNED
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    # After a TrainingError the values were tried, and another trial's may do.
    is_refused = isinstance(error, UserError) and not isinstance(error, TrainingError)
    return REFUSED if is_refused else FAILED


def write_result(path: str | Path, result: JobResult) -> None:
    """Write a job's result; NaN and infinities survive."""
    # float: a task's numbers may be NumPy's or torch's.
    write_text(path, json.dumps(result._asdict(), default=float))


def read_result(path: str | Path) -> JobResult | None:
    """Read what `write_result` wrote; None where there is no such file, or a broken one."""
    try:
        return JobResult(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
