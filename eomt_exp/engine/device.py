"""Chooses the device and the precision of a run, and lets its processes agree."""

from __future__ import annotations

import gc
import logging
import os
from typing import TypeVar

import torch
from accelerate import Accelerator, DataLoaderConfiguration, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, set_seed

from eomt_exp.contracts import UserError
from eomt_exp.schema import Parallel, Precision, TrainerConfig

T = TypeVar("T")


def check_device(settings: TrainerConfig) -> None:
    """Raise UserError for a key that this machine, or one process, cannot do as it says."""
    cpu = _is_cpu(settings)
    parallel = None if settings.parallel is None else settings.parallel.value
    if any(os.environ.get(f"ACCELERATE_USE_{way}") == "true" for way in ("FSDP", "DEEPSPEED")):
        raise UserError(
            "accelerate config says FSDP or DeepSpeed, which trainer= is to say: type accelerate "
            "launch --multi_gpu -m eomt_exp … trainer=fsdp, or trainer=ddp."
        )
    if settings.device == "cuda" and cpu:
        raise UserError("trainer.device=cuda, and torch finds no GPU: type trainer.device=auto.")
    if settings.precision is Precision.fp16 and cpu:
        raise UserError("trainer.precision=fp16 needs a GPU: type trainer.precision=no, or bf16.")
    if parallel and num_processes() == 1:
        raise UserError(
            f"trainer.parallel={parallel} is for several processes, and this is one: type torchrun "
            "--nproc_per_node 2 -m eomt_exp … with a process a GPU, or trainer.parallel=null."
        )
    if parallel == "fsdp" and (cpu or settings.ema or settings.compile):
        raise UserError(
            "trainer.parallel=fsdp needs GPUs, trainer.ema=null and trainer.compile=false: type "
            "them, or trainer.parallel=ddp."
        )


def _is_cpu(settings: TrainerConfig) -> bool:
    return settings.device == "cpu" or not torch.cuda.is_available()


def make_accelerator(settings: TrainerConfig) -> Accelerator:
    """Return an Accelerator; forget the last one first with `forget_accelerator`."""
    check_device(settings)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs each file it saves
    cpu = _is_cpu(settings)
    is_fsdp = settings.parallel is Parallel.fsdp
    return Accelerator(
        cpu=cpu,
        fsdp_plugin=sharding() if is_fsdp else None,
        mixed_precision=resolve_precision(settings.precision, cpu),
        step_scheduler_with_optimizer=False,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )


def sharding() -> FullyShardedDataParallelPlugin:
    """Return FSDP2 that shards weights, gradients and optimiser state of the model as one unit.

    Not block by block: queries join the encoder half-way, so that its parts are called, and not its
    blocks, before whose own call FSDP would gather them. It casts nothing, as autocast does that.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy  # slow to import, and seldom wanted

    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=False,  # backward would ask for them all again
        auto_wrap_policy="no_wrap",
        state_dict_type="full_state_dict",
        mixed_precision_policy=MixedPrecisionPolicy(),
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
    if accelerator.distributed_type == DistributedType.FSDP:  # or the next is taken for set up
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
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


def num_processes() -> int:
    """Return how many processes torchrun or accelerate started, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def from_all(values: list[T]) -> list[T]:
    """Gather the values of all processes, one process after the other."""
    return values if num_processes() <= 1 else gather_object(values)


def agreed(value: T) -> T:
    """Give all processes the first one's value: decisions on files must not depend on timing."""
    if num_processes() <= 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]
