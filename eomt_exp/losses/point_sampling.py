"""Compare masks at points, not pixels: PointRend (Kirillov et al., CVPR 2020) as in Mask2Former.

Points are (x, y) in [0, 1] of the image, so masks on all grids are read at the same positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.contracts import UserError


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read (N, H, W) float maps bilinearly, each at its own (N, P, 2) points -> (N, P).

    Points (1, P, 2) are shared by all maps. Those within half a pixel of the border blend with 0,
    as in the official loss.
    """
    # Expanded after the arithmetic, so that shared points are turned into a grid only once.
    grid = (2.0 * points - 1.0).unsqueeze(2).expand(len(maps), -1, -1, -1)  # (N, P, 1, 2)
    return F.grid_sample(maps.unsqueeze(1), grid, align_corners=False)[:, 0, :, 0]


def ignored_cells(ignore: Tensor) -> Tensor:
    """(B, H, W) bool pixels -> (B, H + 1, W + 1) bool cells between pixel centres.

    A bilinear sample blends the four pixels around its cell; the cell is out as soon as one of
    them is. So a pixel left out has no influence at all, not even on the samples beside it.
    """
    padded = F.pad(ignore, (1, 1, 1, 1))
    rows = padded[:, 1:] | padded[:, :-1]
    return rows[:, :, 1:] | rows[:, :, :-1]


def points_ignored(cells: Tensor, image: Tensor, points: Tensor) -> Tensor:
    """Tell whether each of (N, P, 2) points lies in a cell left out of its image (N,) -> (N, P)."""
    # Plain numbers, not a tensor of (W, H): making one on a GPU would wait for the GPU.
    column = (points[..., 0] * (cells.shape[2] - 1) + 0.5).long()
    row = (points[..., 1] * (cells.shape[1] - 1) + 0.5).long()
    return cells[image[:, None], row, column]


class Candidates(NamedTuple):
    """Holds the random points of one output, drawn before the matching."""

    drawn: Tensor  # (N, oversample_ratio * P, 2), of which the most undecided are kept
    uniform: Tensor  # (N, U, 2), used as they are


class PointSampler:
    """Chooses points per mask, most of them where the predicted mask is undecided.

    Of oversample_ratio * P points the importance_ratio * P of smallest |logit| are kept, and
    uniform ones fill up to P.
    """

    def __init__(
        self, *, num_points: int, oversample_ratio: float, importance_ratio: float
    ) -> None:
        if num_points < 1:
            raise UserError(f"num_points must be at least 1, got {num_points}.")
        if oversample_ratio < 1 or not 0 <= importance_ratio <= 1:
            raise UserError(
                "oversample_ratio must be at least 1 and importance_ratio within [0, 1], got "
                f"{oversample_ratio} and {importance_ratio}."
            )
        self.num_points = num_points
        self.num_drawn = int(num_points * oversample_ratio)
        self.num_kept = int(importance_ratio * num_points)

    def draw(self, num_masks: int, like: Tensor) -> Candidates:
        """Draw for N masks, in the device and dtype of `like`, the official code's two draws."""

        def points(count: int) -> Tensor:
            return torch.rand(num_masks, count, 2, device=like.device, dtype=like.dtype)

        return Candidates(points(self.num_drawn), points(self.num_points - self.num_kept))

    def choose(
        self, logits: Tensor, candidates: Candidates, image: Tensor, cells: Tensor | None
    ) -> Tensor:
        """(N, h, w) mask logits -> (N, P, 2). Points in `cells` of their image (N,) come last."""
        uncertainty = -sample_points(logits, candidates.drawn).abs()  # (N, drawn)
        if cells is not None:
            # Nothing trains a region left out: its logits stay near 0 and would always be chosen.
            out = points_ignored(cells, image, candidates.drawn)
            uncertainty = uncertainty.masked_fill(out, -torch.inf)
        # Its default order, ties and all, is the order in which the official loss adds up.
        kept = uncertainty.topk(self.num_kept, dim=1).indices  # (N, kept)
        # A point moves as one complex number: 20 times faster here than two floats by themselves.
        uncertain = torch.view_as_real(torch.view_as_complex(candidates.drawn).gather(1, kept))
        return torch.cat([uncertain, candidates.uniform], dim=1)
