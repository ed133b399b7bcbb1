"""Energy (Liu et al., NeurIPS 2020): a pixel is anomalous when all classes have little evidence."""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput
from eomt_exp.scorers.temperature import Tempered


class Energy(Tempered):
    """s = -T log sum_k exp(L_k / T); the smaller T, the closer to max_logit."""

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w)."""
        return -self.temperature * (output.semantic_scores() / self.temperature).logsumexp(dim=1)
