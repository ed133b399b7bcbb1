"""Processes told apart: by machine, number and beginning, since numbers are used again."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """{"host", "space", "pid", "began"}: by it, others can tell whether this process lives."""
    pid = os.getpid()
    return {"host": platform.node(), "space": _pid_space(), "pid": pid, "began": began(pid)}


def lives(process: Mapping[str, Any]) -> bool | None:
    """Whether a process that described itself lives; None where that cannot be seen from here.

    So it is with other machines, and with containers, which may share a name and not the numbers.
    """
    if process.get("host") != platform.node() or process.get("space", _pid_space()) != _pid_space():
        return None
    start = began(int(process["pid"]))
    return start is not None and start == process.get("began")


def began(pid: int) -> str | None:
    """When a process of this machine began, None where none has that number."""
    try:
        # After the name, which may hold anything: state is the first field, the start the 20th.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else fields[18]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc (macOS): the number alone must do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def _pid_space() -> str:
    """Which numbers of processes are meant."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
