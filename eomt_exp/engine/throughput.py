"""Measures how fast a training goes, where its time goes to and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

import torch

T = TypeVar("T")


class Throughput:
    """Measures from one `read` to the next; a step counts images of all processes."""

    def __init__(self, images_per_step: int, device: torch.device) -> None:
        self.images_per_step, self.device = images_per_step, device
        self._restart()

    def waits(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and count as waiting the time until each is there."""
        self._restart()
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield batch

    def read(self, steps: int) -> dict[str, float]:
        """Return the metrics of so many steps; call it where the device has done them.

        Memory is the most there was since the process began: of the GPU's what torch had in use, of
        a CPU's that of this process without the loader's. `gpu_utilisation` is the share of about
        the last second in which the GPU worked, and needs nvidia-ml-py.
        """
        seconds = max(time.perf_counter() - self._began, 1e-9)
        found = {
            "train/images_per_second": steps * self.images_per_step / seconds,
            "train/data_wait": self._waited / seconds,
            "train/peak_memory_gb": self._peak_bytes() / 1e9,
        }
        if self.device.type == "cuda":
            with suppress(ModuleNotFoundError, RuntimeError):
                found["train/gpu_utilisation"] = torch.cuda.utilization(self.device) / 100
        self._restart()
        return found

    def _restart(self) -> None:
        self._began, self._waited = time.perf_counter(), 0.0

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux says it in kilobytes
