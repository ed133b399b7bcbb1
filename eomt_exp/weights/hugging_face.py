"""Converts names of EoMT, DINOv2 and DINOv3 from Hugging Face's to timm's, by tables of names.

timm fuses query, key and value, and the gate before the value of DINOv2's SwiGLU; Hugging Face has
a module each. DINOv3's keys have no bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from eomt_exp.contracts import CheckpointError

State = dict[str, Tensor]
Names = tuple[tuple[str, str], ...]

BACKBONE = "encoder.backbone."
SPLIT_QUERY = re.compile(r"encoder\.backbone\.(?:model\.)?(?:layer|blocks)\.\d+\.attention\.q_proj")

# How a name begins at Hugging Face and with us; # is a number, and what follows stays.
_HEADS: Names = (
    ("query.", "q."),
    ("class_predictor.", "class_head."),
    ("mask_head.fc1.", "mask_head.0."),
    ("mask_head.fc2.", "mask_head.2."),
    ("mask_head.fc3.", "mask_head.4."),
    ("upscale_block.block.#.layernorm2d.", "upscale.#.norm."),
    ("upscale_block.block.#.conv", "upscale.#.conv"),
    ("attn_mask_probs", "attn_mask_probs"),
)
_TOKENS: Names = (
    ("norm.", "norm."),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
)
_EMBEDDINGS: Names = (
    *_TOKENS,
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
)
_EMBEDDINGS_DINOV3: Names = (*_TOKENS, ("embeddings.patch_embeddings.", "patch_embed.proj."))
_BLOCK: Names = (("norm1.", "norm1."), ("norm2.", "norm2."), ("attention.o_proj.", "attn.proj."))
_MLP: Names = (("mlp.fc1.", "mlp.fc1."), ("mlp.fc2.", "mlp.fc2."))
_SWIGLU: Names = (("mlp.weights_in.", "mlp.fc1."), ("mlp.down_proj.", "mlp.fc2."))
_BLOCK_DINOV2: Names = (
    *_BLOCK,
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)
_BLOCK_DINOV3: Names = (
    *_BLOCK,
    ("attention.q_proj.bias", "attn.q_bias"),
    ("attention.v_proj.bias", "attn.v_bias"),
    ("layer_scale1.lambda1", "gamma_1"),
    ("layer_scale2.lambda1", "gamma_2"),
    ("mlp.down_proj.", "mlp.fc2."),
)
_MLP_DINOV3: Names = (("mlp.up_proj.", "mlp.fc1."),)
_SWIGLU_DINOV3: Names = (("mlp.gate_proj.", "mlp.fc1_g."), ("mlp.up_proj.", "mlp.fc1_x."))

# What the models and their versions call differently, to the one spelling of the tables.
_SPELLINGS = (
    (r"^(?:model\.|encoder\.)?(?:layers?|blocks)\.(\d+)\.", r"layers.\1."),
    (r"^patch_embed\.", "embeddings."),  # the official code's second name for them
    (r"^layernorm\.", "norm."),
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.(?:output\.dense|out_proj)\.", ".attention.o_proj."),
    (r"\.mlp\.weights_out\.", ".mlp.down_proj."),
)
_NO_WEIGHTS = re.compile(r"mask_token$|^rope_embeddings\.")  # for pre-training; a constant


def from_eomt(state: State) -> State:
    """Rename `Eomt…` and `EomtDinov3ForUniversalSegmentation` to our names."""
    heads, trunk = _renamed(state, _HEADS)
    return heads | from_backbone(trunk)


def from_backbone(trunk: State) -> State:
    """Rename a DINOv2 or DINOv3 from any of Hugging Face's names to timm's, which are ours."""
    trunk = _respelt(trunk)
    rotary = not any(name.startswith("embeddings.position_embeddings") for name in trunk)
    outside: State = {}
    blocks: dict[str, State] = {}
    for name, value in trunk.items():
        inside = re.match(r"layers\.(\d+)\.(.+)", name)
        if inside is None:
            outside[name] = value
        else:
            blocks.setdefault(inside[1], {})[inside[2]] = value
    named, rest = _renamed(outside, _EMBEDDINGS_DINOV3 if rotary else _EMBEDDINGS)
    named = _with_timm_positions(named) | rest
    for index, block in blocks.items():
        merged = _rotary_block(block, index) if rotary else _block(block)
        named |= {f"blocks.{index}.{name}": value for name, value in merged.items()}
    return {BACKBONE + name: value for name, value in named.items()}


def _respelt(trunk: State) -> State:
    found: State = {}
    for name, value in trunk.items():
        spelling = name
        for pattern, replacement in _SPELLINGS:
            spelling = re.sub(pattern, replacement, spelling)
        # The official code registers modules under two names.
        if spelling in found and not torch.equal(found[spelling], value):
            raise CheckpointError(f"{name} is there twice, under two names with two values.")
        if not _NO_WEIGHTS.search(spelling):
            found[spelling] = value
    return found


def _with_timm_positions(embeddings: State) -> State:
    """Shape positions as timm does; a model without registers has no empty tensor there."""
    if "pos_embed.weight" in embeddings:  # (h*w, D), EoMT: only patches have positions
        embeddings["pos_embed"] = embeddings.pop("pos_embed.weight")[None]
    elif "pos_embed" in embeddings and "reg_token" in embeddings:
        # (1, 1 + h*w, D), DINOv2 with registers: the first is added to the class token, always.
        positions = embeddings["pos_embed"]
        embeddings["cls_token"] = embeddings["cls_token"] + positions[:, :1]
        embeddings["pos_embed"] = positions[:, 1:]
    return {name: value for name, value in embeddings.items() if value.numel()}


def _block(block: State) -> State:
    for kind in ("weight", "bias"):
        _fuse(block, "attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj"), kind)
        _fuse(block, "mlp.weights_in", ("mlp.gate_proj", "mlp.up_proj"), kind)
    table = _SWIGLU if "mlp.weights_in.weight" in block else _MLP
    named, rest = _renamed(block, _BLOCK_DINOV2 + table)
    return named | rest


def _rotary_block(block: State, index: str) -> State:
    _fuse(block, "attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj"), "weight")
    key_bias = block.pop("attention.k_proj.bias", None)
    if key_bias is not None and key_bias.any():
        raise CheckpointError(
            f"block {index} has a key bias of up to {key_bias.abs().max():.3g}; DINOv3 has none, "
            "and timm's keeps zeros there: this program cannot hold such a model."
        )
    table = _SWIGLU_DINOV3 if "mlp.gate_proj.weight" in block else _MLP_DINOV3
    named, rest = _renamed(block, _BLOCK_DINOV3 + table)
    return named | rest


def _fuse(block: State, into: str, parts: Iterable[str], kind: str) -> None:
    names = [f"{part}.{kind}" for part in parts]
    if all(name in block for name in names):
        block[f"{into}.{kind}"] = torch.cat([block.pop(name) for name in names])


def _renamed(state: State, names: Names) -> tuple[State, State]:
    """Split weights into those that begin like one of `names`, renamed, and the others."""
    rules = [(re.compile("^" + re.escape(old).replace(r"\#", r"(\d+)")), new.replace("#", r"\1"))
             for old, new in names]  # fmt: skip
    named: State = {}
    rest: State = {}
    for name, value in state.items():
        for pattern, new in rules:
            if pattern.match(name):
                named[pattern.sub(new, name, count=1)] = value
                break
        else:
            rest[name] = value
    return named, rest
