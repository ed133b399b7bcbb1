"""Run vit-pytorch's ScalableViT (Yang et al., ECCV 2022) as an encoder of 2-D maps.

Layers and names are vit-pytorch's; what is ours is the forward pass through them: it returns every
stage's map, runs the last stage block by block so that queries can join, and takes images of any
size of whole cells. One block is what the library computes (not what its loop's names say):
scalable self-attention (keys and values on a reduced map), feed-forward, a depth-wise convolution
in a stage's first block that encodes each cell's position (PEG), feed-forward, and self-attention
within windows. The library's pooled classification head is dropped but for its LayerNorm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.backbones.attention import attend, merge_heads, split_heads, split_qkv
from eomt_exp.backbones.pixel_encoder import PixelEncoder
from eomt_exp.backbones.vit_pytorch import library
from eomt_exp.contracts import UserError

_FIRST_STRIDE = 4  # of the library's patch embedding; each stage doubles it


class ScalableViT(PixelEncoder):
    """Wraps vit-pytorch's as a `SpatialBackbone`: strides 4, 8, 16 …, widths up to `embed_dim`.

    Lists have one number per stage. `reduction` divides the sides of the map that scalable
    attention takes keys from, `window` is the side of the windows in cells (None: the whole map).
    A map that does not divide by them is extended by copies of its rim for that layer, then cut.
    """

    backbone: Any  # the library's ScalableViT

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        embed_dim: int,
        depth: list[int],
        heads: list[int],
        reduction: list[int],
        window: list[int | None],
        head_dim: int = 32,
        expansion: int = 4,
    ) -> None:
        shrink = 2 ** (len(depth) - 1)
        super().__init__(
            _FIRST_STRIDE * shrink, f"{_FIRST_STRIDE * shrink}, the stride of the last stage"
        )
        _check_lists(depth=depth, heads=heads, reduction=reduction, window=window)
        if embed_dim % shrink:
            raise UserError(
                f"backbone.embed_dim must be a multiple of {shrink} with {len(depth)} stages, "
                f"got {embed_dim}; try {max(1, round(embed_dim / shrink)) * shrink}."
            )
        self.embed_dim = embed_dim
        self.widths = tuple(embed_dim // shrink * 2**stage for stage in range(len(depth)))
        self.check_size(image_size, "data.image_size")
        self.backbone = library("scalable_vit").ScalableViT(
            num_classes=1,
            dim=self.widths[0],
            depth=tuple(depth),
            heads=tuple(heads),
            reduction_factor=tuple(reduction),
            window_size=tuple(window),
            ff_expansion_factor=expansion,
            **{f"{kind}_dim_{of}": head_dim for kind in ("ssa", "iwsa") for of in ("key", "value")},
        )
        del self.backbone.mlp_head
        self.norm = nn.LayerNorm(embed_dim)
        self._reduction, self._window = reduction, window

    @property
    def stages(self) -> list[nn.ModuleList]:
        """Return the blocks of each stage; what closes a stage belongs to its last block."""
        stages = []
        for transformer, downsample in self.backbone.layers:
            *blocks, last = transformer.layers
            stages.append(
                nn.ModuleList([*blocks, nn.ModuleList([last, transformer.norm, downsample])])
            )
        return stages

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) RGB in [0, 1] -> one (B, C, h, w) map per stage, finest first.

        The last is the one its stage begins with. Raises UserError unless sides are multiples of
        the last stride.
        """
        normed = self.normalised(images)
        cells = self.backbone.to_patches(normed.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage, (transformer, downsample) in enumerate(self.backbone.layers[:-1]):
            rows = self._precise(cells).permute(0, 2, 3, 1)
            for layers in transformer.layers:
                rows = self._block(stage, layers, rows)
            maps.append(_norm(transformer.norm, rows).permute(0, 3, 1, 2))
            cells = downsample(maps[-1])
        return (*maps, self._precise(cells))

    def block(self, index: int, cells: Tensor) -> Tensor:
        """Run one block of the last stage, (B, D, h, w) -> (B, D, h, w)."""
        layers = self.backbone.layers[-1][0].layers[index]
        rows = self._block(len(self.widths) - 1, layers, cells.permute(0, 2, 3, 1))
        return rows.permute(0, 3, 1, 2)

    def _precise(self, cells: Tensor) -> Tensor:
        """Return to the weights' precision: after autocast's convolution all sums would be half."""
        return cells.to(torch.promote_types(cells.dtype, self.norm.weight.dtype))

    def _block(self, stage: int, layers: nn.ModuleList, rows: Tensor) -> Tensor:
        """(B, h, w, C) -> the same: channels last, where 1 x 1 convolutions are matrix products."""
        parts: list[Any] = list(layers)
        ssa, first_ff, peg, second_ff, iwsa = parts
        rows = rows + _scalable(ssa, rows, self._reduction[stage])
        rows = rows + _feed_forward(first_ff, rows)
        if peg is not None:
            rows = rows + peg.proj(rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        rows = rows + _feed_forward(second_ff, rows)
        return rows + _windowed(iwsa, rows, self._window[stage])


def _scalable(layer: Any, rows: Tensor, reduction: int) -> Tensor:
    """Let every cell attend to a map whose sides are `reduction` times shorter (SSA)."""
    rows = _norm(layer.norm, rows)
    query = _pointwise(rows, layer.to_q).flatten(1, 2)
    # A strided convolution without overlap is a matrix product on patches.
    patches = _tiles(_extended(rows, reduction, reduction), reduction, reduction).flatten(3)
    pair = _pointwise(patches, layer.to_k, layer.to_v).flatten(1, 2)
    query, key, value = (split_heads(part, layer.heads) for part in (query, *pair.chunk(2, dim=-1)))
    taken = merge_heads(attend(query, key, value, None)).view(*rows.shape[:3], -1)
    return _pointwise(taken, layer.to_out[0])


def _windowed(layer: Any, rows: Tensor, window: int | None) -> Tensor:
    """Attend within windows, and add a convolution of the values that joins them (IWSA)."""
    height, width = rows.shape[1:3]
    tall, wide = window or height, window or width
    rows = _extended(_norm(layer.norm, rows), tall, wide)
    together = _pointwise(rows, layer.to_q, layer.to_k, layer.to_v)
    values = together.chunk(3, dim=-1)[2].permute(0, 3, 1, 2)
    local = layer.local_interactive_module(values).permute(0, 2, 3, 1)
    tiles = _tiles(together, tall, wide)  # (B, y, x, tall * wide, 3 * heads * d)
    query, key, value = split_qkv(tiles.flatten(0, 2), layer.heads)
    taken = merge_heads(attend(query, key, value, None))
    back = taken.view(*tiles.shape[:3], tall, wide, -1).transpose(2, 3).reshape(local.shape)
    return _pointwise((back + local)[:, :height, :width], layer.to_out[0])


def _feed_forward(layer: Any, rows: Tensor) -> Tensor:
    norm, widen, gelu, _, narrow, _ = layer.net  # the others: dropout, which is always 0
    return _pointwise(gelu(_pointwise(_norm(norm, rows), widen)), narrow)


def _norm(norm: Any, rows: Tensor) -> Tensor:
    """Apply the library's ChanLayerNorm to (B, h, w, C)."""
    return F.layer_norm(rows, rows.shape[-1:], norm.g.flatten(), norm.b.flatten(), norm.eps)


def _pointwise(rows: Tensor, *convs: Any) -> Tensor:
    """Apply convolutions whose kernel is their stride to (B, h, w, C), outputs side by side.

    Kernels larger than 1 x 1 read the cells of each patch in C. Only a single one may have a bias.
    """
    weights = [conv.weight.permute(0, 2, 3, 1).flatten(1) for conv in convs]
    return F.linear(rows, torch.cat(weights) if len(convs) > 1 else weights[0], convs[0].bias)


def _tiles(rows: Tensor, tall: int, wide: int) -> Tensor:
    """(B, h, w, C) -> (B, h / tall, w / wide, tall * wide, C)."""
    batch, height, width, channels = rows.shape
    tiles = rows.reshape(batch, height // tall, tall, width // wide, wide, channels)
    return tiles.transpose(2, 3).flatten(3, 4)


def _extended(rows: Tensor, tall: int, wide: int) -> Tensor:
    """Pad (B, h, w, C) below and on the right with copies of its rim, up to whole tiles."""
    below, right = -rows.shape[1] % tall, -rows.shape[2] % wide
    if not below and not right:
        return rows
    cells = F.pad(rows.permute(0, 3, 1, 2), (0, right, 0, below), mode="replicate")
    return cells.permute(0, 2, 3, 1)


def _check_lists(**lists: list[Any]) -> None:
    """Raise UserError unless all lists have one positive number per stage."""
    given = ", ".join(f"{name}={list(numbers)}" for name, numbers in lists.items())
    if len({len(numbers) for numbers in lists.values()}) != 1 or not lists["depth"]:
        raise UserError(f"backbone=scalable_vit needs one number per stage, got {given}.")
    for name, numbers in lists.items():
        known = [number for number in numbers if number is not None or name != "window"]
        if not all(isinstance(number, int) and number > 0 for number in known):
            raise UserError(f"backbone.{name} must hold whole numbers from 1, got {given}.")
