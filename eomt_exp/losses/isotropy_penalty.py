"""Penalise queries that are sure of their class without a reason: the project guide's "EIM".

It is a label-free penalty on the top probability, not the isotropy maximisation loss of Macêdo &
Ludermir (IsoMax+, arXiv 2105.14399), which has distances, prototypes and an entropic scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from eomt_exp.contracts import Loss, MaskOutput, Target, UserError
from eomt_exp.losses.cell_shares import share_on_anomalies
from eomt_exp.losses.matching import Matcher, loss_dtype, segmentation_truth
from eomt_exp.losses.mean_over_processes import mean_over_processes
from eomt_exp.ranges import NotNegative

Queries = Literal["all", "unmatched", "outlier"]


def excess_confidence(class_logits: Tensor, temperature: float) -> Tensor:
    """(..., C) -> (...): -log(sum_j e^(z_j/t) / (C max_j e^(z_j/t))), in [0, log C].

    Computed as log C + max_j log_softmax(z/t)_j = log C - H_inf: the guide's exponentials overflow.
    """
    log_probs = (class_logits / temperature).log_softmax(dim=-1)
    return math.log(class_logits.shape[-1]) + log_probs.amax(dim=-1)


class IsotropyPenalty(Loss):
    """Averages excess confidence over the chosen queries of the final output, over all C outputs.

    queries:
      all        every query, as the guide writes it. It fights the class loss, since a query that
                 rightly predicts "no object" is pulled to uniform too.
      unmatched  those which Hungarian matching gives no mask of the truth.
      outlier    every query, weighted by the share of its soft mask that lies on anomalies;
                 the weights carry no gradient, so that a mask cannot move away from the penalty.
    """

    def __init__(
        self,
        *,
        weight: NotNegative = 0.1,
        temperature: float = 1.0,
        queries: Queries = "all",
        num_points: int = 12544,
    ) -> None:
        if temperature <= 0:
            raise UserError(f"temperature must be above 0, got {temperature}.")
        self.weight = weight
        self.temperature = temperature
        self.queries = queries
        self.needs_anomalies = queries == "outlier"
        self.matcher = Matcher(num_points=num_points)  # "unmatched" only, costs as in EoMT

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the term "isotropy_penalty", which is 0 in a batch where no query is chosen."""
        logits = output.class_logits.to(loss_dtype(output.class_logits))
        excess = excess_confidence(logits, self.temperature)  # (B, Q)
        chosen = self._chosen(output, targets, excess)
        # At least 1, so that a batch without such a query gives 0, and a faint overlap little.
        mean = (chosen * excess).sum() / mean_over_processes(chosen.sum())
        return {"isotropy_penalty": self.weight * mean}

    @torch.no_grad()
    def _chosen(self, output: MaskOutput, targets: Sequence[Target], like: Tensor) -> Tensor:
        """Return how much each query counts, (B, Q) in [0, 1]."""
        if self.queries == "all":
            return torch.ones_like(like)
        if self.queries == "outlier":
            return share_on_anomalies(output.mask_logits.to(like.dtype), targets)
        truth = segmentation_truth(targets, like.dtype)
        pairs = self.matcher(output.mask_logits, output.class_logits, truth)
        return pairs.spread(torch.zeros_like(pairs.query), like.shape, 1).to(like.dtype)
