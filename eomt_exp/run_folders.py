"""Chooses the folder of a run, and finds a command's unfinished run again.

A process that works in a run folder holds the lock file there. A run that has begun leaves a
pointer under <outputs>/.unfinished, named after the command that was typed; it is removed when the
run is complete. A pointer to a folder whose lock is free says where to go on. Jobs of a sweep leave
none: their folders come from the sweep, which finds them by itself.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from eomt_exp.config_keys import OF_A_TRY
from eomt_exp.files import LOCK, hold_lock, is_locked, write_text

# The folders that this command was given, by outputs folder and name; each is chosen once.
chosen: dict[tuple[str, str], str] = {}


def choose(outputs: str, name: str, resume: bool) -> str:
    """Return the folder of this command's unfinished run, else a new one named after the time."""
    found = _unfinished(Path(outputs)) if resume else None
    # Sortable, and unique enough for runs that start in the same second.
    begun = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return str(found or Path(outputs) / name / begun)


@contextmanager
def working_in(run_dir: Path, outputs: Path) -> Iterator[None]:
    """Hold the lock of a run folder; while inside, and after a failure, the command points to it.

    The pointer goes after a failure that left nothing to go on with. Raises UserError where another
    process works in the folder.
    """
    lock = hold_lock(run_dir / LOCK)
    if lock is None:
        from eomt_exp.contracts import UserError

        raise UserError(
            f"another process works in {run_dir}. Wait for its end, or type another hydra.run.dir."
        )
    # Typing the command again finds a folder only if the command chose it itself.
    points = run_dir.resolve() in {Path(folder).resolve() for folder in chosen.values()}
    goes_on = True
    try:
        if points:
            write_text(_pointer(outputs), json.dumps({"run_dir": str(run_dir.resolve())}))
        yield
        goes_on = False
    except Exception:
        left = (p for p in run_dir.glob("*") if p.is_file())
        goes_on = any(p.suffix != ".log" and p.name != LOCK for p in left)
        raise
    finally:
        if points and not goes_on and _pointed(outputs) == run_dir.resolve():
            _pointer(outputs).unlink(missing_ok=True)
        lock.release()


def _unfinished(outputs: Path) -> Path | None:
    run_dir = _pointed(outputs)
    if run_dir is None or not run_dir.is_dir():
        return None
    if is_locked(run_dir / LOCK):
        print(
            f"{run_dir} is an unfinished run of this command that is still running; a new one "
            f"begins. To go on there once it has ended: hydra.run.dir={run_dir}",
            file=sys.stderr,
        )
        return None
    return run_dir


def _pointer(outputs: Path) -> Path:
    overrides = sorted(one for one in sys.argv[1:] if not one.startswith(OF_A_TRY))
    digest = hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:16]
    return outputs / ".unfinished" / f"{digest}.json"


def _pointed(outputs: Path) -> Path | None:
    try:
        return Path(json.loads(_pointer(outputs).read_text())["run_dir"])
    except (OSError, ValueError):
        return None
