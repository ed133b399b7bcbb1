"""Bring EoMT's idea to a hierarchical encoder: queries meet a 2-D feature map that stays one.

EoMT (Kerssies et al., CVPR 2025, arXiv 2503.19108) puts queries and patches into one sequence of
self-attention. A hierarchical encoder has no such sequence: its layers need rows and columns. Here
a query and the map exchange messages before each of the last blocks instead. Queries read: in one
attention, as in EoMT, from each other and, where masked, from the cells of their own mask. Cells
read back: each is a query of attention over the Q queries. Then the encoder's own block runs on
the map. Q x (Q + N) + N x Q products replace EoMT's (Q + N)^2, and no weight needs the image size.

Cross-attention and not one spatial map per query: a map each would cost Q times the encoder, and
the heads, losses and scorers here all read one vector per query.

A cell's key carries its position as a depth-wise convolution of the map around it, the way the
encoder itself has it (PEG, Chu et al., ICLR 2023); values do not, so what a masked query takes
comes from its own cells alone. Masks are formed at the stride of the first stage from all stages'
maps, coarse to fine. What is new starts small (LayerScale), so the encoder's block is at first
almost what it would be alone.
"""

from __future__ import annotations

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.contracts import (
    AnomalyHead,
    ClassHead,
    MaskOutput,
    Part,
    SpatialBackbone,
    UserError,
)
from eomt_exp.models.mask_transformer import MaskTransformer
from eomt_exp.ranges import NotNegative


class SpatialEoMT(MaskTransformer):
    """Predicts one mask and one class per query from an image, over a pyramid of maps.

    Class outputs and `official_quirks` as in EoMT. `num_blocks` is how many of the last stage's
    last blocks the queries meet; None: all of them. `head_dim` is the width of one attention head.
    """

    encoder: SpatialBackbone

    def __init__(
        self,
        *,
        encoder: SpatialBackbone,
        num_classes: int,
        num_queries: int = 100,
        num_blocks: int | None = None,
        masked_attention: bool = True,
        outlier_class: bool = False,
        class_head: ClassHead | None = None,
        anomaly_head: AnomalyHead | None = None,
        official_quirks: bool = False,
        head_dim: int = 32,
        expansion: int = 3,
        layer_scale: NotNegative = 0.1,
    ) -> None:
        if not isinstance(encoder, SpatialBackbone):
            raise UserError(
                f"model=spatial_eomt needs a backbone of 2-D maps, got {type(encoder).__name__}; "
                "type backbone=scalable_vit, or model=eomt for a backbone of tokens."
            )
        last, dim = len(encoder.stages[-1]), encoder.embed_dim
        num_blocks = last if num_blocks is None else num_blocks
        if not 1 <= num_blocks <= last:
            raise UserError(
                "model.num_blocks must be within the last stage, "
                f"1..{last} with this backbone, got {num_blocks}."
            )
        if head_dim < 1 or dim % head_dim:
            raise UserError(f"model.head_dim must divide the width {dim}, got {head_dim}.")
        super().__init__(
            dim=dim,
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
        self.meetings = nn.ModuleList(
            Meeting(dim, dim // head_dim, expansion, layer_scale) for _ in range(num_blocks)
        )
        self.pixel_decoder = PixelDecoder(encoder.widths)
        self._num_alone = last - num_blocks  # blocks of the last stage that see no queries

    def forward(self, images: Tensor) -> MaskOutput:
        """(B, 3, H, W) RGB in [0, 1] -> MaskOutput; `aux` holds the blocks before the last."""
        *finer, cells = self.encoder.pyramid(images)
        finer = self.pixel_decoder.lateral(finer)  # the same for every prediction
        queries = self.q.weight[None].expand(len(images), -1, -1)  # (B, Q, D)
        for index in range(self._num_alone):
            cells = self.encoder.block(index, cells)
        aux: list[MaskOutput] = []
        for index, prob in enumerate(self._masking()):
            keep = None
            if prob is not None:
                between = self._output(queries, cells, finer)
                grid = (cells.shape[-2], cells.shape[-1])
                keep = self._keep(between.mask_logits, grid, prob, self.num_queries)
                aux += [between] if self._supervises else []
            queries, cells = self.meetings[index](queries, cells, keep)
            cells = self.encoder.block(self._num_alone + index, cells)
        return self._finished(self._output(queries, cells, finer), aux)

    def parts(self) -> list[Part]:
        """List the encoder over all its stages, queries, heads, meetings and pixel decoder."""
        blocks = [block for stage in self.encoder.stages for block in stage]
        heads: dict[str, nn.Module] = {f"meeting {i}": m for i, m in enumerate(self.meetings)}
        return self._parts(self.encoder, blocks, heads | {"pixel decoder": self.pixel_decoder})

    def _output(self, queries: Tensor, cells: Tensor, finer: list[Tensor]) -> MaskOutput:
        """Predict masks and classes from (B, Q, D) queries and (B, D, h, w) map between blocks."""
        normed = self.encoder.norm(cells.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        features = self.pixel_decoder(normed, finer)  # (B, D, h', w')
        return self._predict(self.encoder.norm(queries), features)


class Meeting(nn.Module):
    """Lets queries read from each other and from the map, and the map read from the queries."""

    def __init__(self, dim: int, heads: int, expansion: int, layer_scale: float) -> None:
        super().__init__()
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(dim) for name in ("asking", "read", "mlp", "reading", "answer")}
        )
        self.place = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.read = Attention(dim, heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim)
        )
        self.answer = Attention(dim, heads)
        self.scales = nn.Parameter(torch.full((3, dim), layer_scale))

    def forward(self, queries: Tensor, cells: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, Q, D), (B, D, h, w) -> the same.

        keep (B, 1, Q, Q + h*w) bool says which queries and cells each query may see.
        """
        read_scale, mlp_scale, answer_scale = self.scales
        queries = queries + read_scale * self._reading(queries, cells, keep)
        queries = queries + mlp_scale * self.mlp(self.norms["mlp"](queries))
        rows = cells.permute(0, 2, 3, 1)  # (B, h, w, D)
        normed = self.norms["answer"](queries)
        answer = self.answer(self.norms["reading"](rows).flatten(1, 2), normed, normed, None)
        rows = rows + answer_scale * answer.unflatten(1, rows.shape[1:3])
        return queries, rows.permute(0, 3, 1, 2)

    def _reading(self, queries: Tensor, cells: Tensor, keep: Tensor | None) -> Tensor:
        """Return (B, Q, D), what the queries take from each other and from their cells."""
        asking = self.norms["asking"](queries)
        values = self.norms["read"](cells.permute(0, 2, 3, 1))  # (B, h, w, D)
        with_position = values + self.place(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.read(
            asking,
            torch.cat([asking, with_position.flatten(1, 2)], dim=1),
            torch.cat([asking, values.flatten(1, 2)], dim=1),
            keep,
        )


class Attention(nn.Module):
    """Computes multi-head attention of one set on another, keys and values given apart."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_query, self.to_value, self.out = (nn.Linear(dim, dim) for _ in range(3))
        # No bias: it would add the same to all of a row's scores, which softmax cannot see.
        self.to_key = nn.Linear(dim, dim, bias=False)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None) -> Tensor:
        """(B, M, D), (B, N, D) and (B, N, D) -> (B, M, D); keep (B, 1, M, N) bool."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, M or N, d)
            for layer, x in (
                (self.to_query, queries), (self.to_key, keys), (self.to_value, values)
            )
        )  # fmt: skip
        # Spelled out: one side is the Q queries, so the scores stay small, and on a CPU in half
        # precision this is faster than the fused kernel and its backward.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if keep is not None:
            scores = scores.masked_fill(~keep, float("-inf"))
        return self.out((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class PixelDecoder(nn.Module):
    """Goes from coarse to fine: project, enlarge, add the next finer map, mix adjacent cells.

    EoMT's ScaleBlock makes detail out of nothing but a learnt 2 x 2 pattern; here the finer maps
    hold it, so enlarging is bilinear and its matrix product runs on the coarse cells, at a quarter
    of the cost. GELU, depth-wise convolution and LayerNorm are the ScaleBlock's.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        *finer, dim = widths
        self.laterals = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in finer)
        self.coarse = nn.ModuleList(nn.Conv2d(dim, dim, 1, bias=False) for _ in finer)
        self.local = nn.ModuleList(
            nn.Sequential(
                nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
                LayerNorm2d(dim),
            )
            for _ in finer
        )  # fmt: skip

    def lateral(self, finer: list[Tensor]) -> list[Tensor]:
        """(B, C, h, w) maps, finest first -> the same with D channels."""
        return [layer(cells) for layer, cells in zip(self.laterals, finer, strict=True)]

    def forward(self, cells: Tensor, finer: list[Tensor]) -> Tensor:
        """(B, D, h, w) normalised, and what `lateral` gave -> (B, D, h', w') at its finest."""
        for level in reversed(range(len(finer))):
            size = finer[level].shape[-2:]
            wide = F.interpolate(self.coarse[level](cells), size=size, mode="bilinear")
            cells = self.local[level](wide + finer[level])
        return cells
