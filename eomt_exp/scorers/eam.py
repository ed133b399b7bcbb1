"""EAM (Grcić et al., CVPR-W 2023): a pixel is anomalous when no mask claims it for a class."""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput
from eomt_exp.scorers.query_sum import require_queries, sum_over_queries


class EAM:
    """s = 1 - sum_q M_q max_{k<K} P_q,k, in [1 - Q, 1]; below 0 where masks overlap."""

    level = "query"

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w). Raises UserError if the model has no queries."""
        output = require_queries(output, "eam")
        probs = output.class_logits.softmax(dim=-1)[..., : output.num_classes]  # (B, Q, K)
        return 1.0 - sum_over_queries(output, probs.amax(dim=-1))
