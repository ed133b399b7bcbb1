"""EoMT's own loss (Kerssies et al., CVPR 2025): classify the queries, shape the matched masks.

It is Mask2Former's loss (Cheng et al., CVPR 2022), and bit-equal to the official code under the
same seed as long as no pixel is marked `ignore`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from eomt_exp.contracts import MaskOutput, Target
from eomt_exp.losses.matching import Matcher, Pairs, Truth, gather_truth, loss_dtype
from eomt_exp.losses.point_sampling import points_ignored, sample_points, sample_uncertain_points


def masks_per_process(num_masks: int, device: torch.device) -> Tensor:
    """The mean number of masks over all processes, at least 1, so that each mask weighs the same.

    Without it, a process with few masks would give each of them a larger gradient.
    """
    count = torch.tensor(float(num_masks), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        count = count / distributed.get_world_size()
    return count.clamp(min=1.0)


def point_bce(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """(N, P) each -> scalar: cross-entropy averaged over the points that count, summed over N."""
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weights
    # The factor is exactly 1 when every point counts: that keeps the official bits.
    return (losses.mean(dim=1) * (weights.shape[1] / weights.sum(dim=1).clamp(min=1.0))).sum()


def point_dice(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """(N, P) each -> scalar: 1 - (2xy + 1) / (x + y + 1), summed over N."""
    probs, labels = logits.sigmoid() * weights, labels * weights
    overlap = 2 * (probs * labels).sum(dim=-1)
    return (1 - (overlap + 1) / (probs.sum(dim=-1) + labels.sum(dim=-1) + 1)).sum()


class MaskClassification:
    """Class, mask and dice term of the final output and of every supervised block, plainly summed.

    Pixels in no mask are plain negatives; only `Target.ignore` pixels are left out.
    """

    def __init__(
        self,
        *,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        class_weight: float = 2.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
    ) -> None:
        if no_object_weight <= 0:
            # A batch without any mask would otherwise divide 0 by 0.
            raise ValueError(f"no_object_weight must be above 0, got {no_object_weight}.")
        if oversample_ratio < 1 or not 0 <= importance_ratio <= 1:
            raise ValueError(
                "oversample_ratio must be at least 1 and importance_ratio within [0, 1], got "
                f"{oversample_ratio} and {importance_ratio}."
            )
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.class_weight = class_weight
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_ratio = importance_ratio
        self.matcher = Matcher(
            mask_cost=mask_weight,
            dice_cost=dice_weight,
            class_cost=class_weight,
            num_points=num_points,
        )

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted terms "mask", "dice" and "class", each the sum over all outputs.

        Raises ValueError if a mask has a class that the class head cannot say.
        """
        truth = gather_truth(
            [target.masks for target in targets],
            [target.labels for target in targets],
            [target.ignore for target in targets],
            loss_dtype(output.mask_logits),
        )
        check_labels(truth.labels, num_classes=output.class_logits.shape[-1] - 1)
        num_queries = output.class_logits.shape[1]
        num_masks = masks_per_process(
            sum(min(count, num_queries) for count in truth.counts), output.mask_logits.device
        )
        terms = [self._terms(one, truth, num_masks) for one in (*output.aux, output)]
        mask, dice, classes = (torch.stack(term).sum() for term in zip(*terms, strict=True))
        return {
            "mask": self.mask_weight * mask,
            "dice": self.dice_weight * dice,
            "class": self.class_weight * classes,
        }

    def _terms(
        self, output: MaskOutput, truth: Truth, num_masks: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask, dice and class loss of one output, unweighted."""
        pairs = self.matcher(output.mask_logits, output.class_logits, truth)
        mask, dice = self._mask_terms(output.mask_logits, pairs, truth)
        return mask / num_masks, dice / num_masks, self._class_term(output, pairs, truth)

    def _mask_terms(self, mask_logits: Tensor, pairs: Pairs, truth: Truth) -> tuple[Tensor, Tensor]:
        """(B, Q, h, w) -> BCE and dice over the matched masks, summed."""
        logits = mask_logits[pairs.image, pairs.query].to(truth.masks.dtype)  # (N, h, w)
        with torch.no_grad():
            points = sample_uncertain_points(
                logits,
                pairs.image,
                truth.cells,
                num_points=self.num_points,
                oversample_ratio=self.oversample_ratio,
                importance_ratio=self.importance_ratio,
            )
            labels = sample_rows(truth.masks, pairs.mask, points)  # (N, P)
            weights = torch.ones_like(labels)
            if truth.cells is not None:
                weights = weights * ~points_ignored(truth.cells, pairs.image, points)
        at_points = sample_points(logits, points)  # (N, P)
        return point_bce(at_points, labels, weights), point_dice(at_points, labels, weights)

    def _class_term(self, output: MaskOutput, pairs: Pairs, truth: Truth) -> Tensor:
        """Cross-entropy of all queries, a mean weighted by class: 1, and less for no-object."""
        logits = output.class_logits.to(truth.masks.dtype)
        no_object = logits.shape[-1] - 1
        states = pairs.spread(truth.labels[pairs.mask], logits.shape[:2], no_object)  # (B, Q)
        weight = logits.new_ones(no_object + 1)
        weight[no_object] = self.no_object_weight
        return F.cross_entropy(logits.transpose(1, 2), states, weight)


def sample_rows(masks: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Rows (N,) of (ΣM, H, W) masks, each read at its own (N, P, 2) points -> (N, P)."""
    if len(rows) != len(masks):  # more masks than queries: some have no pair
        return sample_points(masks[rows], points)
    # Sort the points instead of the masks, which at full resolution are far larger.
    back = rows.argsort()
    return sample_points(masks, points[back])[rows]


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise ValueError unless all (ΣM,) labels lie under num_classes."""
    largest = int(labels.max()) if len(labels) else -1
    if largest >= num_classes:
        raise ValueError(
            f"A mask has class {largest}, but the class head knows 0 to {num_classes - 1}. Give "
            "model and data the same classes; a class for pasted outliers comes with "
            "outlier_exposure.target=outlier_class."
        )
