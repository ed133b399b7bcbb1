"""Maskomaly (Ackermann et al., BMVC 2023): no training, only queries that were looked at before.

A pixel is anomalous when no query that is sure of a known class covers it (rejection), and when a
query does that was found to lie on anomalies (outlier). Which these are, task=analyse_queries finds
out for each model; queries of another model, or of the paper, mean nothing here.

It differs from the published code where that is about one checkpoint: outlier queries are mined and
not listed, ground queries are those specialised in data.road_classes and not numbers 19 and 24. And
a border is between two accepted queries, where the code takes any two that say a known class.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput, UserError
from eomt_exp.ranges import Share
from eomt_exp.scorers.query_sum import require_queries

MINED = "mined_queries.json"  # in the folder of task=analyse_queries
AUTO = "auto"


class Maskomaly:
    """s = w s_r + (1 - w) s_o, in [0, 1]; without outlier queries s = s_r.

    M_q is the mask's probability, p_q the softmax over all C outputs, c_q = max_{k<K} p_q,k.

    s_r = 1 - max_q M_q c_q over the accepted queries, 1 where there are none. Accepted are those
          whose likeliest output is a known class with c_q > min_confidence, and the ground queries.
          0 where two of the former have M_q > border: between two known things is no anomaly.
    s_o = max_q M_q max_k p_q,k over the outlier queries. k runs over no-object too: that a thing is
          of no known class is what such a query is to say of it.
    """

    level = "query"

    def __init__(
        self,
        *,
        mined: str,
        min_confidence: Share = 0.7,
        border: Share = 0.1,
        rejection_weight: Share = 0.6,
    ) -> None:
        """`mined` is a folder of task=analyse_queries; UserError for a folder without its file."""
        if mined == AUTO:
            raise UserError(
                "scorer.maskomaly.mined=auto is for task=evaluate, where the model is there to be "
                "looked at; elsewhere type the folder of task=analyse_queries checkpoint=<run>."
            )
        path = Path(mined) / MINED
        if not path.is_file():
            raise UserError(
                f"scorer.maskomaly.mined={mined} has no {MINED}: it is the folder that "
                "task=analyse_queries checkpoint=<run> writes, or auto."
            )
        self.folder = mined
        self.fitted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.outliers: list[int] = self.fitted["outlier_queries"]
        self.ground: list[int] = self.fitted["ground_queries"]
        count = self.fitted["num_queries"]
        if beyond := [q for q in (*self.outliers, *self.ground) if not 0 <= q < count]:
            raise UserError(f"{path} names query {beyond[0]}; its model has 0 to {count - 1}.")
        self.min_confidence, self.border, self.weight = min_confidence, border, rejection_weight

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w). Raises UserError if the queries are not those that were looked at."""
        output = require_queries(output, "maskomaly")
        if (count := output.class_logits.shape[1]) != self.fitted["num_queries"]:
            raise UserError(
                f"{self.folder} is about a model with {self.fitted['num_queries']} queries, and "
                f"this one has {count}: type task=analyse_queries checkpoint=<this model>."
            )
        masks = output.mask_logits.sigmoid()  # (B, Q, h, w)
        probs = output.class_logits.softmax(dim=-1)  # (B, Q, C)
        rejected = self._rejection(masks, probs, output.num_classes)
        if not self.outliers:
            return rejected
        confidence = probs[:, self.outliers].amax(dim=-1)[..., None, None]
        outlier = (masks[:, self.outliers] * confidence).amax(dim=1)
        return self.weight * rejected + (1 - self.weight) * outlier

    def _rejection(self, masks: Tensor, probs: Tensor, num_classes: int) -> Tensor:
        """(B, Q, h, w), (B, Q, C) -> s_r (B, h, w)."""
        known = probs[..., :num_classes].amax(dim=-1)  # (B, Q)
        is_known = probs.argmax(dim=-1) < num_classes
        accepted = is_known & (known > self.min_confidence)
        explains = accepted.clone()
        explains[:, self.ground] = True
        covered = (masks * (known * explains)[..., None, None]).amax(dim=1)
        at_border = ((masks > self.border) & accepted[..., None, None]).sum(dim=1) > 1
        return (1 - covered).masked_fill(at_border, 0.0)

    def __str__(self) -> str:
        outliers = ", ".join(map(str, self.outliers)) or "none, so that rejection counts alone"
        ground = ", ".join(map(str, self.ground)) or "none"
        return f"outlier queries: {outliers}; ground queries: {ground} ({self.folder})"
