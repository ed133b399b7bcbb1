"""Chooses the device and the precision of a run, and lets its processes agree."""

from __future__ import annotations

import gc
import logging
import os
from typing import TypeVar

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from eomt_exp.schema import Precision, TrainerConfig

T = TypeVar("T")


def make_accelerator(settings: TrainerConfig) -> Accelerator:
    """Return an Accelerator; forget the last one first with `forget_accelerator`."""
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs each file it saves
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    return Accelerator(
        cpu=cpu,
        mixed_precision=resolve_precision(settings.precision, cpu),
        gradient_accumulation_steps=settings.accumulate,
        step_scheduler_with_optimizer=False,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )


def resolve_precision(precision: Precision, cpu: bool) -> str:
    """Resolve auto: bf16 where the hardware multiplies in it; emulated, it is slow."""
    if precision is not Precision.auto:
        return precision.value
    if not cpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    # Private names, so asked for with care: without them float32 is right, only slower.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16" if any(getattr(torch.cpu, p, bool)() for p in probes) else "no"


def forget_accelerator(accelerator: Accelerator) -> None:
    """Leave nothing behind for the next job of this process (Accelerate keeps global state)."""
    accelerator.free_memory()
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    GradientState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seed_everything(seed: int) -> None:
    """Seed weights and the losses' random points; data has its own function of the seed."""
    set_seed(seed)


def is_first_process() -> bool:
    """Return whether this process is the first that torchrun or accelerate started, or alone."""
    return int(os.environ.get("RANK", "0")) == 0


def from_all(values: list[T]) -> list[T]:
    """Gather the values of all processes, one process after the other."""
    return values if int(os.environ.get("WORLD_SIZE", "1")) <= 1 else gather_object(values)


def agreed(value: T) -> T:
    """Give all processes the first one's value: decisions on files must not depend on timing."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]
