"""transformers' EoMT as an oracle: small random models, the same in our code, their predictions.

Traps it steps around: at its first values LayerScale makes every block an identity, so all vectors
are drawn anew; transformers returns the last prediction only, so `predict` is wrapped; its additive
float32 mask breaks fused attention in float64, so attention is "eager"; and it does not normalise
images. transformers, which takes seconds to import, is imported only where a test needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from eomt_exp.backbones.pixel_encoder import IMAGENET_MEAN, IMAGENET_STD
from eomt_exp.contracts import MaskOutput, Target
from eomt_exp.models.eomt import EoMT
from eomt_exp.weights.formats import to_official
from tests.planted import tiny_vit

SIZE, WIDTH, DEPTH, HEADS, QUERIES, CLASSES, JOINT = 64, 48, 4, 3, 7, 5, 2
DINOV2, DINOV3 = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb"
DINOV3_PLUS = "vit_small_plus_patch16_dinov3_qkvb"  # gated MLPs
SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
    "image_size": SIZE, "patch_size": 16, "attn_implementation": "eager",
}  # fmt: skip


class Predicted(NamedTuple):
    """What a model of transformers predicts in one forward pass."""

    masks: list[Tensor]  # (B, Q, h, w) each: the supervised blocks, then the last
    classes: list[Tensor]  # (B, Q, C) each
    terms: list[dict[str, Tensor]]  # weighted loss terms of each prediction; empty without labels
    loss: Tensor | None


def random_eomt(**changes: Any) -> Any:
    """`EomtForUniversalSegmentation` with DINOv2's layers, in torch's default dtype."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    return _random(EomtForUniversalSegmentation, EomtConfig, changes)


def random_dinov3(use_gated_mlp: bool, **changes: Any) -> Any:
    """`EomtDinov3ForUniversalSegmentation`, without its random rescaling of positions.

    Norms as in DINOv3; the class's own default is another. Its one `hidden_act` serves EoMT's heads
    too, which have GELU always, so the gate's SiLU is put in by hand.
    """
    from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

    changes |= {"layer_norm_eps": 1e-5, "intermediate_size": 4 * WIDTH, "pos_embed_rescale": None}
    changes["use_gated_mlp"] = use_gated_mlp
    model = _random(EomtDinov3ForUniversalSegmentation, EomtDinov3Config, changes)
    for layer in model.layers if use_gated_mlp else ():
        layer.mlp.act_fn = nn.SiLU()
    return model


def _random(kind: Any, config: Any, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    heads = {"num_blocks": JOINT, "num_queries": QUERIES, "num_labels": CLASSES}
    model = kind(config(**SIZES | heads | changes)).to(torch.get_default_dtype())
    for name, parameter in model.named_parameters():
        if name.endswith("lambda1") or ("norm" in name and name.endswith("weight")):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith(("bias", "cls_token", "register_tokens")):
            nn.init.normal_(parameter, std=0.1)
        elif name.startswith(("mask_head", "layers")):
            # Else attention is all but uniform, and every mask open all over, or shut.
            nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    return model


def ours_of(oracle: Any, name: str = DINOV2, official_quirks: bool = False) -> EoMT:
    """Our EoMT on timm's backbone `name` with the oracle's weights, in the same dtype and mode."""
    encoder = tiny_vit((SIZE, SIZE), name=name, dim=WIDTH, depth=DEPTH, heads=HEADS)
    model = EoMT(
        encoder=encoder, num_classes=CLASSES, num_queries=QUERIES, num_blocks=JOINT,
        official_quirks=official_quirks,
    )  # fmt: skip
    state = translated(oracle.state_dict())
    missing, unexpected = model.to(state["q.weight"].dtype).load_state_dict(state, strict=False)
    assert set(missing) <= {"encoder.pixel_mean", "encoder.pixel_std"}
    assert not unexpected
    return model.train(oracle.training)


def translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The oracle's names and shapes -> ours; linear, so that it serves gradients too."""
    return to_official({k: v for k, v in state.items() if not k.startswith("criterion.")})[0]


def predicted(oracle: Any, images: Tensor, targets: Sequence[Target] = ()) -> Predicted:
    """The oracle on (B, 3, H, W) RGB in [0, 1], normalised here; with targets, its loss too."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(images) for v in (IMAGENET_MEAN, IMAGENET_STD))
    labels = {
        "mask_labels": [target.masks.to(images.dtype) for target in targets],
        "class_labels": [target.labels for target in targets],
    }
    with (
        _results_of(oracle, "predict") as pairs,
        _results_of(oracle, "get_loss_dict") as terms,
    ):
        loss = oracle((images - mean) / std, **(labels if targets else {})).loss
    masks, classes = zip(*pairs, strict=True)
    return Predicted(list(masks), list(classes), terms, loss)


@contextmanager
def _results_of(oracle: Any, method: str) -> Iterator[list[Any]]:
    """What a method returns, call after call."""
    results: list[Any] = []
    own = getattr(oracle, method)

    def kept(*given: Any, **named: Any) -> Any:
        results.append(own(*given, **named))
        return results[-1]

    with mock.patch.object(oracle, method, kept):
        yield results


def some_images() -> Tensor:
    """(2, 3, SIZE, SIZE) in [0, 1], always the same."""
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def errors(ours: MaskOutput, theirs: Predicted) -> float:
    """Relative error over masks and classes of every prediction."""
    outputs = (*ours.aux, ours)
    return max(
        relative_error([one.mask_logits for one in outputs], theirs.masks),
        relative_error([one.class_logits for one in outputs], theirs.classes),
    )


def relative_error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest of max |a - b| / max |b| over pairs of tensors."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
    )


@contextmanager
def double_precision() -> Iterator[None]:
    """New tensors and random draws in float64, and the oracle's attention likewise.

    Its eager attention computes softmax in float32 whatever it is given, which by itself costs
    seven digits; the stand-in is the same line without that conversion.
    """
    from transformers.models.eomt import modeling_eomt

    with mock.patch.object(modeling_eomt, "eager_attention_forward", _eager_attention):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def _eager_attention(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float, **__: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    shares = scores.softmax(dim=-1)
    return (shares @ value).transpose(1, 2), shares
