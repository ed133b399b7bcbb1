"""`task=train`, the main job, trains a model, then evaluates it on every benchmark."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from eomt_exp import runs
from eomt_exp.build import build, build_all
from eomt_exp.contracts import Exposure, Loss, Target, UserError
from eomt_exp.data.loader import training_loader
from eomt_exp.data.training_set import TrainingSet
from eomt_exp.engine.checkpoint import states
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.device import (
    agreed,
    forget_accelerator,
    in_full_precision,
    is_first_process,
    make_accelerator,
    seed_everything,
)
from eomt_exp.engine.optim import annealing_steps
from eomt_exp.engine.progress import progress
from eomt_exp.engine.seen_images import FILE_NAME as SEEN
from eomt_exp.engine.seen_images import SeenImages, verify
from eomt_exp.engine.trainer import Trainer
from eomt_exp.run_folders import working_in
from eomt_exp.schema import OptimConfig, Trainable, TrainerConfig
from eomt_exp.studies.trial import Trial, current_trial, forget_pruning
from eomt_exp.tasks.benchmark_exports import check_exports
from eomt_exp.tasks.candidate import Candidate, as_label
from eomt_exp.tasks.image_sets import (
    ImageSets,
    build_image_sets,
    read_sets,
    record,
    seen_image_warnings,
)
from eomt_exp.tasks.measure import Measurement
from eomt_exp.tasks.publish import leaderboard_of, open_tracker, publish, show_again
from eomt_exp.tasks.start import check_start, fill, seen_by, start_of
from eomt_exp.tasks.validation import Validation, last_validation
from eomt_exp.weights.weight_files import WEIGHTS, save_weights


class Parts(NamedTuple):
    """Holds all that a run is made of, built before anything is written or trained."""

    model: Any
    losses: dict[str, Loss]
    images: ImageSets
    training: TrainingSet
    seen: SeenImages  # in training; what it begins with may add to it
    trial: Trial | None
    trainer: TrainerConfig
    optim: OptimConfig


def run(cfg: DictConfig) -> dict[str, float]:
    """Train in Hydra's run folder, or go on there.

    Returns the numbers of metrics.json and those of the last validation. TrialPruned where a
    study's pruner ended the training.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    first = is_first_process()
    trial = current_trial()
    with working_in(run_dir, Path(cfg.paths.outputs)) if first else nullcontext():
        train(cfg, run_dir, trial)
    found: dict[str, float] = agreed(_numbers(run_dir) if first else {})
    if first and trial:
        print(f"trial {trial.number} of {trial.study}: {run_dir}", flush=True)
    return found


def _numbers(run_dir: Path) -> dict[str, float]:
    done = runs.read_metrics(run_dir) or {"metrics": {}}
    final = {k: float("nan") if v is None else v for k, v in done["metrics"].items()}
    return final | last_validation(run_dir)  # of both, what the study got while it trained


def train(cfg: DictConfig, run_dir: Path, trial: Trial | None = None) -> None:
    """Train and evaluate in `run_dir`; a folder that is complete only shows its table again.

    A `trial` is of this training alone: the stage it may begin with is nobody's.
    """
    begun = agreed((run_dir / runs.CONFIG).is_file())
    if begun and not cfg.resume:
        raise UserError(f"{run_dir} holds a run already; resume=false wants another hydra.run.dir.")
    done = agreed(runs.read_metrics(run_dir))
    if done is not None:
        runs.begin(cfg, run_dir)  # the folder of another configuration is an error, not a result
        if is_first_process() and not trial:
            print(f"{run_dir} is complete already; task=evaluate measures it on other benchmarks.")
            show_again(done, run_dir)
        return
    if trial:
        trial.stay_pruned(run_dir)
    parts = _parts(cfg, run_dir, trial)
    start = start_of(cfg, train)
    if start is not None:
        parts.seen.include(seen_by(start))
        seen_image_warnings(cfg, parts.seen, parts.images)
        fill(cfg, parts.model, start, tell=not trial)
    runs.begin(cfg, run_dir)
    if is_first_process():
        parts.seen.save(run_dir)
    _train_and_evaluate(cfg, run_dir, parts)


def _parts(cfg: DictConfig, run_dir: Path, trial: Trial | None) -> Parts:
    """Build, check and try everything a user can get wrong: first what costs nothing."""
    _check_model(cfg)
    check_start(cfg)
    trainer: Any = OmegaConf.to_object(cfg.trainer)
    optim: Any = OmegaConf.to_object(cfg.optim)
    OmegaConf.to_object(cfg.evaluator)  # its ranges
    check_exports(cfg)
    losses = build_all(cfg.loss, "loss")
    augmentation = build(cfg.augmentation, "augmentation")
    exposure = build(cfg.outlier_exposure, "outlier_exposure")
    _check_anomalies(cfg, losses, exposure)
    if exposure is not None and cfg.evaluator.verify:
        verify(exposure.pool)
    seed_everything(cfg.seed)
    # With strict=false, the backbone may be what the checkpoint lacks.
    starts_bare = not (cfg.checkpoint or cfg.start_from)
    pretrained = starts_bare or bool(cfg.delta_weights) or (bool(cfg.checkpoint) and not cfg.strict)
    model = runs.build_model(cfg, pretrained=pretrained)
    model.set_trainable(cfg.trainable.value)
    annealing_steps(optim.mask_annealing, 1, model.num_blocks)  # a pair for every block?
    _rehearse(cfg, model, losses)
    images = build_image_sets(cfg, training=True)
    pictures, contents = read_sets.training(cfg)
    if pictures.num_classes == 0 and cfg.trainable is not Trainable.head:
        raise UserError(
            f"data={cfg.data.name} labels anomalies and no known classes: only an anomaly head can "
            f"learn from it, got trainable={cfg.trainable.value}. Type trainable=head "
            "anomaly_head=query_only loss=[anomaly_head]; the semantic EoMT under it comes from "
            "checkpoint=<run folder or weights>, or with start_from=semantic from the data set of "
            "data@known=cityscapes."
        )
    seen = record(contents, images, cfg.tuned_on)
    if (run_dir / SEEN).is_file():  # of an earlier try, which may have seen others
        seen.include(SeenImages.load(run_dir))
    seen_image_warnings(cfg, seen, images)
    training = TrainingSet(pictures, augmentation, exposure, cfg.data.num_classes, cfg.seed)
    training_loader(training, trainer.batch_size, 0, cfg.seed)  # enough images for a batch?
    return Parts(model, losses, images, training, seen, trial, trainer, optim)


def _check_model(cfg: DictConfig) -> None:
    """Refuse a model without masks, which every loss here reads."""
    if "encoder" not in cfg.model:
        name = str(cfg.model._target_).rpartition(".")[2]
        raise UserError(
            f"{name} gives no masks to train on; it is a baseline that is only evaluated: "
            f"type task=evaluate checkpoint=<weights of {name}>, or another model=."
        )


def _check_anomalies(cfg: DictConfig, losses: dict[str, Loss], exposure: Exposure | None) -> None:
    """Refuse losses that learn from anomalies where none would be seen."""
    needing = [name for name, loss in losses.items() if loss.needs_anomalies]
    if needing and exposure is None and not build(cfg.data.train, "data.train").labels_anomalies:
        raise UserError(
            f"loss={','.join(needing)} learns from anomalies, and data={cfg.data.name} labels "
            "none: add outlier_exposure=cut_paste, or take data=generic_anomaly."
        )


def _rehearse(cfg: DictConfig, model: Any, losses: dict[str, Loss]) -> None:
    """Pass one black image through model, losses and scores: parts that do not fit say so now."""
    height, width = cfg.data.image_size
    size = (height, width)
    detector = runs.make_detector(cfg, model, "no")
    pasted = torch.zeros(size, dtype=torch.uint8)
    pasted[: height // 2] = 1
    target = Target(
        (pasted == 0)[None], torch.zeros(1, dtype=torch.int64), pasted, torch.zeros(size) > 0
    )
    # A graph of the whole model would want much memory, that of a head little.
    with torch.set_grad_enabled(cfg.trainable is Trainable.head):
        output = model.train()(torch.zeros(1, 3, height, width))
        terms = [term for loss in losses.values() for term in loss(output, [target]).values()]
        for scorer in detector.scorers.values():
            scorer(output)
    if cfg.trainable is Trainable.head and not any(term.requires_grad for term in terms):
        raise UserError(
            f"loss={','.join(losses)} does not depend on the anomaly head, which is all that "
            "trainable=head trains: type loss=[anomaly_head]."
        )


def _train_and_evaluate(cfg: DictConfig, run_dir: Path, parts: Parts) -> None:
    seed_everything(cfg.seed)  # what was built or trained before must not shift the draws
    accelerator = make_accelerator(parts.trainer)
    try:
        with open_tracker(cfg, run_dir, accelerator.is_main_process, parts.trial) as tracker:
            if accelerator.is_main_process and forget_pruning(run_dir):
                tracker.set_tags({"optuna.state": "CONTINUED"})
            tracker.log_params(runs.flat(runs.training_settings(cfg)))
            detector = runs.make_detector(cfg, parts.model, accelerator.mixed_precision)
            if not agreed((run_dir / WEIGHTS).is_file()):
                trainer = _trainer(cfg, run_dir, accelerator, parts, tracker, detector)
                trainer.fit()
                if accelerator.is_main_process:
                    save_weights(accelerator.unwrap_model(trainer.model), run_dir / WEIGHTS)
                accelerator.wait_for_everyone()
            else:  # killed between training and the last number
                runs.fill(parts.model, run_dir)
                parts.model.to(accelerator.device)
            _evaluate(cfg, run_dir, parts, accelerator, tracker)
            if parts.trial:
                tracker.set_tags({"optuna.state": "COMPLETE"})
    finally:
        forget_accelerator(accelerator)


def _evaluate(cfg: DictConfig, run_dir: Path, parts: Parts, accelerator: Any, tracker: Any) -> None:
    accelerator.wait_for_everyone()  # images.json and the weights are the first process's
    seen, images = SeenImages.load(run_dir), parts.images
    if not cfg.evaluator.known_classes:  # data.val was for the validation during training
        images = images._replace(validation=None)
    measurement = Measurement(cfg, run_dir, accelerator)

    def load() -> Detector:
        bare = in_full_precision(accelerator, parts.model)
        return runs.make_detector(cfg, bare, measurement.precision)

    label = as_label(f"{cfg.name}-{cfg.seed}")
    model = Candidate(label, cfg, cfg, run_dir, seen, load, measurement.precision)
    known = measurement.known_classes(model, images)
    cells = {name: measurement.cell(model, images, name, known) for name in images.benchmarks}
    if accelerator.is_main_process:
        warnings = {label: seen_image_warnings(cfg, seen, images)}
        board = leaderboard_of(cfg, {model: (known, cells)}, images, warnings)
        publish(cfg, board, [model], tracker, run_dir, shown=not parts.trial)


def _trainer(
    cfg: DictConfig, run_dir: Path, accelerator: Any, parts: Parts, tracker: Any, detector: Detector
) -> Trainer:
    def make_bar(total: int, start: int) -> AbstractContextManager[Any]:
        return progress(total, f"train {cfg.name}", start, enabled=accelerator.is_main_process)

    def after_validation(metrics: dict[str, float], epoch: int) -> None:
        if parts.trial:
            step = trainer.progress.step
            parts.trial.report(metrics, run_dir, epoch, settings.epochs, step)

    settings, folder = parts.trainer, run_dir / runs.STATES
    if states(folder) and accelerator.is_main_process:
        print(f"going on with {run_dir} from {states(folder)[-1].name}", flush=True)
    trainer = Trainer(
        accelerator=accelerator,
        model=parts.model,
        losses=parts.losses,
        loader=training_loader(parts.training, settings.batch_size, settings.num_workers, cfg.seed),
        optim=parts.optim,
        settings=settings,
        folder=folder,
        tracker=tracker,
        make_bar=make_bar,
        validate=Validation(cfg, run_dir, detector, parts.images, accelerator),
        after_validation=after_validation,
        last_validation=lambda: agreed(last_validation(run_dir)),
    )
    return trainer
