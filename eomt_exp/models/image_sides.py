"""Refuse images whose sides a convolutional or hierarchical encoder would round."""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import UserError


def check_sides(images: Tensor, stride: int, model: str) -> None:
    """Raise UserError unless `stride` divides H and W of (B, 3, H, W); `model` is its option."""
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        sides = ",".join(str(max(stride, round(n / stride) * stride)) for n in (height, width))
        raise UserError(
            f"model={model} needs sides that {stride} divides, got {height} x {width}; "
            f"type data.image_size=[{sides}]."
        )
