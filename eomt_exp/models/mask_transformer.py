"""Share what every mask transformer here has: heads on queries, masked attention, parts to freeze.

Names follow EoMT's official state dict, so published weights load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.contracts import AnomalyHead, ClassHead, DistanceHead, MaskOutput, Part
from eomt_exp.models.query_model import QueryModel


class MaskTransformer(QueryModel):
    """Holds learnable queries, each of which ends up with one mask and one class.

    A sub-class brings the network between image and queries (`forward`) and lists its `parts`.
    `num_blocks` is how many blocks the queries pass. Without a `class_head` a linear one is made.
    """

    attn_mask_probs: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        num_queries: int,
        num_blocks: int,
        masked_attention: bool,
        outlier_class: bool,
        class_head: ClassHead | None,
        anomaly_head: AnomalyHead | None,
        official_quirks: bool,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_queries = num_classes, num_queries
        self.num_blocks = num_blocks
        self.masked_attention = masked_attention
        self.official_quirks = official_quirks
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks))
        self._probs = [1.0] * num_blocks  # the same numbers, on the host
        self.register_load_state_dict_post_hook(_read_probs)
        self.q = nn.Embedding(num_queries, dim)
        self.class_head = class_head or nn.Linear(dim, num_classes + int(outlier_class) + 1)
        self._has_distances = isinstance(class_head, DistanceHead)
        self.mask_head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        self.anomaly_head = anomaly_head

    @property
    def anneals(self) -> bool:  # type: ignore[override]
        """Return whether training opens the masks: not where the blocks behind them are frozen."""
        return self.masked_attention and "joint" in self._trains

    def set_mask_probs(self, probs: Sequence[float]) -> None:
        """Set, per joint block, the probability that a query attends only to its own mask."""
        rounded = torch.tensor(list(probs), dtype=torch.float32)
        if rounded.tolist() != self._probs:
            self._probs = rounded.tolist()
            self.attn_mask_probs.copy_(rounded)

    def _parts(
        self, encoder: Any, blocks: Sequence[nn.Module], heads: dict[str, nn.Module]
    ) -> list[Part]:
        """List encoder, queries, heads, a sub-class's own `heads` and the anomaly head.

        `depth` counts the encoder's blocks behind a part.
        """
        inner = {id(p) for module in (*blocks, encoder.norm) for p in module.parameters()}
        embeddings = tuple(p for p in encoder.parameters() if id(p) not in inner)
        parts = [Part("embeddings", "backbone", len(blocks) - 1, embeddings)]
        for index, block in enumerate(blocks):
            behind = len(blocks) - 1 - index
            kind: Literal["joint", "backbone"] = "joint" if behind < self.num_blocks else "backbone"
            parts.append(Part(f"block {index}", kind, behind, (*block.parameters(),)))
        parts.append(Part("norm", "joint", 0, (*encoder.norm.parameters(),)))
        own = {"queries": self.q, "class head": self.class_head, "mask head": self.mask_head}
        for name, module in (own | heads).items():
            parts.append(Part(name, "head", 0, (*module.parameters(),)))
        return parts + self._anomaly_head_parts()

    def _masking(self) -> list[float | None]:
        """Return the share of masked queries per joint block, None where no prediction is wanted.

        Training supervises a prediction before every joint block, masked or open. Elsewhere a block
        half-way through annealing is masked or open as a whole, so that the same image always gets
        the same scores, and needs no prediction where it is open. The official code draws at random
        per query there too, before open blocks as before others (official_quirks).
        """
        if not self.masked_attention:
            return [None] * self.num_blocks
        if self._supervises or self.official_quirks:
            return list(self._probs)
        return [1.0 if p >= 0.5 else None for p in self._probs]

    def _predict(self, queries: Tensor, features: Tensor) -> MaskOutput:
        """(B, Q, D) normalised queries and (B, D, h, w) features -> masks and classes."""
        masks, classes = self._masks(queries, features), self.class_head(queries)
        return MaskOutput(masks, classes, queries, None, self.num_classes)

    def _masks(self, queries: Tensor, features: Tensor) -> Tensor:
        """(B, Q, D) normalised queries and (B, D, h, w) features -> (B, Q, h, w) mask logits."""
        kernels = self.mask_head(queries)
        if not features.requires_grad:
            return torch.einsum("bqd,bdhw->bqhw", kernels, features)
        # The features are channels last, out of a LayerNorm. Written this way round, so is their
        # gradient, the largest there is, which then is not copied into that order.
        rows = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h*w, D)
        masks = (rows @ kernels.transpose(1, 2)).transpose(1, 2).contiguous()
        return masks.unflatten(2, features.shape[2:])

    def _keep(
        self, mask_logits: Tensor, grid: tuple[int, int], prob: float, front: int
    ) -> Tensor | None:
        """Return what each query may see, (B, 1, Q, front + h*w) bool; None: everything.

        Each query is masked with probability `prob`, to the cells of the grid in its own mask and
        the `front` tokens before them. An empty mask is harmless: the other queries are among
        these. Without official_quirks, open blocks draw no random numbers.
        """
        if prob <= 0 and not self.official_quirks:
            return None
        inside = F.interpolate(mask_logits, size=grid, mode="bilinear", align_corners=False) > 0
        inside = inside.flatten(2)
        if prob < 1:
            opened = torch.rand(inside.shape[:2], device=inside.device) > prob
            inside = inside | opened[..., None]
        return F.pad(inside, (front, 0), value=True)[:, None]


def _read_probs(model: MaskTransformer, _: object) -> None:
    """Read the buffer's numbers once after loading."""
    if not model.attn_mask_probs.is_meta:
        model._probs = model.attn_mask_probs.tolist()
