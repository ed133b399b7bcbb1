"""Classify queries and shape the matched masks by EoMT's loss (Kerssies et al., CVPR 2025).

It is Mask2Former's loss (Cheng et al., CVPR 2022), and bit-equal to the official code under the
same seed as long as no pixel is marked `ignore`. How many pairs there will be is known before the
matching, so all random numbers are drawn first, in the official order, and the matching of all
outputs becomes one trip to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.contracts import Loss, MaskOutput, Target, UserError
from eomt_exp.losses.matching import Matcher, Pairs, Truth, loss_dtype, segmentation_truth
from eomt_exp.losses.mean_over_processes import mean_over_processes
from eomt_exp.losses.point_sampling import Candidates, PointSampler, sample_points
from eomt_exp.ranges import NotNegative


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


class MaskClassification(Loss):
    """Sums class, mask and dice term of the final output and of every supervised block.

    Each mask, and in the class term each query by its weight, counts the same in all batches and
    processes of an optimiser step.
    Pixels in no mask are plain negatives; only `Target.ignore` pixels are left out. The random
    points of O outputs and N pairs are held at once, 26 * O * N * num_points bytes by default:
    0.5 GB for 16 images that each show all 19 classes of Cityscapes and O = 5.
    """

    needs_anomalies = False

    def __init__(
        self,
        *,
        mask_weight: NotNegative = 5.0,
        dice_weight: NotNegative = 5.0,
        class_weight: NotNegative = 2.0,
        no_object_weight: float = 0.1,
        class_weights: str | dict[str, float] | None = None,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
    ) -> None:
        if no_object_weight <= 0:
            # A batch without any mask would otherwise divide 0 by 0.
            raise UserError(f"no_object_weight must be above 0, got {no_object_weight}.")
        given = class_weights.values() if isinstance(class_weights, dict) else [1.0]
        if (isinstance(class_weights, str) and class_weights != "auto") or min(
            given, default=1
        ) <= 0:
            raise UserError(
                "loss.mask_classification.class_weights must be null, auto, or names of classes "
                f"with weights above 0, such as {{person: 2.0}}; got {class_weights}."
            )
        self.class_weights = class_weights
        self._known_weights: Tensor | None = None  # (K,), of the known classes
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.class_weight = class_weight
        self.no_object_weight = no_object_weight
        self.sampler = PointSampler(
            num_points=num_points,
            oversample_ratio=oversample_ratio,
            importance_ratio=importance_ratio,
        )
        self.matcher = Matcher(
            mask_cost=mask_weight,
            dice_cost=dice_weight,
            class_cost=class_weight,
            num_points=num_points,
        )

    def weigh_classes(self, names: Sequence[str], counts: Sequence[int]) -> None:
        """Turn `class_weights` into numbers, given each class's name and its training images.

        auto is median frequency balancing (Eigen & Fergus, ICCV 2015) of the masks, of which an
        image has one for each class it shows: median_k(n_k) / n_c; a class of no image has 1.
        Raises UserError for a name that no class has.
        """
        if isinstance(self.class_weights, dict):
            if unknown := self.class_weights.keys() - set(names):
                raise UserError(
                    f"loss.mask_classification.class_weights names {', '.join(sorted(unknown))}; "
                    f"the classes are {', '.join(names)}."
                )
            weights = [self.class_weights.get(name, 1.0) for name in names]
        else:
            middle = median([count for count in counts if count] or [1])
            weights = [middle / count if count else 1.0 for count in counts]
        self._known_weights = torch.tensor(weights)

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return weighted terms "mask", "dice" and "class", each the sum over all outputs.

        Raises UserError if a mask has a class that the class head does not have.
        """
        outputs = (*output.aux, output)
        truth = segmentation_truth(targets, loss_dtype(output.mask_logits))
        truth, pairs, candidates = self._match(outputs, truth)
        weight = self._weight_of_states(output, truth)
        batches = self.step or [targets]
        num_queries = output.class_logits.shape[1]
        in_step = torch.stack([amounts(batch, num_queries, weight) for batch in batches])
        masks, of_queries = in_step.sum(dim=0) / len(batches)
        num_masks = mean_over_processes(masks, least=1.0 / len(batches))
        own, mean = amounts(targets, num_queries, weight)[1], mean_over_processes(of_queries, 0.0)
        mask, dice = self._mask_terms(outputs, pairs, candidates, truth, num_masks)
        classes = [
            # What is a mean over this batch becomes one over all; alone, the factor is exactly 1.
            self._class_term(*one, truth, weight) * (own / mean)
            for one in zip(outputs, pairs, strict=True)
        ]
        # Weighted first and added one by one, for the official bits.
        weighted = {
            "mask": [self.mask_weight * term for term in mask],
            "dice": [self.dice_weight * term for term in dice],
            "class": [self.class_weight * term for term in classes],
        }
        return {name: reduce(torch.add, terms) for name, terms in weighted.items()}

    def _match(
        self, outputs: Sequence[MaskOutput], truth: Truth
    ) -> tuple[Truth, list[Pairs], list[Candidates]]:
        """Return the truth without empty `cells`, and each output's pairs and random points."""
        num_queries, num_states = outputs[-1].class_logits.shape[1:]
        num_pairs = truth.num_pairs(num_queries)
        points, candidates = [], []
        for _ in outputs:
            points.append(self.matcher.draw(truth))
            candidates.append(self.sampler.draw(num_pairs, truth.masks))
        matched = self.matcher.match(
            [one.mask_logits for one in outputs],
            [one.class_logits for one in outputs],
            points,
            truth,
        )
        if matched.largest_label >= num_states - 1:
            raise UserError(
                f"A mask has class {matched.largest_label}, but the class head knows 0 to "
                f"{num_states - 2}. Give model and data the same classes; a class for pasted "
                "outliers comes with outlier_exposure.target=outlier_class."
            )
        if not matched.any_ignored:
            truth = truth._replace(cells=None)
        return truth, matched.pairs, candidates

    def _mask_terms(
        self,
        outputs: Sequence[MaskOutput],
        pairs: Sequence[Pairs],
        candidates: Sequence[Candidates],
        truth: Truth,
        num_masks: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Compute BCE and dice over the matched masks of each output, unweighted."""
        logits = [
            one.mask_logits[pair.image, pair.query].to(truth.masks.dtype)  # (N, h, w)
            for one, pair in zip(outputs, pairs, strict=True)
        ]
        with torch.no_grad():
            points = [
                self.sampler.choose(masks, drawn, pair.image, truth.cells)  # (N, P, 2)
                for masks, drawn, pair in zip(logits, candidates, pairs, strict=True)
            ]
            labels = read_pairs(truth.masks, [pair.mask for pair in pairs], points)
        bce, dice = [], []
        for masks, pair, where, label in zip(logits, pairs, points, labels, strict=True):
            weights = truth.weights(pair.image, where)
            at_points = sample_points(masks, where)  # (N, P)
            bce.append(point_bce(at_points, label, weights) / num_masks)
            dice.append(point_dice(at_points, label, weights) / num_masks)
        return bce, dice

    def _weight_of_states(self, output: MaskOutput, truth: Truth) -> Tensor:
        """Return the weight of each class output in the class term, (C,); 1 of an outlier class."""
        weight = truth.masks.new_ones(output.class_logits.shape[-1])
        weight[-1].fill_(self.no_object_weight)
        if self._known_weights is not None:
            self._known_weights = self._known_weights.to(weight)  # once
            weight[: len(self._known_weights)] = self._known_weights
        return weight

    def _class_term(self, output: MaskOutput, pairs: Pairs, truth: Truth, weight: Tensor) -> Tensor:
        """Return the cross-entropy of all queries, a mean with the weights of their states."""
        logits = output.class_logits.to(truth.masks.dtype)
        no_object = logits.shape[-1] - 1
        states = pairs.spread(truth.labels[pairs.mask], logits.shape[:2], no_object)  # (B, Q)
        return F.cross_entropy(logits.transpose(1, 2), states, weight)


def amounts(targets: Sequence[Target], num_queries: int, weight: Tensor) -> Tensor:
    """Return how many masks a batch has, and the weight in all of its queries' states, (2,).

    `weight` (C,) is of each state, the last of which is no-object. Both are known before the
    matching, unless an image has more masks than there are queries and their weights differ.
    """
    counts = [min(len(target.labels), num_queries) for target in targets]
    labels = torch.cat([target.labels[:num_queries] for target in targets])
    idle = len(targets) * num_queries - sum(counts)
    # Not torch.tensor, which would copy from the host and wait for it.
    of_queries = weight[labels.clamp(max=len(weight) - 1)].sum() + weight[-1] * idle
    return torch.stack([torch.full_like(of_queries, float(sum(counts))), of_queries])


def read_pairs(
    masks: Tensor, rows: Sequence[Tensor], points: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Read each output's rows (N,) of (ΣM, H, W) masks at their own points (N, P, 2) -> (N, P).

    The points go to the masks, not the masks to the points: at full resolution a mask is far
    larger. A mask without a pair is read at its corner, and the result is not used.
    """
    num_points = points[0].shape[1]
    by_mask = points[0].new_zeros(len(masks), len(rows), num_points, 2)
    for index, (row, own) in enumerate(zip(rows, points, strict=True)):
        by_mask[row, index] = own
    read = sample_points(masks, by_mask.flatten(1, 2)).unflatten(1, (len(rows), num_points))
    return tuple(read[row, index] for index, row in enumerate(rows))
