"""Score by the margin of the outlier class over the best known class, pixel by pixel.

These are the two terms of UNO (Delić et al., BMVC 2024), here of the pixel's evidence and there of
each query's classes. UNO subtracts every known mask that claims a pixel, so an anomaly that several
of them share sinks below normal pixels that one claims; here the strongest claim alone counts.
"""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput
from eomt_exp.scorers.query_sum import require_outlier_class, sum_over_queries


class ClassMargin:
    """s = L_K - max_{k<K} L_k with L_k = sum_q M_q P_q,k, P_q the softmax over all C outputs."""

    level = "query"

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w). Raises UserError if the class head has no outlier class."""
        output = require_outlier_class(output, "class_margin")
        probs = output.class_logits.softmax(dim=-1)  # (B, Q, C)
        outlier = sum_over_queries(output, probs[..., output.num_classes])
        return outlier - output.semantic_scores().amax(dim=1)
