"""Shows progress: a bar on a terminal, and a plain line every 15 seconds in logs and CI."""

from __future__ import annotations

import time

from eomt_exp.signals import stop_signals

PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


class Progress:
    """Counts from `start` to `total` inside a `with`; a process that is not `enabled` is silent.

    The rate leaves out the first `start` items, which an earlier try has done.
    """

    def __init__(
        self, total: int, description: str, start: int = 0, *, enabled: bool = True
    ) -> None:
        from rich import progress as rich_progress
        from rich.console import Console

        self.total, self.description, self.start, self.done = total, description, start, start
        self._loss = ""
        self._console = Console(highlight=False)
        self._is_plain = enabled and not self._console.is_terminal
        self._last_done = -1
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(bar_width=30),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            disable=not enabled or self._is_plain,
        )
        self._task = self._bar.add_task(description, total=total, completed=start, text="")

    def __enter__(self) -> Progress:
        self.began = self._last_time = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()
        if self._is_plain and self._last_done != self.done:
            self._print()

    def advance(self, n: int = 1, loss: float | None = None) -> None:
        """Count `n` more; a `loss` stays shown until the next one.

        Raises KeyboardInterrupt once the command is to stop at once: Python swallows an interrupt
        that arrives inside a destructor, and long work passes here step by step.
        """
        if stop_signals and not stop_signals.is_held:
            raise KeyboardInterrupt
        self.done += n
        if loss is not None:
            self._loss = f"loss {loss:.4g}"
        text = f"{self._rate():.3g}/s  {self._loss}"
        self._bar.update(self._task, completed=self.done, text=text)
        if self._is_plain and time.monotonic() - self._last_time >= PLAIN_SECONDS:
            self._print()

    def _rate(self) -> float:
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def _print(self) -> None:
        """Print "train  20 % 40/200, 2.1/s, 0:00:19 elapsed, 0:01:16 left, loss 0.312"."""
        self._last_time, self._last_done = time.monotonic(), self.done
        share = 100 * self.done / self.total if self.total else 100.0
        rate = self._rate()
        left = clock((self.total - self.done) / rate) if rate else "?"
        parts = [
            f"{self.description} {share:3.0f} % {self.done}/{self.total}, {rate:.3g}/s",
            f"{clock(self._last_time - self.began)} elapsed, {left} left",
            self._loss,
        ]
        self._console.print(", ".join(filter(None, parts)), markup=False, soft_wrap=True)
        self._console.file.flush()  # a file is block-buffered, and a log should be up to date


progress = Progress  # so that a `with` reads as a sentence


def clock(seconds: float) -> str:
    """Write hours, minutes and seconds, "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
