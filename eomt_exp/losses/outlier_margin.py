"""Open a gap in an anomaly score between anomalous and normal pixels, by squared hinges.

It is the outlier loss of RbA (Nayal et al., ICCV 2023) and of energy fine-tuning (Liu et al.,
NeurIPS 2020) with any score. RbA's released margins (0 and 5) lie outside the range of its score,
where one hinge is always 0 and the other never; ours must be given with low < high.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.contracts import ANOMALY, NORMAL, Loss, MaskOutput, Scorer, Target, UserError
from eomt_exp.losses.cell_shares import mean_over_pixels, pixels_in_step
from eomt_exp.losses.matching import loss_dtype
from eomt_exp.ranges import NotNegative


class OutlierMargin(Loss):
    """Presses the score of anomalous pixels over `high` and that of normal ones under `low`.

    On the final output's grid of masks, each pixel's hinge takes the score of its cell, so a cell
    counts by its share of anomalous and of normal pixels. That is the loss at full resolution with
    scores repeated, at a sixteenth of the cost, and no small object is lost. The term has the name
    of the key it is configured at, which build says by `where`: one run may press several scores.
    """

    needs_anomalies = True

    def __init__(
        self,
        *,
        scorer: Scorer,
        low: float,
        high: float,
        weight: NotNegative = 1.0,
        where: str = "loss.outlier_margin",
    ) -> None:
        if not low < high:
            raise UserError(f"low must be under high, got low={low}, high={high}.")
        self.scorer = scorer
        self.low = low
        self.high = high
        self.weight = weight
        self.name = where.rpartition(".")[2]

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return its one term: mean hinge of the anomalous pixels + mean of the normal ones."""
        score = self.scorer(output)  # (B, h, w)
        score = score.to(loss_dtype(score))
        anomaly = torch.stack([target.anomaly for target in targets])  # (B, H, W), VOID in neither
        too_low = F.relu(self.high - score).square()
        too_high = F.relu(score - self.low).square()
        outlier, normal = (
            mean_over_pixels(hinge, anomaly == state, pixels_in_step(self.step, state))
            for hinge, state in ((too_low, ANOMALY), (too_high, NORMAL))
        )
        return {self.name: self.weight * (outlier + normal)}
