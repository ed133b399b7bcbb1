"""MSP (Hendrycks & Gimpel, ICLR 2017): a pixel is anomalous when no class is probable."""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput
from eomt_exp.scorers.temperature import Tempered


class MSP(Tempered):
    """s = 1 - max_k softmax(L / T)_k, in [0, 1 - 1/K].

    On a mask model L lies in about [0, 1], so the softmax is nearly flat and the ranking close to
    max_logit's; a small temperature makes it less so.
    """

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w)."""
        probs = (output.semantic_scores() / self.temperature).softmax(dim=1)
        return 1.0 - probs.amax(dim=1)
