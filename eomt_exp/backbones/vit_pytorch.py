"""Run vit-pytorch's ViT or SimpleViT as EoMT's encoder: plain ViTs that differ in small things.

ViT (Dosovitskiy et al., ICLR 2021) has a class token and learned positions; SimpleViT (Beyer et
al., arXiv 2205.01580) has neither: sine and cosine of row and column, recomputed for any grid.
Weights, names and every layer are the library's; what is ours is the forward pass, as in
timm_vit.py. Their attention takes no mask, so it is computed here with its own layers. The
classification head is dropped: parameters without a gradient would stop distributed training.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from eomt_exp.backbones.attention import attend, merge_heads, split_qkv
from eomt_exp.backbones.pixel_encoder import PixelEncoder
from eomt_exp.contracts import Tokens, UserError


def library(module: str) -> Any:
    """Return a module of vit-pytorch by its short name, such as "simple_vit".

    It is an optional extra, so it is imported only when one of its backbones is built. Raises
    UserError, with the command that helps, where it is not installed.
    """
    try:
        return import_module(f"vit_pytorch.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"backbone {module} is one of vit-pytorch's, and {error.name} is not installed: "
            'type pip install -e ".[vit-pytorch]", or take another, such as backbone=tiny.'
        ) from error


class _VitPytorch(PixelEncoder):
    """Holds what both have in common: patches, blocks of (attention, feed-forward), the last norm.

    `dim_head` is the width of one attention head (heads * dim_head need not be embed_dim),
    `mlp_dim` that of the feed-forward layers. Weights are random.
    """

    backbone: Any  # the library's ViT or SimpleViT

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        embed_dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        dim_head: int = 64,
        patch_size: int = 16,
    ) -> None:
        super().__init__(patch_size, f"patch_size={patch_size}")
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.check_size(image_size, "data.image_size")
        height, width = image_size
        self.grid = (height // patch_size, width // patch_size)  # that positions are built for
        self.backbone = self._network(
            image_size=(height, width),
            patch_size=patch_size,
            num_classes=1,
            dim=embed_dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            dim_head=dim_head,
        )

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.transformer.layers  # each a ModuleList of attention and feed-forward

    @property
    def norm(self) -> nn.Module:
        return self.backbone.transformer.norm

    def embed(self, images: Tensor) -> Tokens:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of patch_size."""
        height, width = images.shape[-2:]
        patches = self.backbone.to_patch_embedding(self.normalised(images))
        grid = (height // self.patch_size, width // self.patch_size)
        return Tokens(self._with_positions(patches, grid), grid)

    def block(
        self, index: int, tokens: Tensor, positions: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """Run one block, as the library's own forward does but for the mask."""
        layers: Any = self.blocks[index]
        attention, feed_forward = layers
        tokens = tokens + _attention(attention, tokens, keep)
        return tokens + feed_forward(tokens)

    def _network(self, **sizes: Any) -> Any:
        """Build the library's module without its classification head."""
        raise NotImplementedError

    def _with_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h*w, D) patches -> (B, P + h*w, D) with prefix and positions."""
        raise NotImplementedError


class VitPytorchViT(_VitPytorch):
    """Wraps vit-pytorch's ViT as a `Backbone`: one class token, learned positions.

    Other grids than the one built for get the positions by antialiased bicubic interpolation.
    """

    def _network(self, **sizes: Any) -> Any:
        network = library("vit").ViT(**sizes)
        network.mlp_head = nn.Identity()
        return network

    def _with_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        # Some versions of the library store both with a batch dimension of one, some without.
        class_token, pos_embed = (
            parameter.flatten(0, -2)
            for parameter in (self.backbone.cls_token, self.backbone.pos_embedding)
        )
        if grid != self.grid:
            pos_embed = resample_abs_pos_embed(pos_embed[None], list(grid), list(self.grid))[0]
        tokens = torch.cat([class_token.expand(len(patches), 1, -1), patches], dim=1)
        return tokens + pos_embed


class VitPytorchSimpleViT(_VitPytorch):
    """Wraps vit-pytorch's SimpleViT as a `Backbone`: no class token, sine and cosine positions."""

    pos_embed: Tensor

    def _network(self, **sizes: Any) -> Any:
        if self.embed_dim % 4 or self.embed_dim < 8:
            raise UserError(
                "backbone=simple_vit needs an embed_dim of at least 8 that is a multiple of 4 "
                f"(sine and cosine of row and column), got {self.embed_dim}; "
                f"try backbone.embed_dim={max(2, round(self.embed_dim / 4)) * 4}."
            )
        module = library("simple_vit")
        self._sines = module.posemb_sincos_2d
        network = module.SimpleViT(**sizes)
        network.linear_head = nn.Identity()
        # As a buffer they move with the model; not saved, since they follow from the grid.
        self.register_buffer("pos_embed", network.pos_embedding, persistent=False)
        return network

    def _with_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        pos_embed = self.pos_embed
        if grid != self.grid:
            pos_embed = self._sines(*grid, dim=self.embed_dim)
        return patches + pos_embed.to(patches.device, patches.dtype)


def _attention(attention: Any, tokens: Tensor, keep: Tensor | None) -> Tensor:
    """(B, N, D) -> (B, N, D) by the library's layers, which normalise their own input."""
    query, key, value = split_qkv(attention.to_qkv(attention.norm(tokens)), attention.heads)
    return attention.to_out(merge_heads(attend(query, key, value, keep)))
