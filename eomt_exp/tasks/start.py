"""Checks a configuration, and loads what a model begins with: a run or public weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from eomt_exp import runs
from eomt_exp.contracts import Model, UserError
from eomt_exp.engine.device import is_first_process
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.schema import (
    EvaluatorConfig,
    OptimConfig,
    ProtocolConfig,
    TrackingConfig,
    TrainerConfig,
)
from eomt_exp.tasks.benchmark_exports import check_exports
from eomt_exp.weights.loading import Report
from eomt_exp.weights.weight_files import HUB, weight_files


class TaskSettings(NamedTuple):
    """Holds what a task goes by, typed: its values are in range and fit together."""

    name: str
    seed: int
    score: str
    content_key: str
    trainer: TrainerConfig
    optim: OptimConfig
    evaluator: EvaluatorConfig
    protocol: ProtocolConfig
    tracking: TrackingConfig
    evaluates: bool  # instead of training first
    has_checkpoint: bool


def checked_settings(cfg: DictConfig, models: Sequence[DictConfig] = ()) -> TaskSettings:
    """Refuse wrong settings before anything long, and download hub ids.

    `models` are the configurations of models that are evaluated together, where cfg is of none.
    """
    models = models or [cfg]
    kinds = ("trainer", "optim", "evaluator", "protocol", "tracking")
    typed: dict[str, Any] = {kind: OmegaConf.to_object(cfg[kind]) for kind in kinds}
    first = models[0]
    benchmarks = [str(name) for name in first.benchmark]
    check_exports(typed["evaluator"], typed["protocol"], benchmarks, first.data.val is not None)
    for one in models:
        _check_start(one)
    return TaskSettings(
        name=str(cfg.name),
        seed=cfg.seed,
        score=cfg.score,
        content_key=runs.content_key(cfg),
        evaluates=str(cfg.task._target_).endswith("evaluate.run"),
        has_checkpoint=bool(cfg.checkpoint),
        **typed,
    )


def seen_by(start: str | Path) -> SeenImages:
    """Return what the model behind a run folder, file or hub id has seen, as far as is recorded.

    A file in a run folder, or in one of its checkpoints, is that run's.
    """
    if not str(start).startswith(HUB):
        path = Path(start).resolve()
        for folder in (path, *path.parents[:3]):
            if runs.is_run(folder):
                return SeenImages.load(folder)
    return SeenImages(unknown=[str(start)])


def fill(cfg: DictConfig, model: Model, start: str | Path, tell: bool = True) -> Report:
    """Load the weights of a run folder, file or hub id into `model`; print what became of them."""
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


def _check_start(cfg: DictConfig) -> None:
    """Refuse a wrong checkpoint= and its like."""
    if cfg.start_from not in (None, "semantic"):
        raise UserError(f"start_from must be semantic or null, got {cfg.start_from!r}.")
    if cfg.checkpoint is not None and not isinstance(cfg.checkpoint, str):
        raise UserError(
            f"checkpoint={cfg.checkpoint} is not one model to begin with; several are for "
            "task=evaluate, and a number as a name wants quotes."
        )
    if cfg.delta_weights:
        _check_base(cfg)
    if cfg.checkpoint:
        weight_files(runs.weights_of(cfg.checkpoint))


def _check_base(cfg: DictConfig) -> None:
    """Refuse differences of weights that have nothing to be added to."""
    if not cfg.checkpoint or runs.is_run(cfg.checkpoint):
        raise UserError("delta_weights=true is for published weights: checkpoint=<file or hf://…>.")
    ways = {"pretrained": "=true to download them", "weights": "=/path/to/them"}
    ways = {f"backbone.{key}": value for key, value in ways.items() if key in cfg.backbone}
    if not any(OmegaConf.select(cfg, key) for key in ways):
        advice = " or ".join(key + value for key, value in ways.items())
        raise UserError(
            "delta_weights=true adds to the weights the backbone was trained from: "
            + (f"type {advice}." if ways else "this backbone has none; take another one.")
        )
