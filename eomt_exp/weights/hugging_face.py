"""Converts names of EoMT, DINOv2, DINOv3 and Mask2Former from Hugging Face's to ours, by tables.

Our names of EoMT's backbones are timm's. timm fuses query, key and value, and the gate before the
value of DINOv2's SwiGLU; Hugging Face has a module each. DINOv3's keys have no bias.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from eomt_exp.contracts import CheckpointError

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # a pattern in Hugging Face's names, and what we write for it

BACKBONE = "encoder.backbone."
SPLIT_QUERY = re.compile(r"encoder\.backbone\.(?:model\.)?(?:layer|blocks)\.\d+\.attention\.q_proj")

_IN_HEADS = re.compile(r"(?:query|class_predictor|mask_head|upscale_block)\.|attn_mask_probs")
_HEADS: Rules = (
    (r"^query\.", "q."),
    (r"^class_predictor\.", "class_head."),
    (r"^mask_head\.fc1\.", "mask_head.0."),
    (r"^mask_head\.fc2\.", "mask_head.2."),
    (r"^mask_head\.fc3\.", "mask_head.4."),
    (r"^upscale_block\.block\.(\d+)\.layernorm2d\.", r"upscale.\1.norm."),
    (r"^upscale_block\.block\.(\d+)\.conv", r"upscale.\1.conv"),
)
# The models and their versions spell some names differently.
_TRUNK: Rules = (
    (r"^(?:model\.|encoder\.)?(?:layers?|blocks)\.(\d+)\.", r"blocks.\1."),
    (r"^patch_embed\.", "embeddings."),  # the official code's second name for them
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.register_tokens", "reg_token"),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|out_proj|o_proj)\.", ".attn.proj."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
)
_DINOV2: Rules = ((r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),)
_DINOV3: Rules = (
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.attn\.([qv])\.bias$", r".attn.\1_bias"),
)
_GATED: Rules = ((r"\.gate_proj\.", ".fc1_g."), (r"\.up_proj\.", ".fc1_x."))
_UNGATED: Rules = ((r"\.up_proj\.", ".fc1."),)
# Mask2Former's parts are transformers' own, under other names; what is in Swin is called otherwise
# in files than in modules since version 5. Files of versions 4 lack the "swin.".
_MASK2FORMER: Rules = (
    (r"^model\.pixel_level_module\.encoder\.", "encoder."),
    (r"^swin\.", "encoder.swin."),
    (r"^encoder\.(embeddings|encoder)\.", r"encoder.swin.\1."),
    (r"^model\.pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^model\.transformer_module\.", "transformer_decoder."),
    (r"^class_predictor\.", "class_head."),
    (r"\.attention\.self\.relative_position_bias_table$",
     ".attention.relative_position_bias.relative_position_bias_table"),
    (r"\.attention\.self\.query\.", ".attention.q_proj."),
    (r"\.attention\.self\.key\.", ".attention.k_proj."),
    (r"\.attention\.self\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)  # fmt: skip
_TO_EOMT: Rules = (
    (r"^q\.", "query."),
    (r"^class_head\.", "class_predictor."),
    (r"^mask_head\.0\.", "mask_head.fc1."),
    (r"^mask_head\.2\.", "mask_head.fc2."),
    (r"^mask_head\.4\.", "mask_head.fc3."),
    (r"^upscale\.(\d+)\.norm\.", r"upscale_block.block.\1.layernorm2d."),
    (r"^upscale\.(\d+)\.conv", r"upscale_block.block.\1.conv"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^pos_embed$", "embeddings.position_embeddings.weight"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "layers."),
    (r"\.attn\.proj\.", ".attention.out_proj."),
    (r"\.attn\.([qkv])\.", r".attention.\1_proj."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
)
_TO_GATED: Rules = ((r"\.mlp\.fc1\.", ".mlp.weights_in."), (r"\.mlp\.fc2\.", ".mlp.weights_out."))
# All that `EomtForUniversalSegmentation` has, but for its loss.
_IN_EOMT = re.compile(
    r"(?:query|class_predictor|mask_head|upscale_block|embeddings|layernorm)\.|attn_mask_probs$|"
    r"layers\.\d+\.(?:norm[12]|attention\.(?:[qkv]|out)_proj|layer_scale[12]|mlp)\."
)
_NO_WEIGHTS = re.compile(r"mask_token$|^rope_embeddings\.")  # for pre-training; a constant


def from_eomt(state: State) -> State:
    """Rename `Eomt…` and `EomtDinov3ForUniversalSegmentation` to our names."""
    heads = {name: value for name, value in state.items() if _IN_HEADS.match(name)}
    trunk = {name: value for name, value in state.items() if name not in heads}
    return _renamed(heads, _HEADS) | from_backbone(trunk)


def from_mask2former(state: State) -> State:
    """Rename `Mask2FormerForUniversalSegmentation`, or a Swin alone, to our names."""
    return _renamed(state, _MASK2FORMER)


def from_backbone(trunk: State) -> State:
    """Rename a DINOv2 or DINOv3 from any of Hugging Face's names to timm's, which are ours."""
    named = _renamed(trunk, _TRUNK)
    if any(name.startswith("pos_embed") for name in named):
        named = _renamed(_with_timm_positions(named), _DINOV2)
    else:  # its positions are rotary
        is_gated = any(".gate_proj." in name for name in named)
        named = _renamed(named, _DINOV3 + (_GATED if is_gated else _UNGATED))
        _drop_key_biases(named)
    for index in {match[1] for name in named if (match := re.match(r"blocks\.(\d+)\.", name))}:
        block = f"blocks.{index}"
        for kind in ("weight", "bias"):
            _fuse(named, f"{block}.attn", ("q", "k", "v"), "qkv", kind)
            _fuse(named, f"{block}.mlp", ("gate_proj", "up_proj"), "fc1", kind)
    # Without registers, some of theirs have an empty tensor for them.
    return {BACKBONE + name: value for name, value in named.items() if value.numel()}


def to_eomt(state: State) -> State:
    """Rename our EoMT with a ViT as DINOv2's, of square images, to theirs: from_eomt's inverse.

    What `EomtForUniversalSegmentation` has and ours may lack gets the value that changes nothing: a
    LayerScale of 1; positions of other tokens than patches are added to these tokens. Raises
    CheckpointError for another backbone.
    """
    found = {name.removeprefix(BACKBONE): value for name, value in state.items()}
    positions = found.get("pos_embed")
    needed = {"blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "patch_embed.proj.bias"}
    if positions is None or not needed <= found.keys():
        raise CheckpointError(
            "EomtForUniversalSegmentation has a ViT with learned positions, as DINOv2's, which "
            "this backbone is not."
        )
    patches, width = math.isqrt(positions.shape[1]) ** 2, positions.shape[2]
    found["pos_embed"], others = positions[0, -patches:], positions[:, :-patches]
    found.setdefault("reg_token", positions.new_zeros(1, 0, width))
    if others.shape[1]:
        found["cls_token"] = found["cls_token"] + others[:, :1]
        found["reg_token"] = found["reg_token"] + others[:, 1:]
    for name in [name for name in found if name.endswith(".attn.qkv.weight")]:
        block = name.removesuffix(".attn.qkv.weight")
        for kind in ("weight", "bias"):
            parts = found.pop(f"{block}.attn.qkv.{kind}").chunk(3)
            found |= {f"{block}.attn.{n}.{kind}": v for n, v in zip("qkv", parts, strict=True)}
        for number in "12":
            found.setdefault(f"{block}.ls{number}.gamma", positions.new_ones(width))
    rules = _TO_EOMT + (_TO_GATED if is_gated(state) else ())
    theirs = {k: v.contiguous() for k, v in _renamed(found, rules).items()}
    if lost := [name for name in theirs if not _IN_EOMT.match(name)]:
        raise CheckpointError(
            f"EomtForUniversalSegmentation has no place for {', '.join(lost[:3])} of this backbone."
        )
    return theirs


def is_gated(state: State) -> bool:
    """Return whether the MLPs of our backbone are SwiGLUs: a gate and a value in one matrix."""
    first, second = (state[f"{BACKBONE}blocks.0.mlp.fc{n}.weight"] for n in (1, 2))
    return first.shape[0] == 2 * second.shape[1]


def _renamed(state: State, rules: Rules) -> State:
    """Apply all rules to each name, in their order; what none of them knows keeps its name."""
    found: State = {}
    for name, value in state.items():
        ours = name
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        # The official code registers modules under two names.
        if ours in found and not torch.equal(found[ours], value):
            raise CheckpointError(f"{name} is there twice, under two names with two values.")
        if not _NO_WEIGHTS.search(ours):
            found[ours] = value
    return found


def _with_timm_positions(trunk: State) -> State:
    """Shape positions as timm does."""
    if "pos_embed.weight" in trunk:  # (h*w, D), EoMT: only patches have positions
        trunk["pos_embed"] = trunk.pop("pos_embed.weight")[None]
    elif "reg_token" in trunk:
        # (1, 1 + h*w, D), DINOv2 with registers: the first is added to the class token, always.
        positions = trunk["pos_embed"]
        trunk["cls_token"] = trunk["cls_token"] + positions[:, :1]
        trunk["pos_embed"] = positions[:, 1:]
    return trunk


def _drop_key_biases(named: State) -> None:
    for name in [name for name in named if name.endswith(".attn.k.bias")]:
        bias = named.pop(name)
        if bias.any():
            raise CheckpointError(
                f"block {name.split('.')[1]} has a key bias of up to {bias.abs().max():.3g}; "
                "DINOv3 has none, and timm's keeps zeros there: this program cannot hold such a "
                "model."
            )


def _fuse(state: State, module: str, parts: Iterable[str], into: str, kind: str) -> None:
    names = [f"{module}.{part}.{kind}" for part in parts]
    if all(name in state for name in names):
        state[f"{module}.{into}.{kind}"] = torch.cat([state.pop(name) for name in names])
