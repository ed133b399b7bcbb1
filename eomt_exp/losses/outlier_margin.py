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

from eomt_exp.contracts import ANOMALY, NORMAL, MaskOutput, Scorer, Target, UserError
from eomt_exp.losses.cell_shares import share_of_cells
from eomt_exp.losses.matching import loss_dtype


class OutlierMargin:
    """Presses the score of anomalous pixels over `high` and that of normal ones under `low`.

    On the final output's grid of masks, each pixel's hinge takes the score of its cell, so a cell
    counts by its share of anomalous and of normal pixels. That is the loss at full resolution with
    scores repeated, at a sixteenth of the cost, and no small object is lost.
    """

    needs_anomalies = True

    def __init__(self, *, scorer: Scorer, low: float, high: float, weight: float = 1.0) -> None:
        if not low < high:
            raise UserError(f"low must be under high, got low={low}, high={high}.")
        self.scorer = scorer
        self.low = low
        self.high = high
        self.weight = weight

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return "outlier_margin": mean hinge of the anomalous pixels + mean of the normal ones."""
        score = self.scorer(output)  # (B, h, w)
        score = score.to(loss_dtype(score))
        anomaly = torch.stack([target.anomaly for target in targets])  # (B, H, W), VOID in neither
        too_low = F.relu(self.high - score).square()
        too_high = F.relu(score - self.low).square()
        outlier = mean_over_pixels(too_low, anomaly == ANOMALY)
        normal = mean_over_pixels(too_high, anomaly == NORMAL)
        return {"outlier_margin": self.weight * (outlier + normal)}


def mean_over_pixels(losses: Tensor, pixels: Tensor) -> Tensor:
    """(B, h, w) losses of cells, (B, H, W) bool -> scalar: the mean over the chosen pixels."""
    shares = share_of_cells(pixels, losses)  # (B, h, w)
    pixels_per_cell = pixels[0].numel() / losses[0].numel()
    # A sum over a count, not a mean: a batch without an anomaly must give 0, not NaN.
    return (losses * shares).sum() * pixels_per_cell / pixels.sum().clamp(min=1)
