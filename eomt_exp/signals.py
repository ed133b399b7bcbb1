"""Remembers the signals (Ctrl-C, SIGTERM) that ask this command to stop."""

from __future__ import annotations

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
        self._is_held = False

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
        self._last = now
        if before is None and self._is_held:
            return
        raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Interrupt after the block, for a write that must be whole; a second signal does at once.

        A transaction of sqlite that is broken off keeps the file locked for this very process.
        """
        before, self._is_held = self._last, True
        try:
            yield
        finally:
            self._is_held = False
        if before is None and self._last is not None:
            raise KeyboardInterrupt

    def clear(self) -> None:
        """Forget those of an earlier command of this process."""
        self._last = None


stop_signals = StopSignals()
