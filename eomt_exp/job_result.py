"""What a job in a process of its own tells the process that started it: one small JSON file.

Not a pickle: the file can be read by eye, and reading it runs nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

RESULT_ENV = "EOMT_RESULT"  # where the starting process wants the file
COMPLETED, PRUNED, REFUSED = "completed", "pruned", "refused"
FAILED, OUT_OF_MEMORY = "failed", "out_of_memory"
STATUSES = (COMPLETED, PRUNED, REFUSED, FAILED, OUT_OF_MEMORY)


class JobResult(NamedTuple):
    """How a job ended."""

    status: str
    value: Any = None  # what the task returned: None, a number or {metric: number}
    error: str = ""
    kind: str = ""  # the class of the error


def write_result(
    path: str | Path, status: str, value: Any = None, error: str = "", kind: str = ""
) -> None:
    """Put the result into `path` at one stroke; NaN and infinities survive.

    Raises ValueError for a status there is not.
    """
    if status not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    result = JobResult(status, value, error, kind)
    # float: a task's numbers may be NumPy's or torch's.
    beside.write_text(json.dumps(result._asdict(), default=float), encoding="utf-8")
    os.replace(beside, path)


def read_result(path: str | Path) -> JobResult | None:
    """What `write_result` wrote; None where there is no such file, or a broken one."""
    try:
        return JobResult(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
