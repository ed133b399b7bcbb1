"""Loads weights into a model, and reports what is fresh, resampled or unused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from eomt_exp.contracts import CheckpointError, DistanceHead, Model
from eomt_exp.weights.formats import BACKBONE_ONLY, to_official
from eomt_exp.weights.hugging_face import BACKBONE, State
from eomt_exp.weights.weight_files import read_weights

_PIXELS = "encoder.pixel_"  # ImageNet's mean and standard deviation, which some layouts leave out
_LAYER_SCALES = (".ls1.gamma", ".ls2.gamma")
_CLASS_HEAD = "class_head."
_LINEAR = (f"{_CLASS_HEAD}weight", f"{_CLASS_HEAD}bias")
_PROTOTYPES = f"{_CLASS_HEAD}prototypes"
_PIXEL_HEAD = "decoder.output_conv.bias"  # of ERFNet: one number for each class output
# Of Mask2Former, beside a Swin that was trained to classify.
_MASK2FORMERS_OWN = ("encoder.hidden_states_norms.", "pixel_decoder.", "transformer_decoder.")
_RESAMPLED = (f"{BACKBONE}pos_embed", f"{BACKBONE}patch_embed.proj.weight")
_SET_BY = {
    "q.weight": "model.num_queries",
    "transformer_decoder.queries_features.weight": "model.num_queries",
    "attn_mask_probs": "model.num_blocks",
}


class Report(NamedTuple):
    """Says what became of each weight of a file and of a model."""

    where: str
    layout: str
    loaded: tuple[str, ...]
    parameters: int  # numbers in them
    fresh: tuple[str, ...]  # the model's, left as they were
    resampled: tuple[str, ...]  # loaded, for another image or patch size
    unused: tuple[str, ...]  # the file's

    def __str__(self) -> str:
        """Write a few lines to print."""
        lines = [
            f"{self.where} ({self.layout}): {len(self.loaded)} tensors, "
            f"{self.parameters:,} numbers loaded"
        ]
        for title in ("fresh", "resampled", "unused"):
            names = getattr(self, title)
            if names:
                lines.append(f"  {title} ({len(names)}): {_few(names, 6)}")
        return "\n".join(lines)


def load_checkpoint(
    model: Model,
    where: str | Path,
    *,
    strict: bool = True,
    load_class_head: bool = True,
    delta_weights: bool | None = None,
    trained_size: tuple[int, int] | None = None,
) -> Report:
    """Fill `model` from a file, folder or hub id in any format of formats.py.

    Positions and the patch kernel are resampled where the encoder can (`adapted`). A backbone-only
    file leaves the rest fresh, as does `load_class_head=False` the class head; a model with one
    class output more than the file gets its outlier class fresh, one with an anomaly head that the
    file lacks gets that fresh. A linear class head is turned into prototypes where the model has
    such; they are an estimate to train on from, and so reported as fresh. With `delta_weights` the
    file's backbone is added to the model's (the published DINOv3 models; facts of EoMT, 1.6); with
    None, a file that seems to hold such differences is refused. `trained_size` is the (H, W) of the
    images it was trained on, which the shape of its positions does not show. Else a missing or
    unexpected name is a CheckpointError, unless `strict=False`; another size always is.
    """
    state, layout = _read_official(where)
    _check_finite(state, where)
    own = model.state_dict()
    # A model without these buffers, or without a LayerScale of 1, is the same without them.
    state = {k: v for k, v in state.items() if k in own or not _changes_nothing(k, v)}
    left_out = [] if load_class_head else [k for k in state if k.startswith(_CLASS_HEAD)]
    state = {name: value for name, value in state.items() if name not in left_out}
    estimated = _turn_into_prototypes(state, model)
    left_out += [name for name in _LINEAR if estimated]
    widened = _widen_class_head(state, own, model.num_classes)
    _check_sizes({k: v for k, v in state.items() if k not in _RESAMPLED}, own, where)
    _check_delta(state, where, delta_weights)
    state, resampled = _resampled(model, state, where, trained_size)
    _check_sizes(state, own, where)
    fresh = [name for name in own if name not in state]
    unused = [name for name in state if name not in own]
    optional = _may_be_missing(layout, load_class_head)
    missing = [name for name in fresh if not name.startswith(optional)]
    if (strict and (missing or unused)) or len(fresh) == len(own):
        way_out = ", or strict=false to load what there is" if strict else ""
        raise CheckpointError(
            f"{where} ({layout}) is of another model. {_listed('missing', missing)}"
            f"{_listed('unexpected', unused)}Give it the same backbone, model, class_head and "
            f"anomaly_head as the one that was trained{way_out}."
        )
    loaded = {name: value for name, value in state.items() if name in own}
    if delta_weights:
        loaded = {k: own[k] + v.to(own[k]) if _in_backbone(k) else v for k, v in loaded.items()}
    model.load_state_dict(loaded, strict=False)
    return Report(
        *(str(where), layout, tuple(loaded), sum(value.numel() for value in loaded.values())),
        fresh=tuple(k for k in [*estimated, *widened, *fresh] if not k.startswith(_PIXELS)),
        resampled=tuple(resampled),
        unused=tuple([*unused, *left_out]),
    )


def _read_official(where: str | Path) -> tuple[State, str]:
    try:
        return to_official(read_weights(where))
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if str(where) in text else f"{where}: {text}") from error


def _changes_nothing(name: str, value: torch.Tensor) -> bool:
    return name.startswith(_PIXELS) or (name.endswith(_LAYER_SCALES) and bool((value == 1).all()))


def _check_finite(state: State, where: str | Path) -> None:
    """Refuse weights that would make all scores NaN, of which a scorer would be thought guilty."""
    wrong = [name for name, value in state.items() if not value.isfinite().all()]
    if wrong:
        what = "NaN" if state[wrong[0]].isnan().any() else "infinity"
        raise CheckpointError(
            f"{where}: the weights hold {what} in {_few(wrong, 3)}. The training they are of has "
            "diverged: train it again, with a lower optim.lr."
        )


def _in_backbone(name: str) -> bool:
    return name.startswith("encoder.") and not name.startswith(_PIXELS)


def _may_be_missing(layout: str, load_class_head: bool) -> tuple[str, ...]:
    """Return how names begin that a file may lack without a complaint."""
    heads: tuple[str, ...] = () if load_class_head else (_CLASS_HEAD,)
    if layout in BACKBONE_ONLY:
        heads = ("q.", _CLASS_HEAD, "mask_head.", "upscale.", "attn_mask_probs", *_MASK2FORMERS_OWN)
    return (_PIXELS, "anomaly_head.", *heads)


def _resampled(
    model: Model, state: State, where: str | Path, trained_size: tuple[int, int] | None
) -> tuple[State, list[str]]:
    """Resample the backbone to the model's image and patch size, where the encoder can."""
    adapted = getattr(model.encoder, "adapted", None)
    trunk = {k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)}
    if adapted is None or not trunk:
        return state, []
    try:
        fitted = adapted({name: value.float() for name, value in trunk.items()}, trained_size)
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: its positions or patch kernel cannot be resampled to this backbone "
            f"({error}); give it the backbone that was trained."
        ) from error
    changed = [
        k for k, v in fitted.items() if k in trunk and not torch.equal(v, trunk[k].to(v.dtype))
    ]
    rest = {name: value for name, value in state.items() if not name.startswith(BACKBONE)}
    own = {name for name in model.state_dict() if name.startswith(BACKBONE)}
    if own <= state.keys():  # nothing had to be renamed: what timm left out is too much
        fitted |= {name: value for name, value in trunk.items() if name not in fitted}
    return rest | {BACKBONE + k: v for k, v in fitted.items()}, [BACKBONE + k for k in changed]


def _check_delta(state: State, where: str | Path, delta_weights: bool | None) -> None:
    """LayerNorm weights are around 1; a file where none comes nearer to 1 than to 0 is a delta."""
    norms = [
        float(value.float().mean())
        for name, value in state.items()
        if name.startswith(BACKBONE)
        and name.endswith(("norm1.weight", "norm2.weight", "norm.weight"))
    ]
    if not norms:
        if not delta_weights:
            return
        raise CheckpointError(
            f"{where} cannot hold differences to a pre-trained backbone: it has no LayerNorm in "
            "one. Type delta_weights=false."
        )
    highest = max(norms)
    if highest < 0.5 and delta_weights is None:
        raise CheckpointError(
            f"{where} seems to hold differences to a pre-trained backbone: its LayerNorm weights "
            f"are {highest:.2g} on average at most. Type delta_weights=true and give the backbone "
            "its weights (backbone.pretrained=true or backbone.weights=…), or delta_weights=false, "
            "if these are whole weights."
        )
    if highest >= 0.5 and delta_weights:
        raise CheckpointError(
            f"{where} seems to hold whole weights, not differences: some LayerNorm's are "
            f"{highest:.2g} on average. Type delta_weights=false."
        )


def _check_sizes(state: State, own: State, where: str | Path) -> None:
    wrong = {
        name: f"{name} is {tuple(value.shape)}, the model wants {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    }
    for name, key in _SET_BY.items():
        if name in wrong and state[name].shape[1:] == own[name].shape[1:]:
            raise CheckpointError(
                f"{where} is of another model: {wrong[name]}; type {key}={len(state[name])}."
            )
    for name in (_LINEAR[0], _PROTOTYPES):
        if name in wrong and state[name].shape[1:] == own[name].shape[1:]:
            raise CheckpointError(
                f"{where} has {len(state[name])} class outputs, the model {len(own[name])} (the "
                "classes, no-object, maybe an outlier class); take the data it was trained on "
                "(with data=generic_anomaly, data@known=), or load_class_head=false for a fresh "
                "class head."
            )
    if _PIXEL_HEAD in wrong:
        raise CheckpointError(
            f"{where} has {len(state[_PIXEL_HEAD])} class outputs, the model "
            f"{len(own[_PIXEL_HEAD])} (data.num_classes, and void where model.void_output=true); "
            "take the data it was trained on."
        )
    if wrong:
        raise CheckpointError(
            f"{where} is of another model. {_listed('other shape', [*wrong.values()])}"
            "Give it the same backbone and model as the one that was trained."
        )


def _turn_into_prototypes(state: State, model: Model) -> list[str]:
    """Put prototypes in place of a linear class head, where the model has them; name them."""
    head = getattr(model, "class_head", None)
    if not isinstance(head, DistanceHead) or not state.keys() >= {*_LINEAR}:
        return []
    weight, _ = (state.pop(name) for name in _LINEAR)  # the bias is lost
    found = {f"{_CLASS_HEAD}{name}": value for name, value in head.from_linear(weight).items()}
    state.update(found)
    return [*found]


def _widen_class_head(state: State, own: State, num_classes: int) -> list[str]:
    """Insert an outlier class before no-object, where the model has one and the file has not."""
    widened = []
    for name in (*_LINEAR, _PROTOTYPES):
        if name not in state or name not in own:
            continue
        rows = (state[name].shape[0], own[name].shape[0])
        if rows != (num_classes + 1, num_classes + 2):
            continue
        known, no_object = state[name][:-1], state[name][-1:]
        # It starts as a fainter no-object: the softmax over the known classes hardly moves. Without
        # a bias nothing is fainter, but a prototype in a direction of its own is near no query.
        outlier = no_object - 2.0 if name.endswith("bias") else no_object
        outlier = own[name][-2:-1] if name == _PROTOTYPES else outlier
        state[name] = torch.cat([known, outlier, no_object])
        widened.append(f"{name}[outlier]")
    return widened


def _listed(title: str, names: list[str]) -> str:
    return f"{title}: {_few(names, 3)}. " if names else ""


def _few(names: Sequence[str], count: int) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(names[:count])}{more}"
