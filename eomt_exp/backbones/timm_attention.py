"""A block of timm's, walked by us: masks in the queries' rows only, rotation of the patches only.

timm's own forward takes a mask over all rows, and a rotation from a token that is fixed when the
model is built; queries that join half-way would need both to change.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.models import vision_transformer
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.backbones.attention import attend


def walk(block: Any, tokens: Tensor, positions: Tensor | None, keep: Tensor | None) -> Tensor:
    """(B, N, D) through a Block or an EvaBlock, as its own forward has it.

    positions (h*w, 2d) are rotary angles of the last tokens, keep (B, 1, Q, N) bool says what the
    first Q tokens may attend to.
    """
    update = _attention(block.attn, block.norm1(tokens), positions, keep)
    if isinstance(block, vision_transformer.Block):
        tokens = tokens + block.drop_path1(block.ls1(update))
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    tokens = tokens + block.drop_path1(_scaled(update, block.gamma_1))
    return tokens + block.drop_path2(_scaled(block.mlp(block.norm2(tokens)), block.gamma_2))


def _attention(attn: Any, x: Tensor, positions: Tensor | None, keep: Tensor | None) -> Tensor:
    query, key, value = _projected(attn, x)
    query, key = attn.q_norm(query), attn.k_norm(key)
    if positions is not None:
        # Whatever stands in front of the patches has no place in the image.
        front = x.shape[1] - positions.shape[0]
        query, key = (_rotated(t, front, positions, attn.rotate_half) for t in (query, key))
    dropout = attn.attn_drop.p if attn.training else 0.0
    out = attend(query, key, value, keep, dropout).transpose(1, 2).flatten(2)
    return attn.proj_drop(attn.proj(attn.norm(out)))


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
    """(B, heads, N, d), the tokens behind the first `front` turned by their (h*w, 2d) angles."""
    turned = apply_rot_embed_cat(heads[:, :, front:], angles, half=half)
    return torch.cat([heads[:, :, :front], turned], dim=2).type_as(heads)


def _scaled(update: Tensor, gamma: Tensor | None) -> Tensor:
    return update if gamma is None else gamma * update
