"""Compare masks at points, not pixels: PointRend (Kirillov et al., CVPR 2020) as in Mask2Former.

Points are (x, y) in [0, 1] of the picture, so a mask on any grid is read at the same place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """(N, H, W) float maps read bilinearly at (N, P, 2) points -> (N, P).

    Points within half a pixel of the border blend with 0, as in the official loss.
    """
    grid = 2.0 * points.unsqueeze(2) - 1.0  # (N, P, 1, 2)
    return F.grid_sample(maps.unsqueeze(1), grid, align_corners=False)[:, 0, :, 0]


def ignored_cells(ignore: Tensor) -> Tensor:
    """(B, H, W) bool pixels -> (B, H + 1, W + 1) bool cells between pixel centres.

    A bilinear sample blends the four pixels around its cell; the cell is out as soon as one of
    them is. So a pixel left out has no influence at all, not even on the samples beside it.
    """
    return F.max_pool2d(ignore.float(), kernel_size=2, stride=1, padding=1) > 0


def points_ignored(cells: Tensor, image: Tensor, points: Tensor) -> Tensor:
    """Whether each of (N, P, 2) points lies in a cell left out of its image (N,) -> (N, P)."""
    size = points.new_tensor([cells.shape[2] - 1, cells.shape[1] - 1])  # W, H
    column, row = (points * size + 0.5).long().unbind(dim=-1)
    return cells[image[:, None], row, column]


def sample_uncertain_points(
    logits: Tensor,
    image: Tensor,
    cells: Tensor | None,
    *,
    num_points: int,
    oversample_ratio: float,
    importance_ratio: float,
) -> Tensor:
    """(N, h, w) mask logits -> (N, P, 2) points, most of them where the mask is undecided.

    Draws oversample_ratio * P points, keeps the importance_ratio * P of smallest |logit| and fills
    up with uniform ones. The order of the two draws is the official one, so that the same seed
    gives the same points. Points in `cells` (of their image (N,)) are the last to be kept.
    """
    num_masks, device, dtype = logits.shape[0], logits.device, logits.dtype
    num_drawn = int(num_points * oversample_ratio)
    num_kept = int(importance_ratio * num_points)
    drawn = torch.rand(num_masks, num_drawn, 2, device=device, dtype=dtype)
    uncertainty = -sample_points(logits, drawn).abs()  # (N, drawn)
    if cells is not None:
        # Nothing trains a region left out: its logits stay near 0 and would win every draw.
        uncertainty = uncertainty.masked_fill(points_ignored(cells, image, drawn), -torch.inf)
    kept = uncertainty.topk(num_kept, dim=1).indices  # (N, kept)
    uncertain = drawn.gather(1, kept.unsqueeze(-1).expand(-1, -1, 2))
    if num_kept == num_points:
        return uncertain
    uniform = torch.rand(num_masks, num_points - num_kept, 2, device=device, dtype=dtype)
    return torch.cat([uncertain, uniform], dim=1)
