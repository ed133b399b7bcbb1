"""RbA (Nayal et al., ICCV 2023): a pixel is anomalous when every known class rejects it."""

from __future__ import annotations

from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput


class RbA:
    """s = -sum_k tanh(L_k), in [-K, 0] on a mask model; tanh keeps one class from outvoting all."""

    level = "semantic"

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w)."""
        return -output.semantic_scores().tanh().sum(dim=1)
