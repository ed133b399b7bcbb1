"""EoMT (Kerssies et al., CVPR 2025, arXiv 2503.19108): a plain ViT whose last blocks carry queries.

Names follow the official state dict, so published weights load as they are. What is ours: the
anomaly head on the queries, one optional outlier class, and groups of trainable parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.contracts import AnomalyHead, Backbone, MaskOutput

TRAINABLE = ("head", "heads", "last_blocks", "all")


class ScaleBlock(nn.Module):
    """Twice the resolution: transposed convolution, GELU, depth-wise convolution, LayerNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, 2h, 2w)."""
        return self.norm(self.conv2(self.act(self.conv1(x))))


class EoMT(nn.Module):
    """Image to one mask and one class per query.

    Class outputs: K known classes, the outlier class where `outlier_class` asks for one, and
    no-object last. `num_blocks` is how many of the encoder's last blocks see the queries.
    """

    encoder: Any  # a Backbone; torch types attributes of modules too loosely to say so
    anomaly_head: Any
    attn_mask_probs: Tensor

    def __init__(
        self,
        *,
        encoder: Backbone,
        num_classes: int,
        num_queries: int = 100,
        num_blocks: int = 3,
        masked_attention: bool = True,
        outlier_class: bool = False,
        anomaly_head: AnomalyHead | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= num_blocks <= encoder.num_blocks:
            raise ValueError(
                f"model.num_blocks must be 1..{encoder.num_blocks} with this backbone, "
                f"got {num_blocks}."
            )
        dim = encoder.embed_dim
        self.encoder = encoder
        self.num_classes = num_classes
        self.num_blocks = num_blocks
        self.masked_attention = masked_attention
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks))
        self.q = nn.Embedding(num_queries, dim)
        self.class_head = nn.Linear(dim, num_classes + int(outlier_class) + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        num_scale_blocks = max(1, int(math.log2(encoder.patch_size)) - 2)
        self.upscale = nn.Sequential(*[ScaleBlock(dim) for _ in range(num_scale_blocks)])
        self.anomaly_head = anomaly_head
        self._frozen: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> MaskOutput:
        """(B, 3, H, W) RGB in [0, 1] -> MaskOutput; `aux` holds the blocks before the last."""
        tokens, grid = self.encoder.embed(images)  # (B, prefix + h*w, D)
        first = self.encoder.num_blocks - self.num_blocks
        probs = self._mask_probs()
        aux: list[MaskOutput] = []
        for index in range(self.encoder.num_blocks):
            mask = None
            if index == first:
                queries = self.q.weight[None].expand(len(tokens), -1, -1)
                tokens = torch.cat([queries, tokens], dim=1)  # queries first: (B, Q + N, D)
            if probs and index >= first and (self.training or probs[index - first] > 0):
                output = self._predict(self.encoder.norm_tokens(tokens), grid)
                aux.append(output)
                mask = self._attention_mask(output.mask_logits, probs[index - first], tokens, grid)
            tokens = self.encoder.block(index, tokens, mask)
        output = self._predict(self.encoder.norm_tokens(tokens), grid)
        # Scores never read aux; without it Accelerate has less to cast and move.
        output = output._replace(aux=tuple(aux) if self.training else ())
        if self.anomaly_head is None:
            return output
        return output._replace(
            anomaly_logits=self.anomaly_head(output.queries, output.class_logits)
        )

    def set_mask_probs(self, probs: Sequence[float]) -> None:
        """Probability, per joint block, that a query attends only to its own mask."""
        self.attn_mask_probs.copy_(torch.tensor(list(probs)))

    def set_trainable(self, which: str) -> None:
        """Freeze all but `which`: head, heads (+ queries), last_blocks (+ heads), or all.

        Frozen parts get no gradient and stay in eval mode, whatever `train()` is told.
        """
        if which not in TRAINABLE:
            raise ValueError(f"trainable must be one of {', '.join(TRAINABLE)}, got {which!r}.")
        if which == "head" and self.anomaly_head is None:
            raise ValueError("trainable=head needs a head; add anomaly_head=query_only.")
        depth = self.encoder.num_blocks
        prefixes = ["anomaly_head."]
        if which in ("heads", "last_blocks"):
            prefixes += ["q.", "class_head.", "mask_head.", "upscale."]
        if which == "last_blocks":
            prefixes += [
                f"encoder.backbone.blocks.{depth - i}." for i in range(self.num_blocks, 0, -1)
            ]
            prefixes += ["encoder.backbone.norm."]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(which == "all" or name.startswith(tuple(prefixes)))
        self._frozen = tuple(
            name
            for name, module in self.named_modules()
            if name and (own := list(module.parameters())) and not any(p.requires_grad for p in own)
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> EoMT:
        """Train mode for what is trained; frozen parts stay in eval mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def _mask_probs(self) -> list[float]:
        """Per joint block; empty where attention is not masked at all.

        In evaluation a block half-way through annealing is masked or open, never a coin toss, so
        that the same image always gets the same scores (the official code tosses).
        """
        if not self.masked_attention:
            return []
        probs = self.attn_mask_probs.tolist()
        return probs if self.training else [float(p >= 0.5) for p in probs]

    def _predict(self, tokens: Tensor, grid: tuple[int, int]) -> MaskOutput:
        num_queries = self.q.num_embeddings
        queries = tokens[:, :num_queries]
        patches = tokens[:, num_queries + self.encoder.num_prefix_tokens :]
        features = self.upscale(patches.transpose(1, 2).unflatten(2, grid))  # (B, D, h, w)
        mask_logits = torch.einsum("bqd,bdhw->bqhw", self.mask_head(queries), features)
        return MaskOutput(mask_logits, self.class_head(queries), queries, None, self.num_classes)

    def _attention_mask(
        self, mask_logits: Tensor, prob: float, tokens: Tensor, grid: tuple[int, int]
    ) -> Tensor | None:
        """(B, 1, N, N) bool, or None where nothing is masked: only query-to-patch is ever shut.

        Each query is masked with probability `prob`; an empty mask is harmless, since a query
        still sees the other queries and the prefix tokens.
        """
        if prob <= 0:
            return None
        batch, num_queries = mask_logits.shape[:2]
        inside = F.interpolate(mask_logits, size=grid, mode="bilinear", align_corners=False) > 0
        if prob < 1:
            opened = torch.rand(batch, num_queries, device=tokens.device) > prob
            inside = inside | opened[..., None, None]
        length = tokens.shape[1]
        keep = torch.ones(batch, 1, length, length, dtype=torch.bool, device=tokens.device)
        keep[:, 0, :num_queries, num_queries + self.encoder.num_prefix_tokens :] = inside.flatten(2)
        return keep
