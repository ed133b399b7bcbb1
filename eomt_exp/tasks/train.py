"""`task=train`, the main job: train a model, then evaluate it on every benchmark."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from eomt_exp import run_folders, runs
from eomt_exp.build import build, build_all
from eomt_exp.contracts import ImageSet
from eomt_exp.data.loader import training_loader
from eomt_exp.data.training_set import TrainingSet
from eomt_exp.engine.checkpoint import WEIGHTS, load_weights, save_weights, states
from eomt_exp.engine.device import forget_accelerator, make_accelerator, seed_everything
from eomt_exp.engine.evaluation import verify
from eomt_exp.engine.progress import progress
from eomt_exp.engine.report import print_report
from eomt_exp.engine.trainer import Trainer
from eomt_exp.tasks.evaluate import (
    build_benchmarks,
    evaluate,
    known_classes,
    open_tracker,
    trained_run,
)


def run(cfg: DictConfig) -> None:
    """Train in Hydra's run folder, or go on there."""
    train(cfg, Path(HydraConfig.get().runtime.output_dir))


def train(cfg: DictConfig, run_dir: Path) -> None:
    """Train and evaluate in `run_dir`; a folder that is complete only shows its table again."""
    done = runs.read_metrics(run_dir)
    if done is not None:
        runs.begin(cfg, run_dir)  # the folder of another configuration is an error, not a result
        print(f"{run_dir} is complete already.")
        print_report(done["metrics"], run_dir, sorted((run_dir / "figures").glob("*.png")))
        return
    # Everything a user can get wrong is built before anything is written.
    benchmarks = build_benchmarks(cfg)
    dataset = _training_set(cfg)
    start = trained_run(cfg)
    seed_everything(cfg.seed)
    model = _model(cfg, start)
    runs.make_detector(cfg, model, "no")  # its complaints are due now
    runs.begin(cfg, run_dir)
    _train_and_evaluate(cfg, run_dir, model, dataset, benchmarks)
    run_folders.mark_finished(Path(cfg.paths.outputs), run_dir)


def _train_and_evaluate(
    cfg: DictConfig,
    run_dir: Path,
    model: Any,
    dataset: TrainingSet,
    benchmarks: dict[str, ImageSet],
) -> None:
    accelerator = make_accelerator(OmegaConf.to_object(cfg.trainer))
    try:
        if accelerator.is_main_process:
            run_folders.mark_unfinished(Path(cfg.paths.outputs), run_dir)
        with open_tracker(cfg, run_dir, accelerator.is_main_process) as tracker:
            tracker.log_params(_flat(runs.essence(cfg)))
            detector = runs.make_detector(cfg, model, accelerator.mixed_precision)
            if not (run_dir / WEIGHTS).is_file():
                trainer = _trainer(cfg, run_dir, accelerator, model, dataset, tracker, detector)
                trainer.fit()
                if accelerator.is_main_process:
                    save_weights(accelerator.unwrap_model(trainer.model), run_dir / WEIGHTS)
                accelerator.wait_for_everyone()
            else:  # killed between training and the last number
                load_weights(model, run_dir / WEIGHTS)
                model.to(accelerator.device)
            evaluate(cfg, detector, benchmarks, accelerator, tracker, run_dir, run_dir)
    finally:
        forget_accelerator(accelerator)


def _training_set(cfg: DictConfig) -> TrainingSet:
    images = build(cfg.data.train, "data.train")
    validation = build(cfg.data.val, "data.val")
    if cfg.evaluator.verify:
        verify(images)
        verify(validation)
    return TrainingSet(
        images,
        build(cfg.augmentation, "augmentation"),
        build(cfg.outlier_exposure, "outlier_exposure"),
        num_classes=cfg.data.num_classes,
        seed=cfg.seed,
        cache=cfg.data.cache,
    )


def _model(cfg: DictConfig, start: Path | None) -> Any:
    """The model with the weights of the run it starts from, and its frozen parts frozen."""
    model = runs.build_model(cfg, pretrained=start is None)
    if start is not None:
        load_weights(model, start / WEIGHTS)
    model.set_trainable(cfg.trainable.value)
    return model


def _trainer(
    cfg: DictConfig,
    run_dir: Path,
    accelerator: Any,
    model: Any,
    dataset: TrainingSet,
    tracker: Any,
    detector: Any,
) -> Trainer:
    settings = OmegaConf.to_object(cfg.trainer)

    def make_bar(total: int, start: int) -> AbstractContextManager[Any]:
        return progress(total, f"train {cfg.name}", start, enabled=accelerator.is_main_process)

    folder = run_dir / runs.STATES
    if states(folder) and accelerator.is_main_process:
        print(f"going on with {run_dir} from {states(folder)[-1].name}", flush=True)
    return Trainer(
        accelerator=accelerator,
        model=model,
        losses=build_all(cfg.loss, "loss"),
        loader=training_loader(dataset, settings.batch_size, settings.num_workers, cfg.seed),
        optim=OmegaConf.to_object(cfg.optim),
        settings=settings,
        folder=folder,
        tracker=tracker,
        make_bar=make_bar,
        validate=lambda epoch: {
            k: v for k, v in known_classes(cfg, detector, accelerator).items() if k == "val/miou"
        },
    )


def _flat(node: Any, key: str = "") -> dict[str, Any]:
    """Nested settings to dotted names; lists stay whole."""
    if not isinstance(node, dict):
        return {key: node}
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat |= _flat(value, f"{key}.{name}" if key else str(name))
    return flat
