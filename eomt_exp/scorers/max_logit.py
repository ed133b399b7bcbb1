"""MaxLogit (Hendrycks et al., ICML 2022): a pixel is anomalous when no class has much evidence."""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput


class MaxLogit:
    """s = -max_k L_k."""

    level = "semantic"

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w)."""
        return -output.semantic_scores().amax(dim=1)
