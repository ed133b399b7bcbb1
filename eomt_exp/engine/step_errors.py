"""Turns what can go wrong in a training step into what to do: a batch to look at, one that fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eomt_exp.contracts import Batch, is_out_of_memory
from eomt_exp.files import replacing


class NotFinite(ArithmeticError):
    """The loss or the gradient of a step is NaN or infinite; nothing was changed by it."""


def save_batch(batch: Batch, path: Path) -> None:
    """Write a batch as safetensors: images, `<i>.masks`, `.labels`, `.anomaly`, `.ignore`, names.

    The names are a JSON list in the file's metadata.
    """
    tensors = {"images": batch.images}
    for i, target in enumerate(batch.targets):
        parts = target._asdict().items()
        tensors |= {f"{i}.{name}": value for name, value in parts if isinstance(value, Tensor)}
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as scratch:
        save_file(on_cpu, scratch, {"names": json.dumps(batch.names)})


def images_that_fit(
    model: nn.Module, batch: Batch, size: int, reserve: int, compute: Callable[[Batch], Tensor]
) -> int:
    """Return how many images' gradients fit into memory: half as many as `size`, and so on; or 0.

    `compute` gives the loss of a batch. `reserve` bytes are kept free meanwhile, for what a whole
    step holds besides.
    """
    model.zero_grad()
    device = batch.images.device
    while size := size // 2:
        try:
            kept = torch.empty(reserve, dtype=torch.uint8, device=device)
            compute(_first(batch, size)).backward()
            del kept
            return size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        finally:
            model.zero_grad()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return 0


def _first(batch: Batch, count: int) -> Batch:
    """Return the first samples of a batch, with their copies."""
    rows = [
        row
        for row, target in enumerate(batch.targets)
        if (row if target.copy_of < 0 else target.copy_of) < count
    ]
    return Batch(
        batch.images[rows], [batch.targets[row] for row in rows], [batch.names[row] for row in rows]
    )
