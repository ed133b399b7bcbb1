"""Sum scores of queries over pixels: each query's mask carries its own score to them."""

from __future__ import annotations

import torch
from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput, UserError


def sum_over_queries(output: MaskOutput, scores: Tensor) -> Tensor:
    """(B, Q) score of each query -> (B, h, w): sum_q sigmoid(mask_q) score_q."""
    return torch.einsum("bq,bqhw->bhw", scores, output.mask_logits.sigmoid())


def require_queries(output: MaskOutput | PixelOutput, score: str) -> MaskOutput:
    """Return the output itself; raise UserError if the model has no queries."""
    if isinstance(output, PixelOutput):
        raise UserError(
            f"The score {score} needs queries, got a per-pixel model; add model=eomt to the "
            "overrides, or take a score of level semantic such as scorer=msp."
        )
    return output


def require_outlier_class(output: MaskOutput | PixelOutput, score: str) -> MaskOutput:
    """Return the output itself; raise UserError if its class head has no outlier class."""
    output = require_queries(output, score)
    if not output.has_outlier_class:
        raise UserError(
            f"The score {score} needs a class for outliers, got {output.class_logits.shape[-1]} "
            f"class outputs for {output.num_classes} known classes and no-object; add "
            "outlier_exposure.target=outlier_class to the overrides."
        )
    return output
