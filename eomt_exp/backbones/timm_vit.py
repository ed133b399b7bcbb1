"""Run a plain ViT of timm as EoMT's encoder: DINOv2, DINOv3, DeiT, or any other by name.

Weights, names and every layer are timm's; what is ours is the forward pass, because queries join
half-way, masks concern only them, and images may have any size. The module is called `encoder` and
its ViT `backbone` in the official state dict, and so they are here.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import NoneType
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import deit, eva, vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.backbones.pixel_encoder import PixelEncoder
from eomt_exp.backbones.timm_attention import run_block
from eomt_exp.contracts import CheckpointError, Tokens, UserError

_TAKE = "Take a VisionTransformer or a DINOv3 (…_qkvb), such as backbone=dinov2_small."
# Exact types: a sub-class may compute something else under the same names, and the official code,
# which uses `hasattr`, drops the residual of a block that has neither of two attributes.
_MODELS = (vision_transformer.VisionTransformer, deit.VisionTransformerDistilled, eva.Eva)
_BLOCKS = (vision_transformer.Block, eva.EvaBlock)
_ATTENTION = (vision_transformer.Attention, eva.EvaAttention)


class TimmViT(PixelEncoder):
    """Wraps timm's VisionTransformer or Eva, its rotary counterpart (DINOv3), as a `Backbone`.

    `weights` is a safetensors file with timm's key names; positions (and the patch kernel) are
    resampled to `image_size` and `patch_size` while loading. `pretrained` downloads timm's own
    weights instead. With neither, the weights are random. Images of another size than `image_size`
    get interpolated positions.
    """

    backbone: Any  # timm's VisionTransformer or Eva

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
        super().__init__(patch_size, f"patch_size={patch_size}")
        self.check_size(image_size, "data.image_size")
        if needs_weights and not weights and not pretrained:
            raise CheckpointError(
                f"backbone {name} needs its weights: type {needs_weights}=/path/to/file.safetensors"
                " (timm's key names), or backbone.pretrained=true to download them,"
                " or backbone.needs_weights=null to start from random ones."
            )
        arguments = dict(img_size=tuple(image_size), patch_size=patch_size, num_classes=0)
        self.backbone = _created(
            name, embed_dim, pretrained and not weights, arguments | (overrides or {})
        )
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        if weights:
            self._load(Path(weights))

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.blocks

    @property
    def norm(self) -> nn.Module:
        return self.backbone.norm

    def embed(self, images: Tensor) -> Tokens:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of patch_size."""
        vit = self.backbone
        patches = vit.patch_embed.proj(self.normalised(images))
        grid = (patches.shape[-2], patches.shape[-1])
        patches = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        rope = getattr(vit, "rope", None)
        angles = None if rope is None else rope.get_embed(shape=list(grid))
        return Tokens(self._with_prefix(patches, grid), grid, angles)

    def block(
        self, index: int, tokens: Tensor, positions: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """Run one block of timm, as its own forward does but for the mask and the rotation."""
        return run_block(self.backbone.blocks[index], tokens, positions, keep)

    def _with_prefix(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h*w, D) patches -> (B, P + h*w, D) with positions, interpolated where needed."""
        vit = self.backbone
        prefix = [
            token.expand(len(patches), -1, -1)
            for token in (vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token)
            if token is not None
        ]
        tokens = patches
        pos_embed = vit.pos_embed
        if pos_embed is not None and grid != tuple(vit.patch_embed.grid_size):
            pos_embed = resample_abs_pos_embed(
                pos_embed,
                new_size=list(grid),
                old_size=list(vit.patch_embed.grid_size),
                num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
            )
        if pos_embed is not None and vit.no_embed_class:
            tokens = tokens + pos_embed
        tokens = torch.cat([*prefix, tokens], dim=1)
        if pos_embed is not None and not vit.no_embed_class:
            tokens = tokens + pos_embed
        return vit.norm_pre(vit.pos_drop(tokens))

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"backbone weights {path} do not exist; check the path.")
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"backbone weights must be one safetensors file with timm's key names, got {path}; "
                "other files of a backbone go in checkpoint=."
            )
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is no whole safetensors file ({error}).") from error
        # Heads of the pre-training task go; what is left must fit exactly.
        state = {k: v.float() for k, v in state.items() if not k.startswith(("head", "attn_pool"))}
        try:
            self.backbone.load_state_dict(self.adapted(state))
        except (RuntimeError, KeyError) as error:
            absent = [name for name in self.backbone.state_dict() if name not in state][:3]
            hint = f" (it has no {', '.join(absent)})" if absent else ""
            raise CheckpointError(f"{path} holds another backbone{hint}: {error}") from error

    def adapted(
        self, state: dict[str, Tensor], trained_size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Return weights with timm's names, positions and patch kernel resized to fit this ViT.

        Positions by antialiased bicubic interpolation, the kernel by FlexiViT's pseudo-inverse.
        `trained_size` is the (H, W) of the images they were trained on; where it is not known, the
        positions are taken for a square grid. Raises UserError where they cannot be one.
        """
        vit = self.backbone
        module = eva if isinstance(vit, eva.Eva) else vision_transformer
        pos_embed = state.get("pos_embed")
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        trained: list[int] | None = None
        if trained_size is not None:
            kernel = state["patch_embed.proj.weight"].shape[-2:]
            trained = [side // step for side, step in zip(trained_size, kernel, strict=True)]
        if pos_embed is not None and prefix and vit.pos_embed is not None:
            count, own = pos_embed.shape[1], vit.pos_embed.shape[1]
            patches = math.prod(trained) if trained else math.isqrt(count) ** 2
            if count == patches and count != own:
                # Of a layout where patches alone have positions: the others' are in the tokens.
                pos_embed = F.pad(pos_embed, (0, 0, prefix, 0))
                state = state | {"pos_embed": pos_embed}
        if pos_embed is not None and trained is not None:
            grid = list(vit.patch_embed.grid_size)
            pos_embed = resample_abs_pos_embed(pos_embed, grid, trained, prefix)
            # Not for timm, which would take them for a square if their number is the usual one.
            state = {name: value for name, value in state.items() if name != "pos_embed"}
            return module.checkpoint_filter_fn(state, vit) | {"pos_embed": pos_embed}
        if pos_embed is not None and vit.pos_embed is not None:
            _check_square(pos_embed.shape[1] - prefix, vit.pos_embed.shape[1] - prefix)
        state = module.checkpoint_filter_fn(state, vit)
        if "norm.weight" in state:
            return {k: v for k, v in state.items() if not k.startswith("fc_norm.")}
        return {k.replace("fc_norm.", "norm."): v for k, v in state.items()}  # as _without_head


def _check_square(count: int, own: int) -> None:
    """Raise UserError for positions that are neither as many as this ViT has nor a square."""
    # One more is the class token's, which some files of pre-trained weights keep there.
    if count != own and math.isqrt(count) ** 2 != count and math.isqrt(count - 1) ** 2 != count - 1:
        raise UserError(
            f"{count} positions are no square, and only a run folder says which rows they form"
        )


def _created(name: str, embed_dim: int, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """Build timm's model without a classifier; UserError or CheckpointError says why it fails."""
    if not timm.is_model(name):
        raise UserError(
            f"timm {timm.__version__} has no model {name!r}; timm.list_models('*vit*') lists what "
            "backbone.name can be."
        )
    try:
        # Where a download follows, errors in the arguments are to be raised before it.
        with torch.device("meta") if pretrained else nullcontext():
            vit = timm.create_model(name, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {error}"
        message = f"backbone {name} cannot be built by timm with {arguments} ({why}). {_TAKE}"
        raise UserError(message) from error
    _check_supported(name, vit)
    if getattr(getattr(vit, "rope", None), "feat_shape", None) is not None:
        # As built, its angles are those of one grid and no other.
        return _created(name, embed_dim, pretrained, arguments | {"dynamic_img_size": True})
    if vit.embed_dim != embed_dim:
        raise UserError(
            f"backbone {name} is {vit.embed_dim} wide, got embed_dim={embed_dim}; "
            f"set backbone.embed_dim={vit.embed_dim}."
        )
    return _without_head(_downloaded(name, arguments) if pretrained else vit)


def _downloaded(name: str, arguments: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # those of sockets, the hub and timm share no base class
        raise CheckpointError(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}: {error}); type "
            "backbone.weights=/path/to/file.safetensors (timm's key names), "
            "or backbone.pretrained=false to start from random ones."
        ) from error


def _without_head(vit: Any) -> Any:
    """Drop what only a classifier reads; a last norm behind its pooling moves to the tokens."""
    if isinstance(vit.norm, nn.Identity):
        vit.norm = vit.fc_norm
    vit.fc_norm, vit.attn_pool = nn.Identity(), None
    return vit


def _check_supported(name: str, vit: Any) -> None:
    """Raise UserError, by name, for a model that is no plain ViT as EoMT needs it."""
    embedding = getattr(vit, "patch_embed", None)
    if type(vit) not in _MODELS or type(embedding) is not PatchEmbed:
        raise UserError(
            f"backbone {name} is timm's {type(vit).__name__} with {type(embedding).__name__}, "
            f"no plain ViT whose blocks can carry queries. {_TAKE}"
        )
    for block in vit.blocks:
        attn = getattr(block, "attn", None)
        if type(block) not in _BLOCKS or type(attn) not in _ATTENTION:
            raise UserError(
                f"backbone {name} has blocks of timm's {type(block).__name__} with "
                f"{type(attn).__name__}; only Block and EvaBlock are supported. {_TAKE}"
            )
        if getattr(attn, "gate", None) is not None:
            raise UserError(f"backbone {name} has gated attention, which is not supported.")
    if getattr(vit, "rope_mixed", False):
        raise UserError(f"backbone {name} has a rotation per block, which is not supported.")
    if not isinstance(vit.patch_drop, (nn.Identity, NoneType)):
        raise UserError(f"backbone {name}: patch_drop_rate must be 0, EoMT needs every patch.")
    if isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity):
        raise UserError(f"backbone {name} has no last norm, which EoMT predicts through. {_TAKE}")
