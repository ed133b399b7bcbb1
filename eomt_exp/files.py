"""Writes files that are whole or not there, and lock files that say which process is alive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"  # in a run folder, held by the process that works there
# A process that asks whether a lock is held takes it for an instant; whoever wants it waits longer.
_PATIENCE_SECONDS = 2.0
_CHUNK = 1 << 22  # bytes read at once


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a scratch file beside `path`; it becomes `path` at a clean end, else it is removed.

    Missing folders are made. The scratch name ends like `path`, so writers that look at the
    ending (PNG, JSON) find the one they expect.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, which is whole at any time."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def sha256(*paths: Path) -> str:
    """Hash the content of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def hold_lock(path: Path) -> FileLock | None:
    """Take the lock file at `path`, or return None where somebody else holds it.

    It is held until `release()` or the end of this process, however that ends: the kernel lets go
    of it, so there are no process numbers to compare and no signs of life to send. Where the file
    system has no flock, filelock falls back to a lock file that names its process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=_PATIENCE_SECONDS)
    except Timeout:
        return None
    return lock


def is_locked(path: Path) -> bool:
    """Return whether a living process, this one included, holds the lock file at `path`."""
    if not path.exists():
        return False
    try:
        with FileLock(path, thread_local=False).acquire(timeout=0):
            return False
    except Timeout:
        return True
