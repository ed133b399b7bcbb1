"""Bring pixel truth to the grid of the masks without losing small objects: shares, not samples."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def share_of_cells(flags: Tensor, like: Tensor) -> Tensor:
    """(B, H, W) bool -> (B, h, w): the share of each cell's pixels that are flagged, in [0, 1].

    The grid and the dtype are those of `like` (..., h, w). A nearest or majority vote would lose
    every object smaller than a cell; a share keeps each pixel's vote, and void has none.
    """
    return F.adaptive_avg_pool2d(flags.to(like.dtype), (like.shape[-2], like.shape[-1]))
