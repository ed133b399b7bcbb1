"""Compute scaled dot-product attention as EoMT needs it: only the queries' rows are ever masked.

A mask over all rows of (N, N) costs memory and, on GPUs, the fast kernel; queries come first, so
their Q rows are computed with the mask and the others without, to the same result.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Up to this many tokens a CPU is faster when attention is spelled out (measured on AVX-512 with
# bf16 units: 1.4 to 3 times, half precision; 1.3 times in float32, with gradients only). In half
# precision it rounds the scores too, which the fused kernel keeps in float32: on scores of standard
# deviation 1 the error is twice the kernel's (4e-3, as of any bf16 layer), on 10 ten times (2e-2).
PLAIN_TOKENS_HALF, PLAIN_TOKENS_FLOAT = 1536, 512


def split_heads(rows: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d)."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)


def split_qkv(together: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3 * heads * d) -> query, key and value, each (B, heads, N, d)."""
    query, key, value = together.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def merge_heads(heads: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return heads.transpose(1, 2).flatten(2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """(B, heads, N, d) each -> (B, heads, N, d).

    keep (B, 1, Q, N) bool says what the first Q rows may attend to; with None nothing is masked.
    """
    if keep is None:
        return _attend(query, key, value, None, dropout)
    count = keep.shape[2]
    masked = _attend(query[:, :, :count], key, value, keep, dropout)
    return torch.cat([masked, _attend(query[:, :, count:], key, value, None, dropout)], dim=2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, dropout: float
) -> Tensor:
    if not _plain_is_faster(query, key):
        return F.scaled_dot_product_attention(query, key, value, keep, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    shares = scores.softmax(dim=-1)
    return (F.dropout(shares, dropout) if dropout else shares) @ value


def _plain_is_faster(query: Tensor, key: Tensor) -> bool:
    """Return False for long sequences, whose (N, N) scores would leave the caches."""
    if query.device.type != "cpu":
        return False
    if query.dtype in (torch.bfloat16, torch.float16):
        return key.shape[2] <= PLAIN_TOKENS_HALF
    return query.requires_grad and key.shape[2] <= PLAIN_TOKENS_FLOAT
