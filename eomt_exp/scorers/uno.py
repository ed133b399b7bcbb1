"""UNO (Delić et al., BMVC 2024): weigh each query's outlier class against its best known class."""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput
from eomt_exp.scorers.query_sum import require_outlier_class, sum_over_queries


class UNO:
    """s = sum_q M_q (P_q,K - max_{k<K} P_q,k): the union of negative objectness and uncertainty."""

    level = "query"

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w). Raises UserError if the class head has no outlier class."""
        output = require_outlier_class(output, "uno")
        probs = output.class_logits.softmax(dim=-1)  # (B, Q, C)
        known = probs[..., : output.num_classes].amax(dim=-1)  # (B, Q)
        return sum_over_queries(output, probs[..., output.num_classes] - known)
