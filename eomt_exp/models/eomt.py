"""EoMT (Kerssies et al., CVPR 2025, arXiv 2503.19108) lets a plain ViT's last blocks carry queries.

Names follow the official state dict, so published weights load as they are. What is ours: the
anomaly head on the queries, one optional outlier class, and groups of trainable parts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eomt_exp.contracts import AnomalyHead, Backbone, ClassHead, MaskOutput, Part, UserError
from eomt_exp.models.mask_transformer import MaskTransformer
from eomt_exp.models.scale_block import ScaleBlock


class EoMT(MaskTransformer):
    """Predicts one mask and one class per query from an image.

    Class outputs: K known classes, the outlier class where `outlier_class` asks for one, and
    no-object last. `num_blocks` is how many of the encoder's last blocks see the queries; None is
    the paper's choice, 3 for up to 12 blocks, 4 for up to 24, else 5. `official_quirks` reproduces
    what the official code does and we do otherwise: random masks in evaluation half-way through
    annealing, random numbers drawn for masks that are all open, windows of whole grey levels.
    """

    encoder: Backbone
    upscale: Any  # an nn.Sequential of ScaleBlocks
    _recomputes = False  # blocks, for the gradient

    def __init__(
        self,
        *,
        encoder: Backbone,
        num_classes: int,
        num_queries: int = 100,
        num_blocks: int | None = None,
        masked_attention: bool = True,
        outlier_class: bool = False,
        class_head: ClassHead | None = None,
        anomaly_head: AnomalyHead | None = None,
        official_quirks: bool = False,
    ) -> None:
        if not isinstance(encoder, Backbone):
            raise UserError(
                f"model=eomt needs a backbone of tokens, got {type(encoder).__name__}; "
                "a hierarchical one goes with model=spatial_eomt."
            )
        depth = len(encoder.blocks)
        if num_blocks is None:
            num_blocks = min(depth, 3 if depth <= 12 else 4 if depth <= 24 else 5)
        if not 1 <= num_blocks <= depth:
            raise UserError(
                f"model.num_blocks must be 1..{depth} with this backbone, got {num_blocks}."
            )
        super().__init__(
            dim=encoder.embed_dim,
            num_classes=num_classes,
            num_queries=num_queries,
            num_blocks=num_blocks,
            masked_attention=masked_attention,
            outlier_class=outlier_class,
            class_head=class_head,
            anomaly_head=anomaly_head,
            official_quirks=official_quirks,
        )
        self.encoder = encoder
        num_scale_blocks = max(1, int(math.log2(encoder.patch_size)) - 2)
        self.upscale = nn.Sequential(
            *[ScaleBlock(encoder.embed_dim) for _ in range(num_scale_blocks)]
        )

    def forward(self, images: Tensor) -> MaskOutput:
        """(B, 3, H, W) RGB in [0, 1] -> MaskOutput; `aux` holds the blocks before the last."""
        tokens, grid, positions = self.encoder.embed(images)  # (B, P + h*w, D)
        num_alone = len(self.encoder.blocks) - self.num_blocks
        for index in range(num_alone):
            tokens = self._block(index, tokens, positions, None)
        queries = self.q.weight[None].expand(len(tokens), -1, -1)
        tokens = torch.cat([queries, tokens], dim=1)  # queries first: (B, Q + P + h*w, D)
        front = tokens.shape[1] - grid[0] * grid[1]
        aux: list[MaskOutput] = []
        for index, prob in enumerate(self._masking(), start=num_alone):
            keep = None
            if prob is not None:
                if self._supervises:
                    aux.append(self._output(tokens, grid))
                    masks = aux[-1].mask_logits
                else:
                    masks = self._coarse_masks(tokens, grid)
                keep = self._keep(masks, grid, prob, front)
            tokens = self._block(index, tokens, positions, keep)
        return self._finished(self._output(tokens, grid), aux)

    def checkpoint_blocks(self) -> None:
        """Compute the encoder's blocks again for the gradient (Chen et al., arXiv 1604.06174)."""
        self._recomputes = True

    def _block(self, *given: Any) -> Tensor:
        if self._recomputes and torch.is_grad_enabled():
            return checkpoint(self.encoder.block, *given, use_reentrant=False)
        return self.encoder.block(*given)

    def parts(self) -> list[Part]:
        """List embeddings, blocks and norm of the encoder, queries, heads and upscaling."""
        return self._parts(self.encoder, list(self.encoder.blocks), {"upscale": self.upscale})

    def _output(self, tokens: Tensor, grid: tuple[int, int]) -> MaskOutput:
        """Predict masks and classes from (B, Q + P + h*w, D) tokens between two blocks."""
        queries, patches = self._normed(tokens, grid)
        return self._predict(queries, self.upscale(patches))

    def _coarse_masks(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return only the mask logits, (B, Q, h, w) in the patches' grid.

        They are those of `_output` shrunk bilinearly. Shrinking and the product with queries are
        linear, so the features are shrunk first, before most of them are normalised or multiplied.
        """
        queries, patches = self._normed(tokens, grid)
        *others, last = self.upscale
        for block in others:
            patches = block(patches)
        return self._masks(queries, last.cells(patches, grid))

    def _normed(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, Q + P + h*w, D) tokens -> (B, Q, D) queries and (B, D, h, w) patches, normalised."""
        normed = self.encoder.norm(tokens)
        patches = normed[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        return normed[:, : self.num_queries], patches
