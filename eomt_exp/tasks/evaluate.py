"""`task=evaluate`: a trained model on every benchmark: numbers, pictures, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from eomt_exp import run_folders, runs
from eomt_exp.cli import UsageError
from eomt_exp.engine.device import (
    forget_accelerator,
    is_first_process,
    make_accelerator,
)
from eomt_exp.tasks.measure import build_image_sets, measure, open_tracker
from eomt_exp.tasks.start import check_start, fill, start_of
from eomt_exp.tasks.train import train


def run(cfg: DictConfig) -> None:
    """Evaluate the run or weights at cfg.checkpoint, or this configuration's semantic EoMT."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with run_folders.pointed_to(Path(cfg.paths.outputs), run_dir, active=is_first_process()):
        _run(cfg, run_dir)


def _run(cfg: DictConfig, run_dir: Path) -> None:
    settings: Any = OmegaConf.to_object(cfg.trainer)
    check_start(cfg)
    if cfg.checkpoint and runs.is_run(cfg.checkpoint):
        cfg = _as_trained(cfg, runs.load_config(Path(cfg.checkpoint)))
    images = build_image_sets(cfg)
    source = start_of(cfg, train)
    if source is None:
        raise UsageError(
            "task=evaluate needs a trained model: add checkpoint=<run folder, file or hf://…>."
        )
    model = _trained_model(cfg, source)
    runs.make_detector(cfg, model, "no")
    runs.begin(cfg, run_dir)
    accelerator = make_accelerator(settings)
    try:
        with open_tracker(cfg, run_dir, accelerator.is_main_process) as tracker:
            tracker.log_params(runs.flat(runs.plain(cfg)))
            detector = runs.make_detector(
                cfg, model.to(accelerator.device), accelerator.mixed_precision
            )
            measure(cfg, detector, images, accelerator, tracker, run_dir, source)
    finally:
        forget_accelerator(accelerator)


def _trained_model(cfg: DictConfig, source: str | Path) -> Any:
    """A run's model as it was configured there, or this configuration's with public weights."""
    if runs.is_run(source):
        return runs.load_model(Path(source))[1]
    model = runs.build_model(cfg, pretrained=bool(cfg.delta_weights))
    fresh = fill(cfg, model, source).fresh
    if fresh:
        raise UsageError(
            f"{source} leaves {len(fresh)} weights of this model random ({', '.join(fresh[:3])}), "
            "and their scores would be no result: train it first (+experiment=semantic "
            "checkpoint=…), or take the model, classes and anomaly_head the file was made for."
        )
    return model.eval()


def _as_trained(cfg: DictConfig, trained: DictConfig) -> DictConfig:
    """This command's configuration around a trained model: what was not typed is the run's.

    Validation images are the exception where the data set is the same: their paths are this
    machine's.
    """
    typed = {word.lstrip("+~").split("=")[0].split(".")[0] for word in _typed_words()}
    own = ["model", "backbone", "seed"]
    own += [group for group in ("scorer", "score", "benchmark") if group not in typed]
    if cfg.data.name != trained.data.name:
        own.append("data")
    with open_dict(cfg):
        for group in own:
            cfg[group] = trained[group]
        cfg.data.image_size = trained.data.image_size
    return cfg


def _typed_words() -> list[str]:
    return list(HydraConfig.get().overrides.task)
