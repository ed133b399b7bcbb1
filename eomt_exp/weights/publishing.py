"""Writes the weights of an EoMT in a public layout, which checkpoint= reads too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eomt_exp.contracts import DistanceHead, Model, UserError
from eomt_exp.files import replacing, write_text
from eomt_exp.weights.hugging_face import BACKBONE, is_gated, to_eomt
from eomt_exp.weights.weight_files import WEIGHTS

OFFICIAL = "pytorch_model.bin"


def write_official(model: Model, folder: Path) -> None:
    """Write the state dict as the official code saves it. Raises UserError for other models."""
    _check(model, "official")
    with replacing(folder / OFFICIAL) as scratch:
        torch.save(_state(model), scratch)


def write_hugging_face(model: Model, side: int, class_names: list[str], folder: Path) -> None:
    """Write weights and configurations for transformers' EomtForUniversalSegmentation.

    `side` is that of the square images, in pixels, which the model was built for. Raises UserError
    for models that it cannot be, and CheckpointError for backbones.
    """
    _check(model, "hugging_face")
    state = _state(model)
    mean, std = (state.pop(f"encoder.pixel_{name}").flatten().tolist() for name in ("mean", "std"))
    theirs = to_eomt(state)
    no_object = torch.tensor([0.1])  # of the loss; without it transformers warns
    labels = state["class_head.weight"].new_ones(len(class_names))
    theirs["criterion.empty_weight"] = torch.cat([labels, no_object])
    with replacing(folder / WEIGHTS) as scratch:
        save_file(theirs, scratch, metadata={"format": "pt"})
    write_text(folder / "config.json", _json(_config(model, state, side, class_names)))
    # Covers the square with the shorter side, and cuts the longer one into windows.
    processor = {
        "image_processor_type": "EomtImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side, "longest_edge": None},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_split_image": True,
        "do_pad": False,
    }
    write_text(folder / "preprocessor_config.json", _json(processor))


def _state(model: Model) -> dict[str, Tensor]:
    """Return the weights; a model without masked attention says so by its probabilities."""
    state = dict(model.state_dict())
    probs = state.get("attn_mask_probs", torch.ones(model.num_blocks))
    return state | {"attn_mask_probs": probs if model.masked_attention else 0 * probs}


def _check(model: Model, layout: str) -> None:
    reasons = {
        "it is no EoMT": "q.weight" not in model.state_dict() or hasattr(model, "pixel_decoder"),
        "its encoder is no plain ViT": f"{BACKBONE}cls_token" not in model.state_dict(),
        "its class head holds distances": isinstance(
            getattr(model, "class_head", None), DistanceHead
        ),
        "it has an anomaly head": any(k.startswith("anomaly_head.") for k in model.state_dict()),
    }
    if wrong := [reason for reason, holds in reasons.items() if holds]:
        raise UserError(
            f"task.format={layout} cannot hold this model: {', '.join(wrong)}. task.format=onnx "
            "and torch_export take every model."
        )


def _config(
    model: Model, state: dict[str, Tensor], side: int, class_names: list[str]
) -> dict[str, Any]:
    blocks = [name for name in state if name.endswith(".attn.qkv.weight")]
    width = state["q.weight"].shape[1]
    hidden = state[f"{BACKBONE}blocks.0.mlp.fc1.weight"].shape[0]
    registers = state.get(f"{BACKBONE}reg_token")
    encoder, upscale = model.encoder, cast(nn.Sequential, model.upscale)
    names = dict(enumerate(class_names))
    return {
        "architectures": ["EomtForUniversalSegmentation"],
        "model_type": "eomt",
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": encoder.blocks[0].attn.num_heads,
        "mlp_ratio": 4 if is_gated(state) else hidden // width,
        "use_swiglu_ffn": is_gated(state),
        "layer_norm_eps": encoder.norm.eps,
        "image_size": side,
        "patch_size": encoder.patch_size,
        "num_register_tokens": 0 if registers is None else registers.shape[1],
        "num_blocks": model.num_blocks,
        "num_queries": len(state["q.weight"]),
        "num_upscale_blocks": len(upscale),
        "id2label": {str(number): name for number, name in names.items()},
        "label2id": {name: number for number, name in names.items()},
        "dtype": "float32",
    }


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
