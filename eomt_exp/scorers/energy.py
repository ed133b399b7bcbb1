"""Energy (Liu et al., NeurIPS 2020): a pixel is anomalous when all classes have little evidence."""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput
from eomt_exp.scorers.temperature import checked_temperature


class Energy:
    """s = -T log sum_k exp(L_k / T); the smaller T, the closer to max_logit."""

    level = "semantic"

    def __init__(self, *, temperature: float = 1.0) -> None:
        self.temperature = checked_temperature(temperature)

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w)."""
        return -self.temperature * (output.semantic_scores() / self.temperature).logsumexp(dim=1)
