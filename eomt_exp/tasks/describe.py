"""`task=describe` shows a configuration's model in numbers, without weights, data or a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from eomt_exp import runs
from eomt_exp.engine.model_summary import describe, print_description
from eomt_exp.tasks.start import tell_without_effect

# The groups that the table's title names, and the key of a model that is made with one.
_NAMED = {"model": "", "backbone": "encoder", "data": "", "anomaly_head": "anomaly_head"}


def run(cfg: DictConfig) -> None:
    """Print one table about cfg.model under cfg.trainable; no folder is left behind."""
    tell_without_effect(cfg)
    with leaving_no_folder(cfg.paths.outputs):
        with torch.device("meta"):
            model = runs.build_model(cfg, pretrained=False)
        model.set_trainable(cfg.trainable.value)
        height, width = cfg.data.image_size
        choices = HydraConfig.get().runtime.choices
        named = [group for group, key in _NAMED.items() if not key or key in cfg.model]
        title = [*(f"{one}={choices[one]}" for one in named), f"trainable={cfg.trainable.value}"]
        print_description(describe(model, (height, width)), " ".join(title))


@contextmanager
def leaving_no_folder(outputs: str) -> Iterator[None]:
    """Remove the folder Hydra made for this job, and those above it that are empty, up to outputs.

    conf/task/describe.yaml keeps Hydra from writing into it; a sweep only lists itself there.
    """
    try:
        yield
    finally:
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        if hydra.mode == RunMode.MULTIRUN:
            (Path(hydra.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)
        with suppress(OSError):  # not empty: it is someone's
            while folder.is_relative_to(os.path.abspath(outputs)):
                folder.rmdir()
                folder = folder.parent
