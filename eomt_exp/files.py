"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    """Put `text` (UTF-8) into `path` at one stroke."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
