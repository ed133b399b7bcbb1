"""Decide by a small MLP on each query whether it is an anomaly, and leave EoMT's masks alone.

Its optional inputs are what the class head is unsure of: the entropy of its softmax and its top
probability (the two statistics of Hendrycks & Gimpel, ICLR 2017, and of Chan et al., ICCV 2021).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from eomt_exp.ranges import Share

NUM_STATES = 3  # contracts.NORMAL, ANOMALY, NO_OBJECT


def normalised_entropy(log_probs: Tensor) -> Tensor:
    """(..., C) log-probabilities -> (..., 1): entropy / log C, 0 when sure, 1 when uniform."""
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1, keepdim=True)
    return entropy / math.log(log_probs.shape[-1])


class QueryHead(nn.Module):
    """Classifies each query as normal, anomaly or no-object.

    It has no norm of its own: the queries arrive normalised by the backbone's last LayerNorm.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        use_entropy: bool = False,
        use_max_prob: bool = False,
        hidden_dim: int = 256,
        num_layers: int = 3,  # 1 is a linear head
        dropout: Share = 0.0,
    ) -> None:
        super().__init__()
        self.use_entropy = use_entropy
        self.use_max_prob = use_max_prob
        widths = [embed_dim + use_entropy + use_max_prob] + [hidden_dim] * (num_layers - 1)
        hidden: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            hidden += [nn.Linear(width, next_width), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], NUM_STATES))

    def forward(self, queries: Tensor, class_logits: Tensor) -> Tensor:
        """(B, Q, D), (B, Q, C) -> (B, Q, 3), in the order normal, anomaly, no-object."""
        # Detached: a head must never train the class head. In float32 at least, since
        # p log p of a sure query is rounded away in half precision.
        wide = torch.promote_types(class_logits.dtype, torch.float32)
        log_probs = class_logits.detach().to(wide).log_softmax(dim=-1)
        inputs = [queries]
        if self.use_entropy:
            inputs.append(normalised_entropy(log_probs).to(queries.dtype))
        if self.use_max_prob:
            inputs.append(log_probs.amax(dim=-1, keepdim=True).exp().to(queries.dtype))
        return self.layers(torch.cat(inputs, dim=-1))  # (B, Q, D + statistics) -> (B, Q, 3)
