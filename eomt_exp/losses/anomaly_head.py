"""Teach the anomaly head its three states from anomalies, by matching queries to masks.

Outlier exposure (Hendrycks et al., ICLR 2019) at the level of queries: a query matched to a known
mask is normal, one matched to the anomalies (pasted in, or labelled) an anomaly, and any other one
no object. Where known classes are not labelled, the class head says which queries show one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.contracts import ANOMALY, NO_OBJECT, NORMAL, VOID, Loss, MaskOutput, Target, UserError
from eomt_exp.losses.cell_shares import share_on_anomalies
from eomt_exp.losses.matching import NO_CLASS, Matcher, Truth, gather_truth, loss_dtype
from eomt_exp.losses.mean_over_processes import mean_over_processes
from eomt_exp.ranges import NotNegative


def known_and_outlier_masks(
    targets: Sequence[Target], num_classes: int, dtype: torch.dtype
) -> Truth:
    """Gather the known masks, and one mask of all anomalies (NO_CLASS) where there are any.

    A mask labelled K is the outlier mask already; it is left out, so as not to count twice.
    """
    anomalous = torch.stack([target.anomaly == ANOMALY for target in targets])  # (B, H, W)
    known = [target.labels < num_classes for target in targets]
    # The device is asked once, for all images, how many masks there will be.
    flags = torch.cat([anomalous.flatten(1).any(dim=1), *known]).tolist()
    has_outlier, is_known = flags[: len(targets)], iter(flags[len(targets) :])
    masks, labels = [], []
    for index, target in enumerate(targets):
        rows = [row for row in range(len(target.labels)) if next(is_known)]
        outlier = anomalous[index : index + has_outlier[index]]  # (1, H, W), or none of them
        no_class = target.labels.new_full((len(outlier),), NO_CLASS)
        masks.append(torch.cat([*(target.masks[row][None].bool() for row in rows), outlier]))
        labels.append(torch.cat([*(target.labels[row][None] for row in rows), no_class]))
    return gather_truth(masks, labels, [target.anomaly == VOID for target in targets], dtype)


@torch.no_grad()
def states_without_mask(output: MaskOutput, targets: Sequence[Target]) -> Tensor:
    """Return the state (B, Q) of queries that no mask is matched to.

    It is no object, unless pixels are labelled normal and no known class is: there, a query that
    the class head gives a known class, and whose mask lies mostly off the anomalies, is normal.
    """
    masks = output.mask_logits.to(loss_dtype(output.mask_logits))
    is_known = output.class_logits.argmax(dim=-1) < output.num_classes
    is_known &= share_on_anomalies(masks, targets) < 0.5
    lacks_classes = [
        (target.ignore & (target.anomaly == NORMAL)).any()
        & ~(target.labels < output.num_classes).any()
        for target in targets
    ]
    is_normal = is_known & torch.stack(lacks_classes)[:, None]
    return torch.where(is_normal, NORMAL, NO_OBJECT)


class AnomalyHeadLoss(Loss):
    """Computes the cross-entropy of the three states, on the final output.

    The anomalies have no class among the class head's, so they are matched by mask alone; known
    masks are matched as in the segmentation loss. Void pixels never count.
    """

    needs_anomalies = True

    def __init__(
        self,
        *,
        weight: NotNegative = 1.0,
        normal_weight: float = 1.0,
        anomaly_weight: float = 1.0,
        no_object_weight: float = 0.1,
        mask_cost: NotNegative = 5.0,
        dice_cost: NotNegative = 5.0,
        class_cost: NotNegative = 2.0,
        num_points: int = 12544,
    ) -> None:
        if min(normal_weight, anomaly_weight, no_object_weight) <= 0:
            # A batch of only that state would otherwise divide 0 by 0.
            raise UserError(
                "normal_weight, anomaly_weight and no_object_weight must be above 0, got "
                f"{normal_weight}, {anomaly_weight} and {no_object_weight}."
            )
        self.weight = weight
        self.state_weights = (normal_weight, anomaly_weight, no_object_weight)
        self.matcher = Matcher(
            mask_cost=mask_cost, dice_cost=dice_cost, class_cost=class_cost, num_points=num_points
        )

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the term "anomaly_head"; raise UserError if the model has no anomaly head."""
        if output.anomaly_logits is None:
            raise UserError(
                "The loss anomaly_head needs an anomaly head, got a model without one; add "
                "anomaly_head=query_only to the overrides."
            )
        dtype = loss_dtype(output.anomaly_logits)
        truth = known_and_outlier_masks(targets, output.num_classes, dtype)
        pairs = self.matcher(output.mask_logits, output.class_logits, truth)
        is_outlier = truth.labels[pairs.mask] == NO_CLASS  # (N,)
        matched = torch.full_like(pairs.mask, NORMAL).masked_fill(is_outlier, ANOMALY)
        logits = output.anomaly_logits.to(dtype)
        states = pairs.spread(matched, logits.shape[:2], -1)  # (B, Q)
        states = torch.where(states < 0, states_without_mask(output, targets), states)
        on_host = torch.tensor(self.state_weights, dtype=dtype)
        state_weights = on_host.to(logits.device, non_blocking=True)
        loss = F.cross_entropy(logits.transpose(1, 2), states, state_weights)
        own = state_weights[states].sum()
        loss = loss * (own / mean_over_processes(own, least=0.0))  # the mean over all of them
        return {"anomaly_head": self.weight * loss}
