"""Bring pixel truth to the grid of the masks without losing small objects: shares, not samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.contracts import ANOMALY, Target
from eomt_exp.losses.mean_over_processes import mean_over_processes


def share_of_cells(flags: Tensor, like: Tensor) -> Tensor:
    """(B, H, W) bool -> (B, h, w): the share of each cell's pixels that are flagged, in [0, 1].

    The grid and the dtype are those of `like` (..., h, w). A nearest or majority vote would lose
    every object smaller than a cell; a share keeps each pixel's vote, and void has none.
    """
    return F.adaptive_avg_pool2d(flags.to(like.dtype), (like.shape[-2], like.shape[-1]))


def mean_over_pixels(losses: Tensor, pixels: Tensor, in_step: Tensor | None = None) -> Tensor:
    """(B, h, w) losses of cells, (B, H, W) bool -> scalar: the mean over the chosen pixels.

    It is over those of all processes, and of all batches where their mean number is `in_step`.
    """
    shares = share_of_cells(pixels, losses)  # (B, h, w)
    pixels_per_cell = pixels[0].numel() / losses[0].numel()
    count = mean_over_processes(pixels.sum() if in_step is None else in_step)
    # A sum over a count, not a mean: a batch without an anomaly must give 0, not NaN.
    return (losses * shares).sum() * pixels_per_cell / count


def pixels_in_step(step: Sequence[Sequence[Target]], state: int) -> Tensor | None:
    """Return the mean number of pixels in this state over several batches; None of one alone."""
    if len(step) <= 1:
        return None
    counts = [(one.anomaly == state).sum() for batch in step for one in batch]
    return torch.stack(counts).sum() / len(step)


def share_on_anomalies(mask_logits: Tensor, targets: Sequence[Target]) -> Tensor:
    """(B, Q, h, w) -> (B, Q): the share of each soft mask that lies on anomalous pixels."""
    anomalous = torch.stack([target.anomaly == ANOMALY for target in targets])  # (B, H, W)
    shares = share_of_cells(anomalous, mask_logits)  # (B, h, w)
    masks = mask_logits.sigmoid()
    mass = masks.sum(dim=(-2, -1)).clamp(min=torch.finfo(masks.dtype).tiny)
    return torch.einsum("bqhw,bhw->bq", masks, shares) / mass
