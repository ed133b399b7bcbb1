"""Make the known classes equally likely on anomalies: Meta-OoD (Chan et al., ICCV 2021).

Its loss is the cross-entropy to the uniform distribution, here over p = L / sum L, where one query
alone makes it the published loss on that query's known classes. softmax(L) would not do: L lies in
about [0, 1], and is itself a softmax, so a pixel of a query that is 99.9 % sure has 0.0001 of the
gradient on that query's logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eomt_exp.contracts import ANOMALY, Loss, MaskOutput, Target
from eomt_exp.losses.cell_shares import mean_over_pixels, pixels_in_step
from eomt_exp.losses.matching import loss_dtype
from eomt_exp.ranges import NotNegative


class EntropyMaximisation(Loss):
    """Averages log sum_k L_k - mean_k log L_k over the anomalous pixels of the final output.

    It is log K at best, and goes with the score entropy, normalise=sum: how much evidence there is
    in all is left to other losses.
    """

    needs_anomalies = True

    def __init__(self, *, weight: NotNegative = 1.0) -> None:
        self.weight = weight

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the term "entropy_maximisation", which is 0 in a batch without an anomaly."""
        scores = output.semantic_scores()  # (B, K, h, w)
        scores = scores.to(loss_dtype(scores))
        # As in the score: under the smallest share, a class counts as not there.
        scores = scores.clamp(min=torch.finfo(scores.dtype).eps)
        to_uniform = scores.sum(dim=1).log() - scores.log().mean(dim=1)  # (B, h, w)
        anomalous = torch.stack([target.anomaly == ANOMALY for target in targets])  # (B, H, W)
        in_step = pixels_in_step(self.step, ANOMALY)
        mean = mean_over_pixels(to_uniform, anomalous, in_step)
        return {"entropy_maximisation": self.weight * mean}
