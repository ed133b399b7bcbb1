"""Score by the anomaly head: a pixel is anomalous when the queries that cover it are."""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import ANOMALY, MaskOutput, PixelOutput, UserError
from eomt_exp.scorers.query_sum import require_queries, sum_over_queries


class AnomalyHeadScore:
    """s = sum_q M_q softmax(anomaly_logits_q)_anomaly, at least 0."""

    level = "query"

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w). Raises UserError if the model has no anomaly head."""
        output = require_queries(output, "anomaly_head")
        if output.anomaly_logits is None:
            raise UserError(
                "The score anomaly_head needs an anomaly head, got a model without one; add "
                "anomaly_head=query_only to the overrides."
            )
        return sum_over_queries(output, output.anomaly_logits.softmax(dim=-1)[..., ANOMALY])
