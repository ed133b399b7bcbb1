"""Run a block of timm's with masks in the queries' rows only and rotation of the patches only.

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

from eomt_exp.backbones.attention import attend, merge_heads, split_heads, split_qkv


def run_block(block: Any, tokens: Tensor, positions: Tensor | None, keep: Tensor | None) -> Tensor:
    """Run (B, N, D) tokens through a Block or an EvaBlock, as its own forward does.

    positions (h*w, 2d) are rotary angles of the last tokens; keep (B, 1, Q, N) bool says what the
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
        # Whatever stands in front of the patches has no position in the image.
        front = x.shape[1] - positions.shape[0]
        query, key = (_rotated(t, front, positions, attn.rotate_half) for t in (query, key))
    dropout = attn.attn_drop.p if attn.training else 0.0
    out = merge_heads(attend(query, key, value, keep, dropout))
    return attn.proj_drop(attn.proj(attn.norm(out)))


def _projected(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, D) -> query, key and value, each (B, heads, N, d)."""
    if attn.qkv is None:
        query, key, value = (
            split_heads(layer(x), attn.num_heads)
            for layer in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        return query, key, value
    if getattr(attn, "q_bias", None) is None:
        together = attn.qkv(x)
    else:  # timm's EVA keeps a key bias of zeros out of the weights
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        together = F.linear(x, attn.qkv.weight, bias)
    return split_qkv(together, attn.num_heads)


def _rotated(heads: Tensor, front: int, angles: Tensor, half: bool) -> Tensor:
    """Rotate the tokens of (B, heads, N, d) behind the first `front` by their (h*w, 2d) angles."""
    rotated = apply_rot_embed_cat(heads[:, :, front:], angles, half=half)
    return torch.cat([heads[:, :, :front], rotated], dim=2).type_as(heads)


def _scaled(update: Tensor, gamma: Tensor | None) -> Tensor:
    return update if gamma is None else gamma * update
