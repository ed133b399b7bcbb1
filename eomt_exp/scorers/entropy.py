"""Max-entropy (Chan et al., ICCV 2021): a pixel is anomalous when the classes are undecided."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from eomt_exp.contracts import MaskOutput, PixelOutput, UserError
from eomt_exp.ranges import Positive
from eomt_exp.scorers.temperature import Tempered

Normalise = Literal["softmax", "sum"]


class Entropy(Tempered):
    """s = -sum_k p_k log p_k in nats, in [0, log K].

    normalise:
      softmax  p = softmax(L / T).
      sum      p = L / sum L, for mask models alone, whose L is never negative. It forgets how much
               evidence there is and keeps how it is shared out; T has no part in it.
    """

    def __init__(self, *, temperature: Positive = 1.0, normalise: Normalise = "softmax") -> None:
        super().__init__(temperature=temperature)
        self.normalise = normalise

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w)."""
        scores = output.semantic_scores()
        if self.normalise == "softmax":
            log_probs = (scores / self.temperature).log_softmax(dim=1)
            return -(log_probs.exp() * log_probs).sum(dim=1)
        if (lowest := scores.amin()) < 0:
            raise UserError(
                f"normalise=sum needs evidence of at least 0, which mask models have, got {lowest} "
                "of a per-pixel model; use normalise=softmax."
            )
        # The smallest share keeps a pixel that no query claims uniform: it must score high.
        shares = scores.clamp(min=torch.finfo(scores.dtype).eps)
        return torch.special.entr(shares / shares.sum(dim=1, keepdim=True)).sum(dim=1)
