"""vit-pytorch's ViT and SimpleViT as EoMT's encoder: two plain ViTs that differ in small things.

ViT (Dosovitskiy et al., ICLR 2021) has a class token and learned positions; SimpleViT (Beyer et
al., arXiv 2205.01580) has neither: sine and cosine of row and column, recomputed for any grid.
Weights, names and every layer are the library's; what is ours is the walk through them, as in
timm_vit.py. Their attention takes no mask, so it is computed here with its own layers. The
classification head is dropped: parameters without a gradient would stop distributed training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.backbones.attention import attend
from eomt_exp.backbones.pixel_encoder import PixelEncoder
from eomt_exp.backbones.vit_pytorch_extra import vit_pytorch
from eomt_exp.contracts import Tokens


class _VitPytorch(PixelEncoder):
    """What both have in common: patches, blocks of (attention, feed-forward), the last norm.

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
        height, width = image_size
        self.check_size((height, width), "data.image_size")
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
        """The library's blocks, each a ModuleList of attention and feed-forward."""
        return self.backbone.transformer.layers

    @property
    def norm(self) -> nn.Module:
        """The LayerNorm behind the last block."""
        return self.backbone.transformer.norm

    def embed(self, images: Tensor) -> Tokens:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of patch_size."""
        height, width = images.shape[-2:]
        patches = self.backbone.to_patch_embedding(self.normalised(images))
        grid = (height // self.patch_size, width // self.patch_size)
        return Tokens(self._placed(patches, grid), grid)

    def block(
        self, index: int, tokens: Tensor, positions: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """One block, as the library's own forward has it, but for the mask."""
        layers: Any = self.blocks[index]
        attention, feed_forward = layers
        tokens = tokens + _attention(attention, tokens, keep)
        return tokens + feed_forward(tokens)

    def _network(self, **sizes: Any) -> Any:
        """The library's module without its classification head."""
        raise NotImplementedError

    def _placed(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h*w, D) patches -> (B, P + h*w, D) with prefix and positions."""
        raise NotImplementedError


class VitPytorchViT(_VitPytorch):
    """A `Backbone` around vit-pytorch's ViT: one class token, learned positions.

    Other grids than the one built for get the positions by antialiased bicubic interpolation.
    """

    def _network(self, **sizes: Any) -> Any:
        network = vit_pytorch("vit").ViT(**sizes)
        network.mlp_head = nn.Identity()
        return network

    def _placed(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        # Some versions of the library store both with a batch dimension of one, some without.
        first, places = (
            parameter.flatten(0, -2)
            for parameter in (self.backbone.cls_token, self.backbone.pos_embedding)
        )
        if grid != self.grid:
            places = self._resampled(places, grid)
        tokens = torch.cat([first.expand(len(patches), 1, -1), patches], dim=1)
        return tokens + places

    def _resampled(self, places: Tensor, grid: tuple[int, int]) -> Tensor:
        """(1 + h*w, D) positions -> (1 + h'*w', D); the class token has no place in the image."""
        plane = places[1:].T.unflatten(1, self.grid)[None]  # (1, D, h, w)
        # In float32 at least: CPUs do not interpolate in half precision.
        wide = torch.promote_types(plane.dtype, torch.float32)
        plane = F.interpolate(plane.to(wide), size=grid, mode="bicubic", antialias=True)
        return torch.cat([places[:1], plane[0].flatten(1).T.to(places.dtype)])


class VitPytorchSimpleViT(_VitPytorch):
    """A `Backbone` around vit-pytorch's SimpleViT: no class token, sine and cosine positions."""

    places: Tensor

    def _network(self, **sizes: Any) -> Any:
        if self.embed_dim % 4 or self.embed_dim < 8:
            raise ValueError(
                "backbone=simple_vit needs an embed_dim of at least 8 that is a multiple of 4 "
                f"(sine and cosine of row and column), got {self.embed_dim}; "
                f"try backbone.embed_dim={max(2, round(self.embed_dim / 4)) * 4}."
            )
        library = vit_pytorch("simple_vit")
        self._sines = library.posemb_sincos_2d
        network = library.SimpleViT(**sizes)
        network.linear_head = nn.Identity()
        # As a buffer they move with the model; not saved, since they follow from the grid.
        self.register_buffer("places", network.pos_embedding, persistent=False)
        return network

    def _placed(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        places = self.places
        if grid != self.grid:
            places = self._sines(*grid, dim=self.embed_dim)
        return patches + places.to(patches.device, patches.dtype)


def _attention(attention: Any, tokens: Tensor, keep: Tensor | None) -> Tensor:
    """(B, N, D) to the same, by the library's layers: it norms its own input."""
    together = attention.to_qkv(attention.norm(tokens))
    query, key, value = (
        together.unflatten(2, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    )
    return attention.to_out(attend(query, key, value, keep).transpose(1, 2).flatten(2))
