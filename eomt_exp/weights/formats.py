"""Recognises public layouts of weights by names, and converts them to ours.

Our names are the official code's; Mask2Former's are nearly transformers'. Nothing here reads a file
or knows a model.
"""

from __future__ import annotations

import re

import torch

from eomt_exp.contracts import CheckpointError
from eomt_exp.weights import hugging_face
from eomt_exp.weights.hugging_face import BACKBONE, State

OFFICIAL = "official EoMT"
OFFICIAL_DINOV3 = "official EoMT with Hugging Face's DINOv3"
LIGHTNING = "Lightning checkpoint of the official EoMT"
HF_EOMT = "Hugging Face EoMT"
HF_EOMT_DINOV3 = "Hugging Face EoMT-DINOv3"
TIMM_BACKBONE = "backbone only, timm"
HF_BACKBONE = "backbone only, Hugging Face"
HF_SWIN = "backbone only, Hugging Face Swin"
HF_MASK2FORMER = "Hugging Face Mask2Former"
ERFNET = "official ERFNet"
BACKBONE_ONLY = (TIMM_BACKBONE, HF_BACKBONE, HF_SWIN)
EOMT = (OFFICIAL, OFFICIAL_DINOV3, LIGHTNING, HF_EOMT, HF_EOMT_DINOV3)
LAYOUTS = (*EOMT, *BACKBONE_ONLY, HF_MASK2FORMER, ERFNET)

# Of the loss, of the pre-training task, or constants that every model computes for itself.
_OUTSIDE = {
    **dict.fromkeys(EOMT, re.compile(r"criterion\.")),
    **dict.fromkeys(BACKBONE_ONLY, re.compile(r"(?:head|head_dist|attn_pool|classifier|pooler)\.")),
    **dict.fromkeys(
        (HF_MASK2FORMER, HF_SWIN),
        re.compile(r"criterion\.|classifier\.|.*(?:relative_position_index$|swin\.layernorm\.)"),
    ),
    ERFNET: re.compile(r"encoder\.output_conv\."),  # the encoder was trained alone first
}


def to_official(state: State) -> tuple[State, str]:
    """Rename weights to the names of our models; return them and the layout they came in.

    Weights of the training loss and of pre-training heads are left out; names that the layout does
    not have stay as they are, for the caller to complain about. Raises CheckpointError where
    nothing is recognised, or where a DINOv3 has a key bias, which timm's lacks.
    """
    # Without what torch.compile and DistributedDataParallel put into names.
    state = {k.replace("_orig_mod.", "").removeprefix("module."): v for k, v in state.items()}
    in_lightning = any(name.startswith("network.") for name in state)
    state = {name.removeprefix("network."): value for name, value in state.items()}
    layout = _layout(state)
    state = {name: value for name, value in state.items() if not _OUTSIDE[layout].match(name)}
    if layout == TIMM_BACKBONE:
        state = {BACKBONE + name: value for name, value in state.items()}
    elif layout == OFFICIAL_DINOV3:
        trunk = {k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)}
        state = {k: v for k, v in state.items() if not k.startswith(BACKBONE)}
        state |= hugging_face.from_backbone(trunk)
    elif layout == HF_BACKBONE:
        state = hugging_face.from_backbone(state)
    elif layout in (HF_EOMT, HF_EOMT_DINOV3):
        state = hugging_face.from_eomt(state)
    elif layout in (HF_MASK2FORMER, HF_SWIN):
        state = hugging_face.from_mask2former(state)
    elif layout == ERFNET:
        # BatchNorm counts its batches since PyTorch 0.4.1; the official file is of 2017.
        norms = [name for name in state if name.endswith(".running_var")]
        counters = [name.replace("running_var", "num_batches_tracked") for name in norms]
        state = dict.fromkeys(counters, torch.tensor(0)) | state
    return state, LIGHTNING if in_lightning and layout == OFFICIAL else layout


def _layout(state: State) -> str:
    names = state.keys()
    if {"encoder.initial_block.conv.weight", "decoder.output_conv.weight"} <= names:
        return ERFNET
    if any(name.endswith("queries_features.weight") for name in names):
        return HF_MASK2FORMER
    if "swin.embeddings.patch_embeddings.projection.weight" in names:
        return HF_SWIN
    if "q.weight" in names and {"class_head.weight", "class_head.prototypes"} & names:
        is_split = any(hugging_face.SPLIT_QUERY.match(name) for name in names)
        return OFFICIAL_DINOV3 if is_split else OFFICIAL
    if {"query.weight", "class_predictor.weight"} <= names:
        has_positions = "embeddings.position_embeddings.weight" in names
        return HF_EOMT if has_positions else HF_EOMT_DINOV3
    if {"patch_embed.proj.weight", "blocks.0.norm1.weight"} <= names:
        return TIMM_BACKBONE
    if "embeddings.cls_token" in names:
        return HF_BACKBONE
    raise CheckpointError(
        f"these weights have none of the known layouts ({'; '.join(LAYOUTS)}); "
        f"they begin with {', '.join(list(names)[:5]) or 'nothing: there are none'}."
    )
