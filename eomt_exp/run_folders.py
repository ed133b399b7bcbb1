"""Where a run lives, and how the same command finds its unfinished run again.

A started run leaves a pointer under <outputs>/.unfinished, named after the command that was typed;
it is removed when the run is complete. A pointer whose process is dead is where to go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from datetime import datetime
from pathlib import Path

COMMAND_ENV = "EOMT_RUN_STAMP"  # one stamp for all processes of a run


def choose(outputs: str, name: str) -> str:
    """The folder of this command: its unfinished run's, else a new one named after the time."""
    found = None if "resume=false" in sys.argv[1:] else _unfinished(Path(outputs))
    if found is not None:
        return str(found)
    stamp = os.environ.get(COMMAND_ENV) or new_stamp()
    return str(Path(outputs) / name / stamp)


def new_stamp() -> str:
    """Sortable, and unique enough for runs that start in the same second."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")


def mark_unfinished(outputs: Path, run_dir: Path) -> None:
    """Point from the command to its run, with the process that owns it."""
    pointer = _pointer(outputs)
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"run_dir": str(run_dir.resolve()), "pid": os.getpid()}))
    os.replace(temporary, pointer)


def mark_finished(outputs: Path, run_dir: Path) -> None:
    """Remove the pointer, if it still points to this run."""
    pointer = _pointer(outputs)
    if _read(pointer).get("run_dir") == str(run_dir.resolve()):
        pointer.unlink(missing_ok=True)


def _unfinished(outputs: Path) -> Path | None:
    entry = _read(_pointer(outputs))
    if not entry or _alive(int(entry["pid"])):
        return None
    run_dir = Path(entry["run_dir"])
    return run_dir if run_dir.is_dir() else None


def _pointer(outputs: Path) -> Path:
    words = sorted(word for word in sys.argv[1:] if not word.startswith("resume="))
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
    return outputs / ".unfinished" / f"{digest}.json"


def _read(pointer: Path) -> dict[str, str]:
    try:
        return dict(json.loads(pointer.read_text()))
    except (OSError, ValueError):
        return {}


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
