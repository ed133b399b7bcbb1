"""Weights and training states on disk: written beside their place, moved there; never unpickled.

A training state is Accelerate's own folder (weights, optimiser, random states; it reads them with
`weights_only=True`) and our progress as JSON, since objects registered with Accelerate would be
unpickled. Finished weights are one safetensors file with the official names.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eomt_exp.contracts import CheckpointError
from eomt_exp.engine.atomic import replacing

WEIGHTS = "model.safetensors"
PROGRESS = "progress.json"


def save_weights(model: nn.Module, path: Path) -> None:
    """All parameters and buffers as one safetensors file."""
    with replacing(path) as scratch:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, scratch
        )


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Fill `model` from a file of `save_weights`; returns the names left as they were.

    A model with one class output more than the file gets its outlier class fresh, and a model with
    an anomaly head that the file lacks gets that fresh. Anything else that does not fit is a
    CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give a finished run folder.")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}).") from error
    own = model.state_dict()
    fresh = _widen_class_head(state, own, getattr(model, "num_classes", None))
    fresh += [k for k in own if k not in state and k.startswith("anomaly_head.")]
    missing = [k for k in own if k not in state and k not in fresh]
    unexpected = [k for k in state if k not in own]
    wrong = [
        f"{k} is {tuple(state[k].shape)}, the model wants {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or unexpected or wrong:
        raise CheckpointError(
            f"{path} is of another model. {_few('missing', missing)}"
            f"{_few('unexpected', unexpected)}{_few('other shape', wrong)}"
            "Give it the same data, backbone, model and anomaly_head as the run that wrote it."
        )
    model.load_state_dict(state, strict=False)
    return fresh


def save_state(
    accelerator: Accelerator, folder: Path, step: int, progress: dict[str, Any], keep: int
) -> Path:
    """A resumable state under `folder`; older ones than the newest `keep` are removed."""
    place = folder / f"step-{step:08d}"
    temporary = folder / f".writing-step-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / PROGRESS).write_text(json.dumps(progress))
        shutil.rmtree(place, ignore_errors=True)
        os.replace(temporary, place)
        for old in states(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return place


def load_state(accelerator: Accelerator, place: Path) -> dict[str, Any]:
    """Fill what the accelerator prepared from a state; returns its progress.

    Raises CheckpointError where a random state is missing (another number of processes wrote it)
    or a file asks to be unpickled.
    """
    # Refused before Accelerate looks: it would unpickle them.
    foreign = sorted(path.name for path in place.glob("custom_checkpoint_*"))
    random_state = place / f"random_states_{accelerator.process_index}.pkl"
    if foreign or not random_state.is_file() or not (place / PROGRESS).is_file():
        wrong = f"holds {foreign[0]}" if foreign else f"lacks {PROGRESS} or {random_state.name}"
        raise CheckpointError(f"{place} {wrong}: this program has not written it. Remove it.")
    accelerator.load_state(str(place))
    return dict(json.loads((place / PROGRESS).read_text()))


def states(folder: Path) -> list[Path]:
    """Complete training states, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _widen_class_head(
    state: dict[str, Tensor], own: dict[str, Tensor], num_classes: int | None
) -> list[str]:
    """Insert an outlier class before no-object, where the model has one and the file has not."""
    names = [k for k in ("class_head.weight", "class_head.bias") if k in state and k in own]
    widened = []
    for name in names:
        rows = (state[name].shape[0], own[name].shape[0])
        if num_classes is None or rows != (num_classes + 1, num_classes + 2):
            continue
        known, no_object = state[name][:-1], state[name][-1:]
        # It starts as a fainter no-object: the softmax over the known classes hardly moves.
        outlier = no_object - 2.0 if name.endswith("bias") else no_object.clone()
        state[name] = torch.cat([known, outlier, no_object])
        widened.append(f"{name}[outlier]")
    return widened


def _few(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{title}: {', '.join(names[:3])}{more}. "
