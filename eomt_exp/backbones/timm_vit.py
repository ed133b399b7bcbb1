"""A plain ViT of timm as EoMT's encoder: DINOv2, DINOv3, DeiT, or any other by name.

Weights, names and every layer are timm's; what is ours is the walk through them, because queries
join half-way, masks concern only them, and images may have any size. The module is called
`encoder` and its ViT `backbone` in the official state dict, and so they are here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import PatchEmbed, apply_rot_embed_cat, resample_abs_pos_embed
from timm.models import eva, vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.backbones.attention import attend
from eomt_exp.contracts import CheckpointError, Tokens

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BLOCKS = (vision_transformer.Block, eva.EvaBlock)


class TimmViT(nn.Module):
    """A `Backbone` around timm's VisionTransformer or its rotary sister Eva (DINOv3).

    `weights` is a safetensors file with timm's key names; positions (and the patch kernel) are
    resampled to `image_size` and `patch_size` while loading. `pretrained` downloads timm's own
    weights instead. With neither, the weights are random. Images of another size than `image_size`
    get interpolated positions.
    """

    backbone: Any  # timm's VisionTransformer or Eva
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        name: str,
        image_size: tuple[int, int],
        embed_dim: int,
        patch_size: int = 16,
        weights: str | None = None,
        pretrained: bool = False,
        needs_weights: str | None = None,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if any(side % patch_size for side in image_size):
            raise ValueError(
                f"data.image_size must be multiples of patch_size={patch_size}, got {image_size}; "
                f"try {[max(1, round(s / patch_size)) * patch_size for s in image_size]}."
            )
        if needs_weights and not weights and not pretrained:
            raise CheckpointError(
                f"backbone {name} needs its weights: type {needs_weights}=/path/to/file.safetensors"
                " (timm's key names), or backbone.pretrained=true to download them,"
                " or backbone.needs_weights=null to start from random ones."
            )
        self.backbone = timm.create_model(
            name,
            pretrained=pretrained and not weights,
            img_size=tuple(image_size),
            patch_size=patch_size,
            num_classes=0,
            **(overrides or {}),
        )
        _check_supported(name, self.backbone)
        if self.backbone.embed_dim != embed_dim:
            raise ValueError(
                f"backbone {name} is {self.backbone.embed_dim} wide, got embed_dim={embed_dim}; "
                f"set backbone.embed_dim={self.backbone.embed_dim}."
            )
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        if weights:
            self._load(Path(weights))

    @property
    def blocks(self) -> nn.ModuleList:
        """timm's blocks."""
        return self.backbone.blocks

    @property
    def norm(self) -> nn.Module:
        """The ViT's last LayerNorm."""
        return self.backbone.norm

    def embed(self, images: Tensor) -> Tokens:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of patch_size."""
        if images.shape[-2] % self.patch_size or images.shape[-1] % self.patch_size:
            raise ValueError(
                f"image sides must be multiples of patch_size={self.patch_size}, "
                f"got {tuple(images.shape[-2:])}."
            )
        vit = self.backbone
        patches = vit.patch_embed.proj((images - self.pixel_mean) / self.pixel_std)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        rope = getattr(vit, "rope", None)
        angles = None if rope is None else rope.get_embed(shape=list(grid))
        return Tokens(self._with_prefix(patches, grid), grid, angles)

    def block(
        self, index: int, tokens: Tensor, positions: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """One block of timm, as its own forward has it, but for the mask and the rotation."""
        block = self.backbone.blocks[index]
        update = self._attention(block.attn, block.norm1(tokens), positions, keep)
        if isinstance(block, vision_transformer.Block):
            tokens = tokens + block.drop_path1(block.ls1(update))
            return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
        tokens = tokens + block.drop_path1(_scaled(update, block.gamma_1))
        return tokens + block.drop_path2(_scaled(block.mlp(block.norm2(tokens)), block.gamma_2))

    def _with_prefix(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h*w, D) patches -> (B, P + h*w, D) with positions, interpolated where needed."""
        vit = self.backbone
        prefix = [
            token.expand(len(patches), -1, -1)
            for token in (vit.cls_token, vit.reg_token)
            if token is not None
        ]
        tokens = patches
        places = vit.pos_embed
        if places is not None and grid != tuple(vit.patch_embed.grid_size):
            places = resample_abs_pos_embed(
                places,
                new_size=list(grid),
                old_size=list(vit.patch_embed.grid_size),
                num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
            )
        if places is not None and vit.no_embed_class:
            tokens = tokens + places
        tokens = torch.cat([*prefix, tokens], dim=1)
        if places is not None and not vit.no_embed_class:
            tokens = tokens + places
        return vit.norm_pre(vit.pos_drop(tokens))

    def _attention(
        self, attn: Any, x: Tensor, positions: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        query, key, value = _projected(attn, x)
        query, key = attn.q_norm(query), attn.k_norm(key)
        if positions is not None:
            # Whatever stands in front of the patches has no place in the image.
            front = x.shape[1] - positions.shape[0]
            half = getattr(attn, "rotate_half", False)
            query, key = (_rotated(t, front, positions, half) for t in (query, key))
        dropout = attn.attn_drop.p if attn.training else 0.0
        out = attend(query, key, value, keep, dropout).transpose(1, 2).flatten(2)
        out = attn.norm(out) if hasattr(attn, "norm") else out
        return attn.proj_drop(attn.proj(out))

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"backbone weights {path} do not exist; check the path.")
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is no whole safetensors file ({error}).") from error
        # Heads of the pre-training task go; what is left must fit exactly.
        state = {k: v.float() for k, v in state.items() if not k.startswith(("head", "fc_norm"))}
        try:
            self.backbone.load_state_dict(self.adapted(state))
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{path} holds another backbone: {error}") from error

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights with timm's names -> the same, positions and patch kernel in this ViT's sizes.

        Positions by antialiased bicubic interpolation, the kernel by FlexiViT's pseudo-inverse.
        """
        is_eva = isinstance(self.backbone, eva.Eva)
        module = eva if is_eva else vision_transformer
        return module.checkpoint_filter_fn(state, self.backbone)


def _check_supported(name: str, vit: Any) -> None:
    """Raise ValueError, by name, for a model that is no plain ViT as EoMT needs it."""
    kind = type(vit).__name__
    blocks = {type(block).__name__ for block in getattr(vit, "blocks", [])}
    plain = isinstance(vit, (vision_transformer.VisionTransformer, eva.Eva))
    if not plain or type(vit.patch_embed) is not PatchEmbed:
        raise ValueError(
            f"backbone {name} is timm's {kind}, no plain ViT whose blocks can carry queries; "
            "take a VisionTransformer or a DINOv3 (…_qkvb), such as backbone=dinov2_small."
        )
    # Exact types: a sub-class may compute something else under the same names.
    attention = (vision_transformer.Attention, eva.EvaAttention)
    for block in vit.blocks:
        if type(block) not in _BLOCKS or type(block.attn) not in attention:
            raise ValueError(
                f"backbone {name} has blocks of timm's {', '.join(sorted(blocks))} with "
                f"{type(block.attn).__name__}; only Block and EvaBlock are supported."
            )
        if getattr(block.attn, "gate", None) is not None:
            raise ValueError(f"backbone {name} has gated attention, which is not supported.")
    if getattr(vit, "rope_mixed", False):
        raise ValueError(f"backbone {name} has a rotation per block, which is not supported.")


def _projected(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, D) -> query, key and value, each (B, heads, N, d)."""
    if attn.qkv is None:
        parts = [layer(x) for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
        query, key, value = (
            part.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for part in parts
        )
        return query, key, value
    if getattr(attn, "q_bias", None) is None:
        together = attn.qkv(x)
    else:  # timm's EVA keeps a key bias of zeros out of the weights
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        together = F.linear(x, attn.qkv.weight, bias)
    query, key, value = (
        together.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    )
    return query, key, value


def _rotated(heads: Tensor, front: int, angles: Tensor, half: bool) -> Tensor:
    """(B, heads, N, d) with all tokens behind the first `front` turned by their (N', 2d) angles."""
    turned = apply_rot_embed_cat(heads[:, :, front:], angles, half=half)
    return torch.cat([heads[:, :, :front], turned], dim=2).type_as(heads)


def _scaled(update: Tensor, gamma: Tensor | None) -> Tensor:
    return update if gamma is None else gamma * update
