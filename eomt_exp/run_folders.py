"""Where a run lives, and how the same command finds its unfinished run again.

A started run leaves a pointer under <outputs>/.unfinished, named after the command that was typed;
it is removed when the run is complete. A pointer whose process is dead is where to go on. Whether
it is dead can only be told on its own machine, and by more than its number, which may be reused.
Jobs of a sweep leave none: their folders come from the sweep, which finds them by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from eomt_exp.processes import lives, this_process

RANK_WORDS = ("hydra.output_subdir=null", "hydra/job_logging=none")  # of every rank but the first

_given: set[Path] = set()  # folders that `choose` gave; others are found without a pointer


def choose(outputs: str, name: str, resume: bool) -> str:
    """The folder of this command: its unfinished run's, else a new one named after the time."""
    found = _unfinished(Path(outputs)) if resume else None
    # Sortable, and unique enough for runs that start in the same second.
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    folder = found or Path(outputs) / name / stamp
    _given.add(folder.resolve())
    return str(folder)


@contextmanager
def pointed_to(outputs: Path, run_dir: Path, active: bool = True) -> Iterator[None]:
    """While inside, and after a failure or a kill inside, the command points to its run folder.

    Not after a failure that left the folder empty: then there is nothing to go on with. Nor in a
    sweep, whose jobs share one command, nor where hydra.run.dir= was typed.
    """
    active = active and run_dir.resolve() in _given and "EOMT_TRIAL" not in os.environ
    if active:
        _mark_unfinished(outputs, run_dir)
    try:
        yield
    except Exception:
        if active and not any(p.suffix != ".log" and p.is_file() for p in run_dir.glob("*")):
            _mark_finished(outputs, run_dir)
        raise
    if active:
        _mark_finished(outputs, run_dir)


def _mark_unfinished(outputs: Path, run_dir: Path) -> None:
    pointer = _pointer(outputs)
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"run_dir": str(run_dir.resolve()), **this_process()}))
    os.replace(temporary, pointer)


def _mark_finished(outputs: Path, run_dir: Path) -> None:
    pointer = _pointer(outputs)
    if _read(pointer).get("run_dir") == str(run_dir.resolve()):
        pointer.unlink(missing_ok=True)


def _unfinished(outputs: Path) -> Path | None:
    entry = _read(_pointer(outputs))
    run_dir = Path(entry.get("run_dir", ""))
    if not entry or not run_dir.is_dir():
        return None
    if _may_be_alive(entry):
        print(
            f"{run_dir} is an unfinished run of this command that may still be running on "
            f"{entry.get('host')}; a new one begins. To go on there: hydra.run.dir={run_dir}",
            file=sys.stderr,
        )
        return None
    return run_dir


def _pointer(outputs: Path) -> Path:
    left_out = ("resume=", *RANK_WORDS)
    words = sorted(word for word in sys.argv[1:] if not word.startswith(left_out))
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
    return outputs / ".unfinished" / f"{digest}.json"


def _read(pointer: Path) -> dict[str, str]:
    try:
        return dict(json.loads(pointer.read_text()))
    except (OSError, ValueError):
        return {}


def _may_be_alive(entry: dict[str, str]) -> bool:
    return int(entry["pid"]) != os.getpid() and lives(entry) is not False
