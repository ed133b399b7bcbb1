"""Remembers the signals (Ctrl-C, SIGTERM) that ask this command to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SAME_SECONDS = 2.0  # signals that follow one another faster are one wish to stop


class StopSignals:
    """Interrupts the command at a signal to stop, and is true once there was one.

    They often go to loader workers too, whose death may be reported last and hide the interrupt:
    so whoever sees an error asks here first.
    """

    def __init__(self) -> None:
        self._last: float | None = None  # time.monotonic() of the last one
        self._number: int = signal.SIGINT
        self.is_held = False  # whether the first one waits for the end of a block

    def __bool__(self) -> bool:
        return self._last is not None

    def handle(self, number: int, frame: Any) -> None:
        """Remember the signal and interrupt; a handler for signal.signal.

        Linux sends a job one SIGTERM for each thread of a killed sweep, and torchrun passes on a
        Ctrl-C that its processes have had already: the second would break off closing the run.
        """
        now, before = time.monotonic(), self._last
        if before is not None and now - before < _SAME_SECONDS:
            return
        self._last, self._number = now, number
        if before is None and self.is_held:
            return
        raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Interrupt after the outermost block, which must be whole; a second signal does at once.

        A transaction of sqlite that is broken off keeps the file locked for this very process.
        """
        outer, before, self.is_held = self.is_held, self._last, True
        try:
            yield
        finally:
            self.is_held = outer
        if not outer and before is None and self._last is not None:
            raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """Return what a shell says of a command that it ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self._number

    def clear(self) -> None:
        """Forget those of an earlier command of this process."""
        self._last = None


stop_signals = StopSignals()
