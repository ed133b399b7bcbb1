"""LogitNorm (Wei et al., ICML 2022): train the direction of the logits and not their length.

Cross-entropy can always fall by making the logits longer, so a network grows sure of everything it
sees. Here it is trained on z / (tau ||z||), and the length is free to say something else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.ranges import Positive


class LogitNorm(nn.Linear):
    """Gives each query logits z of a linear layer; in train mode z / (tau ||z||_2) over classes.

    It has the weights of a linear head, so it starts from those of any semantic model.
    """

    def __init__(
        self, *, embed_dim: int, num_classes: int, outlier_class: bool = False, tau: Positive = 0.04
    ) -> None:
        super().__init__(embed_dim, num_classes + int(outlier_class) + 1)
        self.tau = tau

    def forward(self, queries: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, C)."""
        logits = super().forward(queries)
        if not self.training:
            return logits
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (F.normalize(wide, dim=-1) / self.tau).to(logits.dtype)
