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
    """The loss or the gradient of a step is NaN or infinite; the weights are as they were."""


def save_batch(batch: Batch, path: Path) -> None:
    """Write images, `<i>.masks`, `.labels`, `.anomaly` and `.ignore` as safetensors.

    The names are a JSON list in the file's metadata.
    """
    tensors = {"images": batch.images}
    for i, target in enumerate(batch.targets):
        tensors |= {f"{i}.{k}": v for k, v in target._asdict().items() if isinstance(v, Tensor)}
    on_cpu = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as scratch:
        save_file(on_cpu, scratch, {"names": json.dumps(batch.names)})


def images_that_fit(
    model: nn.Module, batch: Batch, size: int, moments: int, loss_of: Callable[[Batch], Tensor]
) -> int:
    """Return how many images' gradients fit into memory: half as many as `size`, and so on; or 0.

    They are computed to find out. `moments` bytes are for what the optimiser has yet to make.
    """
    device = batch.images.device
    while size := size // 2:
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        copied = [target.copy_of for target in batch.targets]
        rows = [row for row, of in enumerate(copied) if (row if of < 0 else of) < size]
        targets, names = [batch.targets[row] for row in rows], [batch.names[row] for row in rows]
        try:
            _kept = torch.empty(moments, dtype=torch.uint8, device=device)
            loss_of(Batch(batch.images[rows], targets, names)).backward()
            return size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return 0
