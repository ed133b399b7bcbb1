"""Give each true mask the one query that fits it best: DETR's Hungarian matching, at points.

Costs and constants are those of Mask2Former (Cheng et al., CVPR 2022), which EoMT trains with.
The assignment runs on the host, so a GPU has to be waited for; here that happens once, however
many images and outputs there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.contracts import Target
from eomt_exp.losses.point_sampling import ignored_cells, points_ignored, sample_points

NO_CLASS = -1
"""This label marks a mask that is matched by its shape alone."""

COST_LIMIT = 1e10


class Truth(NamedTuple):
    """Holds the masks of a whole batch, turned to numbers once for every output to compare."""

    masks: Tensor  # (ΣM, H, W) float, image after image
    labels: Tensor  # (ΣM,) int64, or NO_CLASS
    counts: list[int]  # M of each image
    cells: Tensor | None  # (B, H + 1, W + 1) bool, see ignored_cells; None: nothing is left out

    def num_pairs(self, num_queries: int) -> int:
        """Return N, the number of pairs, which is known before the matching."""
        return sum(min(count, num_queries) for count in self.counts)

    def weights(self, image: Tensor, points: Tensor) -> Tensor:
        """(N,) images, (N, P, 2) points -> (N, P): 0 for points that do not count, else 1."""
        if self.cells is None:
            return torch.ones_like(points[..., 0])
        return (~points_ignored(self.cells, image, points)).to(points.dtype)


class Pairs(NamedTuple):
    """Says which query was given which mask: image after image, queries rising within one."""

    image: Tensor  # (N,) int64
    query: Tensor  # (N,) int64
    mask: Tensor  # (N,) int64, a row of Truth.masks

    def spread(self, values: Tensor, shape: torch.Size, fill: int) -> Tensor:
        """(N,) values of the pairs -> (B, Q), `fill` for the queries without a mask."""
        spread = torch.full(shape, fill, dtype=values.dtype, device=values.device)
        spread[self.image, self.query] = values
        return spread


class Assignment(NamedTuple):
    """Holds what the host returns: the pairs, and facts that only the device had on the truth."""

    pairs: list[Pairs]  # of each output
    largest_label: int  # -1 in a batch without masks
    any_ignored: bool  # whether a single pixel is left out


def gather_truth(
    masks: Sequence[Tensor], labels: Sequence[Tensor], ignore: Sequence[Tensor], dtype: torch.dtype
) -> Truth:
    """Join per image (M, H, W) bool masks, (M,) labels and (H, W) bool pixels to leave out."""
    return Truth(
        masks=torch.cat(list(masks)).to(dtype),
        labels=torch.cat(list(labels)),
        counts=[len(one) for one in masks],
        # Also where no pixel is left out: to find out would be to wait for the device.
        cells=ignored_cells(torch.stack(list(ignore))),
    )


def segmentation_truth(targets: Sequence[Target], dtype: torch.dtype) -> Truth:
    """Gather the labelled masks of all images; `ignore` pixels are left out."""
    masks, labels, _, ignore, _ = zip(*targets, strict=True)
    return gather_truth(masks, labels, ignore, dtype)


def loss_dtype(logits: Tensor) -> torch.dtype:
    """Return float32 at least, for losses: half precision cannot sum 12544 points."""
    return torch.promote_types(logits.dtype, torch.float32)


def pairwise_mask_costs(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, P) logits, (M, P) labels in [0, 1], (P,) weights -> BCE and dice cost, each (Q, M).

    BCE(x, y) = softplus(x) - x y, so one product per pair serves for what the official code takes
    two of (measured there: 4.7 times faster, equal to 3e-7).
    """
    weighted = labels * weights  # (M, P)
    probs = logits.sigmoid()
    # The few masks come first in the products: a CPU takes twice as long the other way round.
    bce = F.softplus(logits) @ weights - weighted @ logits.T  # (M, Q) after broadcasting
    overlap = weighted @ probs.T
    total = probs @ weights + weighted.sum(dim=1, keepdim=True)
    dice = 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)
    return (bce / weights.sum().clamp(min=1.0)).T, dice.T


class Matcher:
    """Finds the cheapest one-to-one assignment from costs of every query against every mask."""

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

    def __call__(self, mask_logits: Tensor, class_logits: Tensor, truth: Truth) -> Pairs:
        """(B, Q, h, w), (B, Q, C) -> the pairs. Masks labelled NO_CLASS have no class cost."""
        points = self.draw(truth)
        return self.match([mask_logits], [class_logits], [points], truth).pairs[0]

    def draw(self, truth: Truth) -> Tensor:
        """Draw (B, P, 2) random points, image after image, as the official code does."""
        like = truth.masks
        shape = (1, self.num_points, 2)
        return torch.cat(
            [torch.rand(shape, device=like.device, dtype=like.dtype) for _ in truth.counts]
        )

    @torch.no_grad()
    def match(
        self,
        mask_logits: Sequence[Tensor],
        class_logits: Sequence[Tensor],
        points: Sequence[Tensor],
        truth: Truth,
    ) -> Assignment:
        """Match each output, (B, Q, h, w), (B, Q, C) and (B, P, 2) points -> the pairs of each."""
        probs = [one.to(truth.masks.dtype).softmax(dim=-1) for one in class_logits]
        # Image by image on purpose: all images at once took longer, on a CPU, and more memory.
        costs = [
            self._costs(
                [one[index] for one in mask_logits],
                [one[index] for one in probs],
                torch.stack([one[index] for one in points]),
                truth,
                index,
            )
            for index in range(len(truth.counts))
        ]
        return assign(torch.cat(costs, dim=2), truth)

    def _costs(
        self,
        mask_logits: Sequence[Tensor],
        probs: Sequence[Tensor],
        points: Tensor,
        truth: Truth,
        index: int,
    ) -> Tensor:
        """Compute the costs of image `index`, (O, Q, M) of O outputs.

        Each has (Q, h, w) logits, (Q, C) probabilities and (P, 2) points.
        """
        first = sum(truth.counts[:index])
        own = slice(first, first + truth.counts[index])
        labels = truth.labels[own]
        # The masks are read at all points at once: an image stays in the cache.
        masks = sample_points(truth.masks[own], points.flatten(0, 1)[None])  # (M, O * P)
        weights = truth.weights(torch.full((len(points),), index, device=points.device), points)
        costs = []
        for logits, known, where, at_masks, weight in zip(
            mask_logits, probs, points, masks.chunk(len(points), dim=1), weights, strict=True
        ):
            at_queries = sample_points(logits.to(masks.dtype), where[None])  # (Q, P)
            bce, dice = pairwise_mask_costs(at_queries, at_masks, weight)
            # A label the head does not have is refused after the transfer; it may not crash here.
            of_class = known[:, labels.clamp(0, known.shape[1] - 1)] * (labels != NO_CLASS)
            costs.append(self.mask_cost * bce + self.dice_cost * dice - self.class_cost * of_class)
        return torch.stack(costs).clamp(-COST_LIMIT, COST_LIMIT).nan_to_num(0.0)


def assign(costs: Tensor, truth: Truth) -> Assignment:
    """(O, Q, ΣM) costs -> the cheapest pairs, min(Q, M) of each image, for each of O outputs."""
    nothing = truth.labels.new_full((1,), -1)
    largest = torch.cat([truth.labels, nothing]).max()
    ignored = torch.zeros_like(largest) if truth.cells is None else truth.cells.any()
    facts = torch.stack([largest, ignored]).to(costs)
    host = on_host(torch.cat([costs.flatten(), facts]))
    pairs = [cheapest_pairs(one, truth.counts) for one in host[:-2].reshape(costs.shape)]
    # One piece again, without a wait: what leaves numpy's memory is copied at once.
    back = torch.from_numpy(np.stack(pairs)).to(costs.device, non_blocking=True)  # (O, 3, N)
    return Assignment([Pairs(*one) for one in back], int(host[-2]), bool(host[-1]))


def on_host(values: Tensor) -> np.ndarray:
    """Copy to the host, the only wait for the device in a matching."""
    return values.cpu().numpy()


def cheapest_pairs(costs: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """(Q, ΣM) costs, M masks of each image -> (3, N): images, queries, masks."""
    pairs, offset = [], 0
    for image, count in enumerate(counts):
        queries, masks = linear_sum_assignment(costs[:, offset : offset + count])
        pairs.append(np.stack([np.full_like(queries, image), queries, masks + offset]))
        offset += count
    return np.concatenate(pairs, axis=1)
