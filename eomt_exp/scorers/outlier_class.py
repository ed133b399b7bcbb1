"""Score by the class head: a pixel is anomalous when its queries are of the outlier class.

This is the first half of UNO's score (Delić et al., BMVC 2024), which calls it negative objectness.
"""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput
from eomt_exp.scorers.query_sum import require_outlier_class, sum_over_queries


class OutlierClass:
    """s = sum_q M_q P_q,K with P_q the softmax over all C outputs, at least 0."""

    level = "query"

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w). Raises UserError if the class head has no outlier class."""
        output = require_outlier_class(output, "outlier_class")
        probs = output.class_logits.softmax(dim=-1)  # (B, Q, C)
        return sum_over_queries(output, probs[..., output.num_classes])
