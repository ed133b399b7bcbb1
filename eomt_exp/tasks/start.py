"""Where a model begins: with a run, with public weights, with the semantic EoMT, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from eomt_exp import runs
from eomt_exp.cli import UsageError
from eomt_exp.engine.device import is_first_process
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.tasks.semantic import find_or_train
from eomt_exp.weights.loading import Report
from eomt_exp.weights.weight_files import HUB, weight_files


def check_start(cfg: DictConfig) -> None:
    """Complain about checkpoint= and its like before anything long begins; downloads hub ids."""
    if cfg.start_from not in (None, "semantic"):
        raise UsageError(f"start_from must be semantic or null, got {cfg.start_from!r}.")
    if cfg.checkpoint is not None and not isinstance(cfg.checkpoint, str):
        raise UsageError(
            f"checkpoint={cfg.checkpoint} is not one model to begin with; several are for "
            "task=evaluate, and a number as a name wants quotes."
        )
    if cfg.delta_weights:
        _check_base(cfg)
    if cfg.checkpoint:
        weight_files(runs.weights_of(cfg.checkpoint))


def start_of(cfg: DictConfig, train: Callable[[DictConfig, Path], None]) -> str | Path | None:
    """checkpoint=, or the run folder of start_from=semantic, which `train` makes if need be."""
    if cfg.checkpoint:
        return str(cfg.checkpoint)
    return None if cfg.start_from is None else find_or_train(cfg, train)


def seen_by(start: str | Path) -> SeenImages:
    """What the model behind a run folder, file or hub id has seen, where that is on record.

    A file in a run folder, or in one of its checkpoints, is that run's.
    """
    if not str(start).startswith(HUB):
        path = Path(start).resolve()
        for folder in (path, *path.parents[:3]):
            if runs.is_run(folder):
                return SeenImages.load(folder)
    return SeenImages(unknown=[str(start)])


def fill(cfg: DictConfig, model: Any, start: str | Path, tell: bool = True) -> Report:
    """Load the weights of a run folder, file or hub id into `model`; tells what became of them."""
    report = runs.fill(
        model,
        start,
        strict=cfg.strict,
        load_class_head=cfg.load_class_head,
        delta_weights=cfg.delta_weights,
    )
    if tell and is_first_process():
        print(report, flush=True)
    return report


def _check_base(cfg: DictConfig) -> None:
    """Differences need something to be added to."""
    if not cfg.checkpoint or runs.is_run(cfg.checkpoint):
        raise UsageError(
            "delta_weights=true is for published weights: checkpoint=<file or hf://…>."
        )
    ways = {"pretrained": "=true to download them", "weights": "=/path/to/them"}
    ways = {f"backbone.{key}": words for key, words in ways.items() if key in cfg.backbone}
    if not any(OmegaConf.select(cfg, key) for key in ways):
        advice = " or ".join(key + words for key, words in ways.items())
        raise UsageError(
            "delta_weights=true adds to the weights the backbone was trained from: "
            + (f"type {advice}." if ways else "this backbone has none; take another one.")
        )
