"""IsoMax+ (Macêdo & Ludermir, arXiv 2105.14399): classify a query by its distance to prototypes.

A query and a prototype are compared as directions, so a class is a place on a sphere and not a
half-space: what lies far from all prototypes is of no class, however long its vector.

The paper trains on logits ten times as large as those it reads afterwards (the entropic scale), so
that probabilities end less sure. Here the large ones are read too unless `inference_scale` says
otherwise: a mask model sums the probabilities of all queries, and over small distances the softmax
is so flat that idle queries have a say at every pixel.

No-object has a prototype like every other class. In EoMT it is one: a query says by its direction
that it is not in use. As a learnable constant distance it would mean "far from all classes"
instead, which is what an anomaly has to be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.ranges import Positive


class IsoMaxPlus(nn.Module):
    """Gives each query z_k = -E D_k, with D_k = |s| ||q / ||q|| - p_k / ||p_k|| ||_2.

    The prototypes p_k start from a normal distribution, the scale s from 1; both are learnt. E is
    `entropic_scale` in train mode and `inference_scale` in eval mode.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        outlier_class: bool = False,
        entropic_scale: Positive = 10.0,
        inference_scale: Positive = 10.0,
    ) -> None:
        super().__init__()
        self.entropic_scale = entropic_scale
        self.inference_scale = inference_scale
        self.prototypes = nn.Parameter(torch.randn(num_classes + int(outlier_class) + 1, embed_dim))
        self.distance_scale = nn.Parameter(torch.ones(1))

    def forward(self, queries: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, C) logits, at most 0."""
        scale = self.entropic_scale if self.training else self.inference_scale
        return -scale * self.distances(queries)

    def distances(self, queries: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, C) distances D_k, from 0 to 2 |s|."""
        # In float32 at least: two directions that nearly agree differ by less than bfloat16 holds.
        wide = torch.promote_types(queries.dtype, torch.float32)
        # Over the last dimension: the published code's dim=1 would be that of the queries.
        found = F.normalize(queries.to(wide), dim=-1)
        wanted = F.normalize(self.prototypes.to(wide), dim=-1)
        # By differences: their squares are exact near 0, and so is the gradient at 0, which is 0.
        apart = torch.cdist(found, wanted, compute_mode="donot_use_mm_for_euclid_dist")
        return (self.distance_scale.abs() * apart).to(queries.dtype)

    def from_linear(self, weight: Tensor) -> dict[str, Tensor]:
        """(C, D) rows w_k of a linear head -> this head's state, to start training from.

        Kept is which class a query is nearest to, where norms and biases of the rows are equal, and
        about how far apart the logits are in training: ||w|| ||q|| between right angle and
        agreement there, E |s| sqrt(2) here, with ||q|| = sqrt(D) behind a LayerNorm. Lost are the
        biases, and what the single norms say.
        """
        width = weight.shape[1] ** 0.5
        norms = weight.float().norm(dim=1, keepdim=True)
        scale = norms.mean() * width / (self.entropic_scale * 2**0.5)
        # As long as fresh prototypes are on average: a step of training turns a longer one less.
        prototypes = width * weight.float() / norms
        return {"prototypes": prototypes, "distance_scale": scale.reshape(1)}
