"""Minimum distance (Macêdo & Ludermir, arXiv 2105.14399): what is near no prototype is anomalous.

The paper's score of an input is min_k D_k over its classes. A pixel has no distance of its own: the
queries whose masks cover it do. So what a mask carries to it is how near its query is to a known
class, and the nearest query counts: a pixel that no mask covers is near nothing. Sums are wrong
here. One of distances would rise with every further mask over a road; one of nearness falls with
every idle query over an object, and most queries of an image are idle.
"""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput, UserError
from eomt_exp.scorers.query_sum import require_queries


class MinDistance:
    """s = -max_q M_q exp(-min_{k<K} D_qk), in [-1, 0]."""

    level = "query"

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w). Raises UserError if the class head measures no distances."""
        output = require_queries(output, "min_distance")
        if output.distances is None:
            raise UserError(
                "The score min_distance needs the distances of class_head=isomax_plus, got a model "
                "with another class head; train one with +experiment=isomax_plus."
            )
        nearest = output.distances[..., : output.num_classes].amin(dim=-1)  # (B, Q)
        nearness = (-nearest).exp()[..., None, None]
        return -(output.mask_logits.sigmoid() * nearness).amax(dim=1)
