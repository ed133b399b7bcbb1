"""Says in one line what went wrong with the machine, which is neither a wrong input nor a bug."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys
from typing import Any

_GOES_ON = "then type the same command again: it goes on from what is saved."
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EIO}
# Writers that are no Python code say it in words: torch.save, safetensors, sqlite.
_FULL_IN_WORDS = re.compile("|".join(map(os.strerror, _FULL)) + "|file write failed|disk is full")
_WORKER = re.compile(r"DataLoader worker.*(exited unexpectedly|is killed by signal)")


def explained(error: BaseException) -> str | None:
    """Return what happened and what to do about it; None for an error of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    text = " ".join(str(error).split())
    if number in _FULL or _FULL_IN_WORDS.search(text):
        return f"no space to write{where or f': {text}'}. Make room, {_GOES_ON}"
    if number in _REFUSED:
        return (
            f"{os.strerror(number)}{where}. Mend that, or type another folder, "
            "such as paths.outputs=/tmp/outputs."
        )
    if _WORKER.search(text):
        return (
            f"a process that loads images has died ({text[:200]}), maybe for want of memory. Type "
            f"trainer.num_workers=0, or enlarge /dev/shm (docker: --shm-size), {_GOES_ON}"
        )
    return None


class _Unread(io.FileIO):
    """Writes to a pipe until nobody reads it any more, and then to nowhere."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            print("nobody reads the output any more; the command goes on.", file=sys.stderr)
            return len(data)


def outlive_readers() -> None:
    """Let a command go on where `| head` or `| tee` is at its end: its work is in files."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            is_pipe = stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
        except (OSError, ValueError):  # a stream of a test or a notebook
            continue
        if is_pipe:
            raw = _Unread(stream.fileno(), "w", closefd=False)
            lines = name == "stderr"
            buffer = io.BufferedWriter(raw)
            new = io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=lines)
            setattr(sys, name, new)
