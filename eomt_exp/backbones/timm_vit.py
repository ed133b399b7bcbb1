"""A plain ViT of timm as EoMT's encoder: DINOv2, DeiT, or any other by name.

timm >= 1.0.16 takes `attn_mask` in `Block.forward`, so the blocks are used as they are. The module
is called `encoder` and its ViT `backbone` in the official state dict, and so they are here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from eomt_exp.contracts import CheckpointError

PLAIN_TOKENS = 1024
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TimmViT(nn.Module):
    """A `Backbone` around timm's VisionTransformer.

    `weights` is a safetensors file with timm's key names; positions (and the patch kernel) are
    resampled to `image_size` and `patch_size` while loading. `pretrained` downloads timm's own
    weights instead. With neither, the weights are random.
    """

    backbone: Any  # timm's VisionTransformer
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
        if self.backbone.embed_dim != embed_dim:
            raise ValueError(
                f"backbone {name} is {self.backbone.embed_dim} wide, got embed_dim={embed_dim}; "
                f"set backbone.embed_dim={self.backbone.embed_dim}."
            )
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.num_blocks = len(self.backbone.blocks)
        self.num_prefix_tokens = self.backbone.num_prefix_tokens
        if weights:
            self._load(Path(weights))

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) RGB in [0, 1] -> tokens (B, prefix + h*w, D) and the patch grid (h, w)."""
        tokens = self.backbone.patch_embed((images - self.pixel_mean) / self.pixel_std)
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        return self.backbone._pos_embed(tokens), grid

    def block(self, index: int, tokens: Tensor, attn_mask: Tensor | None) -> Tensor:
        """One block; attn_mask (B, 1, N, N) bool, True = attend, or None."""
        block = self.backbone.blocks[index]
        block.attn.fused_attn = not _plain_is_faster(tokens)
        if attn_mask is not None and not block.attn.fused_attn:
            # timm adds the mask to the scores there, where a bool would only add one.
            attn_mask = torch.zeros_like(attn_mask, dtype=tokens.dtype).masked_fill_(
                ~attn_mask, float("-inf")
            )
        return block(tokens, attn_mask=attn_mask)

    def norm_tokens(self, tokens: Tensor) -> Tensor:
        """The ViT's last LayerNorm."""
        return self.backbone.norm(tokens)

    def depth_of(self, parameter_name: str) -> int:
        """Block index; embeddings count as block 0 and the final norm as the last block.

        The official code gives the final norm the full rate, which is what the last block has.
        """
        parts = parameter_name.split(".")
        if "blocks" in parts:
            return int(parts[parts.index("blocks") + 1])
        return self.num_blocks - 1 if "norm" in parts else 0

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
            state = checkpoint_filter_fn(state, self.backbone)
            self.backbone.load_state_dict(state)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{path} holds another backbone: {error}") from error


def _plain_is_faster(tokens: Tensor) -> bool:
    """Whether to spell attention out: on CPUs its backward is two to three times as fast.

    Not for long sequences, whose (N, N) scores would fill the memory.
    """
    return tokens.device.type == "cpu" and tokens.requires_grad and tokens.shape[1] <= PLAIN_TOKENS
