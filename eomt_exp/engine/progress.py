"""Shows progress: a bar on a terminal, and a plain line every 15 seconds in logs and CI."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from eomt_exp.signals import stop_signals

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_SECONDS = 15.0


def progress(
    total: int,
    description: str,
    start: int = 0,
    *,
    console: Console | None = None,
    enabled: bool = True,
    plain_seconds: float = PLAIN_SECONDS,
) -> Progress:
    """Return a context manager that counts from `start` to `total`; other ranks disable it.

    The rate leaves out the first `start` items, which an earlier try has done.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    if not enabled:
        return Progress(total, description, start)
    if console.is_terminal:
        return BarProgress(total, description, start, console)
    return PlainProgress(total, description, start, console, plain_seconds)


class Progress:
    """Counts, and prints nothing."""

    def __init__(self, total: int, description: str, start: int = 0) -> None:
        self.total, self.description, self.start, self.done = total, description, start, start
        self.fields: dict[str, object] = {}
        self.began = time.monotonic()

    def __enter__(self) -> Progress:
        self.began = time.monotonic()
        return self

    def __exit__(self, *raised: object) -> None:
        """Print the end, where something is printed."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more; `fields`, such as loss=0.3, stay shown until they change.

        Raises KeyboardInterrupt once the command is to stop: Python swallows an interrupt
        that arrives inside a destructor, and long work passes here step by step.
        """
        if stop_signals:
            raise KeyboardInterrupt
        self.done += n
        self.fields.update(fields)

    @property
    def elapsed(self) -> float:
        """Return the seconds since the `with` began."""
        return time.monotonic() - self.began

    @property
    def rate(self) -> float:
        """Return items a second, 0 before the first one."""
        return (self.done - self.start) / max(self.elapsed, 1e-9)

    def field_text(self) -> str:
        """Return "loss 0.312  lr 1e-05"."""
        return "  ".join(f"{name} {_value_text(value)}" for name, value in self.fields.items())


class PlainProgress(Progress):
    """Prints whole lines, for outputs that cannot be drawn over."""

    def __init__(
        self, total: int, description: str, start: int, console: Console, seconds: float
    ) -> None:
        super().__init__(total, description, start)
        self._console, self._seconds = console, seconds
        self._last_time, self._last_done = time.monotonic(), -1

    def __enter__(self) -> PlainProgress:
        super().__enter__()
        self._last_time = self.began
        return self

    def __exit__(self, *raised: object) -> None:
        if self._last_done != self.done:
            self._print()

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count, and print when the last line is old."""
        super().advance(n, **fields)
        if time.monotonic() - self._last_time >= self._seconds:
            self._print()

    def line(self) -> str:
        """Return "train  20 % 40/200, 2.1/s, 0:00:19 elapsed, 0:01:16 left, loss 0.312"."""
        share = 100 * self.done / self.total if self.total else 100.0
        left = (self.total - self.done) / self.rate if self.rate else float("inf")
        parts = [
            f"{self.description} {share:3.0f} % {self.done}/{self.total}",
            f"{self.rate:.3g}/s",
            f"{clock(self.elapsed)} elapsed",
            f"{clock(left)} left",
        ]
        return ", ".join([*parts, self.field_text()] if self.fields else parts)

    def _print(self) -> None:
        self._last_time, self._last_done = time.monotonic(), self.done
        self._console.print(self.line(), markup=False, soft_wrap=True)
        self._console.file.flush()  # a file is block-buffered, and a log should be up to date


class BarProgress(Progress):
    """Draws rich's bar with count, rate, elapsed time, time left and the fields."""

    def __init__(self, total: int, description: str, start: int, console: Console) -> None:
        from rich import progress as rich_progress

        super().__init__(total, description, start)
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=30),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[rate]}"),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._task = self._bar.add_task(
            description, total=total, completed=start, rate="", text="", start=False
        )

    def __enter__(self) -> BarProgress:
        super().__enter__()
        self._bar.start()
        self._bar.start_task(self._task)
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count and redraw, ten times a second at most."""
        super().advance(n, **fields)
        rate = f"{self.rate:.3g}/s"
        self._bar.update(self._task, completed=self.done, rate=rate, text=self.field_text())


def _value_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """Write hours, minutes and seconds, "1:02:03"; "?" for infinity."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
