"""Give each true mask the one query that says it best: DETR's Hungarian matching, at points.

Costs and constants are those of Mask2Former (Cheng et al., CVPR 2022), which EoMT trains with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.losses.point_sampling import ignored_cells, points_ignored, sample_points

NO_CLASS = -1
"""Label of a mask that is matched by its shape alone."""

COST_LIMIT = 1e10


class Truth(NamedTuple):
    """The masks of a whole batch, turned to numbers once for every output that is compared."""

    masks: Tensor  # (ΣM, H, W) float, image after image
    labels: Tensor  # (ΣM,) int64, or NO_CLASS
    counts: list[int]  # M of each image
    cells: Tensor | None  # (B, H + 1, W + 1) bool, see ignored_cells; None: nothing is left out


class Pairs(NamedTuple):
    """Which query was given which mask, all images in a row, queries rising within an image."""

    image: Tensor  # (N,) int64
    query: Tensor  # (N,) int64
    mask: Tensor  # (N,) int64, a row of Truth.masks

    def spread(self, values: Tensor, shape: torch.Size, fill: int) -> Tensor:
        """(N,) values of the pairs -> (B, Q), `fill` for the queries without a mask."""
        spread = torch.full(shape, fill, dtype=values.dtype, device=values.device)
        spread[self.image, self.query] = values
        return spread


def gather_truth(
    masks: Sequence[Tensor], labels: Sequence[Tensor], ignore: Sequence[Tensor], dtype: torch.dtype
) -> Truth:
    """Per image (M, H, W) bool masks, (M,) labels and (H, W) bool pixels to leave out -> Truth."""
    left_out = torch.stack(list(ignore))  # (B, H, W)
    return Truth(
        masks=torch.cat(list(masks)).to(dtype),
        labels=torch.cat(list(labels)),
        counts=[len(one) for one in masks],
        cells=ignored_cells(left_out) if bool(left_out.any()) else None,
    )


def loss_dtype(logits: Tensor) -> torch.dtype:
    """Losses are computed in float32 at least: half precision cannot sum 12544 points."""
    return torch.promote_types(logits.dtype, torch.float32)


def pairwise_mask_costs(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, P) logits, (M, P) labels in [0, 1], (P,) weights -> BCE and dice cost, each (Q, M).

    BCE(x, y) = softplus(x) - x y, so one product per pair serves for what the official code takes
    two of (measured there: 4.7 times faster, equal to 3e-7).
    """
    weighted = labels * weights  # (M, P)
    bce = (F.softplus(logits) @ weights)[:, None] - logits @ weighted.T
    probs = logits.sigmoid()
    overlap = probs @ weighted.T
    total = (probs @ weights)[:, None] + weighted.sum(dim=1)[None]
    return bce / weights.sum().clamp(min=1.0), 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


class Matcher:
    """Costs of every query against every mask, and the cheapest one-to-one assignment."""

    def __init__(
        self,
        *,
        mask_cost: float = 5.0,
        dice_cost: float = 5.0,
        class_cost: float = 2.0,
        num_points: int = 12544,
    ) -> None:
        self.mask_cost = mask_cost
        self.dice_cost = dice_cost
        self.class_cost = class_cost
        self.num_points = num_points

    @torch.no_grad()
    def __call__(self, mask_logits: Tensor, class_logits: Tensor, truth: Truth) -> Pairs:
        """(B, Q, h, w), (B, Q, C) -> the pairs. Masks labelled NO_CLASS have no class cost."""
        dtype = truth.masks.dtype
        costs = [
            self._costs(index, logits.to(dtype), probs, masks, labels, truth.cells)
            for index, (logits, probs, masks, labels) in enumerate(
                zip(
                    mask_logits,
                    class_logits.to(dtype).softmax(dim=-1),
                    truth.masks.split(truth.counts),
                    truth.labels.split(truth.counts),
                    strict=True,
                )
            )
        ]
        # The only wait for the device: the costs of all images travel in one piece.
        return assign(torch.cat(costs, dim=1), truth.counts)

    def _costs(
        self,
        index: int,
        logits: Tensor,
        probs: Tensor,
        masks: Tensor,
        labels: Tensor,
        cells: Tensor | None,
    ) -> Tensor:
        """One image: (Q, h, w), (Q, C), (M, H, W), (M,) -> (Q, M)."""
        points = torch.rand(1, self.num_points, 2, device=logits.device, dtype=logits.dtype)
        weights = torch.ones_like(points[0, :, 0])  # (P,)
        if cells is not None:
            image = torch.full((1,), index, device=points.device)
            weights = weights * ~points_ignored(cells, image, points)[0]
        at_queries = sample_points(logits, points.expand(len(logits), -1, -1))  # (Q, P)
        at_masks = sample_points(masks, points.expand(len(masks), -1, -1))  # (M, P)
        bce, dice = pairwise_mask_costs(at_queries, at_masks, weights)
        # NO_CLASS reads the last column, and counts for nothing.
        likeness = probs[:, labels] * (labels != NO_CLASS)
        cost = self.mask_cost * bce + self.dice_cost * dice - self.class_cost * likeness
        return cost.clamp(-COST_LIMIT, COST_LIMIT).nan_to_num(0.0)


def assign(costs: Tensor, counts: Sequence[int]) -> Pairs:
    """(Q, ΣM) costs, M masks of each image -> the cheapest pairs, min(Q, M) of each image."""
    images, queries, masks = [], [], []
    offset = 0
    for index, block in enumerate(costs.cpu().split(list(counts), dim=1)):
        rows, columns = (torch.as_tensor(side) for side in linear_sum_assignment(block.numpy()))
        images.append(torch.full_like(rows, index))
        queries.append(rows)
        masks.append(columns + offset)
        offset += block.shape[1]
    rows = torch.stack([torch.cat(images), torch.cat(queries), torch.cat(masks)])
    return Pairs(*rows.to(costs.device))
