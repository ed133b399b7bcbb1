"""Averages the weights of a training over its steps (Polyak & Juditsky, 1992), exponentially."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE_NAME = "averaged.safetensors"  # in a training state


class WeightAverage:
    """Holds the average a of the weights w that `model` trains: a += (1 - d) (w - a) at step t.

    d = min(decay, (1 + t) / (10 + t)), as TensorFlow has it: early on the average forgets faster,
    or the initial weights would outlive a short run. It is saved and loaded with the accelerator's
    states, so that a resumed run has the same.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.trained.items()}
        self._is_first = accelerator.is_main_process
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, of which the first is 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        trained: list[Tensor] = list(self.trained.values())
        torch._foreach_lerp_(list(self.average.values()), trained, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and their average."""
        for name, weight in self.trained.items():
            kept = weight.clone()
            weight.copy_(self.average[name])
            self.average[name] = kept

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Let the model have the average inside the `with`."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def _save(self, models: Any, weights: Any, folder: str) -> None:
        if self._is_first:
            save_file(self.average, Path(folder) / FILE_NAME)

    def _load(self, models: Any, folder: str) -> None:
        for name, value in load_file(Path(folder) / FILE_NAME).items():
            self.average[name].copy_(value)
