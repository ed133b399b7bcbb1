"""`task=train`, the main job, trains a model, then evaluates it on every benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from eomt_exp import runs
from eomt_exp.build import build, build_all
from eomt_exp.contracts import Exposure, FittedScorer, Loss, Model, Target, UserError
from eomt_exp.data.loader import check_enough_images, training_loader
from eomt_exp.data.training_set import TrainingSet
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.device import (
    Accelerator,
    agreed,
    check_device,
    forget_accelerator,
    is_first_process,
    make_accelerator,
    num_processes,
    seed_everything,
)
from eomt_exp.engine.optim import annealing_steps
from eomt_exp.engine.progress import progress
from eomt_exp.engine.seen_images import FILE_NAME as SEEN
from eomt_exp.engine.seen_images import SeenImages, verify
from eomt_exp.engine.trainer import Trainer
from eomt_exp.report.terminal import print_report
from eomt_exp.run_folders import working_in
from eomt_exp.schema import Trainable
from eomt_exp.studies.trial import Trial, current_trial, forget_pruning
from eomt_exp.tasks.candidate import Candidate
from eomt_exp.tasks.class_weights import weigh_classes
from eomt_exp.tasks.image_sets import (
    ImageSets,
    build_image_sets,
    read_sets,
    record,
    seen_image_warnings,
)
from eomt_exp.tasks.measure import Cells, Measurement
from eomt_exp.tasks.mlflow_runs import open_tracker
from eomt_exp.tasks.publish import evaluate_models
from eomt_exp.tasks.start import (
    TaskSettings,
    checked_settings,
    fill,
    seen_by,
    semantic_run,
    tell_without_effect,
)
from eomt_exp.tasks.validation import Validation, last_validation
from eomt_exp.tracking.run import Tracker
from eomt_exp.weights.weight_files import WEIGHTS, save_weights


class Parts(NamedTuple):
    """Holds all that a run is made of, built before anything is written or trained."""

    folder: Path
    settings: TaskSettings
    model: Model
    losses: dict[str, Loss]
    images: ImageSets
    training: TrainingSet
    seen: SeenImages  # in training; what it begins with may add to it
    trial: Trial | None


def run(cfg: DictConfig) -> dict[str, float]:
    """Train in Hydra's run folder, or go on there.

    Returns the numbers of metrics.json and those of the last validation. TrialPruned where a
    study's pruner ended the training.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    read_sets.forget_files()
    first = is_first_process()
    trial = current_trial()
    with working_in(run_dir, Path(cfg.paths.outputs)) if first else nullcontext():
        if not trial:
            tell_without_effect(cfg)
        train(cfg, run_dir, trial)
    saved = (runs.read_metrics(run_dir) or {}).get("metrics", {}) if first else {}
    found = {key: float("nan") if value is None else value for key, value in saved.items()}
    found = agreed(found | last_validation(run_dir))  # all that the study got while it trained
    if first and trial:
        print(f"trial {trial.number} of {trial.study}: {run_dir}", flush=True)
    return found


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
            print_report(done, run_dir)
        return
    if trial:
        trial.stay_pruned(run_dir)
    parts = _parts(cfg, run_dir, trial)
    start = start_of(cfg)
    if start is not None:
        parts.seen.include(seen_by(start))
    allowed = parts.settings.evaluator.allow_seen_images
    warnings = seen_image_warnings(parts.seen, parts.images, allowed)
    if start is not None:
        fill(cfg, parts.model, start, tell=not trial)
    runs.begin(cfg, run_dir)
    if is_first_process():
        parts.seen.save(run_dir)
    _train_and_evaluate(cfg, parts, warnings)


def start_of(cfg: DictConfig) -> str | Path | None:
    """Return what a model begins with: checkpoint=, the run of start_from=semantic, or nothing.

    That run is trained now where there is none yet.
    """
    if cfg.checkpoint:
        return str(cfg.checkpoint)
    if cfg.start_from is None:
        return None
    with semantic_run(cfg) as (folder, missing):
        if missing is not None:
            train(missing, folder)
        return folder


def _parts(cfg: DictConfig, run_dir: Path, trial: Trial | None) -> Parts:
    """Build, check and try everything a user can get wrong: first what costs nothing."""
    _check_model(cfg)
    settings = checked_settings(cfg)
    check_device(settings.trainer)
    losses = build_all(cfg.loss, "loss")
    augmentation = build(cfg.augmentation, "augmentation")
    exposure = build(cfg.outlier_exposure, "outlier_exposure")
    _check_anomalies(cfg, losses, exposure)
    if exposure is not None and exposure.pool.reads_files and settings.evaluator.verify:
        count = len(exposure.pool)
        with progress(count, "read outlier objects", enabled=is_first_process()) as bar:
            verify(exposure.pool, bar.advance)
    seed_everything(settings.seed)
    # With strict=false, the backbone may be what the checkpoint lacks.
    starts_bare = not (cfg.checkpoint or cfg.start_from)
    pretrained = starts_bare or bool(cfg.delta_weights) or (bool(cfg.checkpoint) and not cfg.strict)
    model = runs.build_model(cfg, pretrained=pretrained)
    model.set_trainable(cfg.trainable.value)
    if settings.trainer.gradient_checkpointing:
        model.checkpoint_blocks()
    annealing_steps(settings.optim.mask_annealing, 1, model.num_blocks)  # a pair for every block?
    only_head = cfg.trainable is Trainable.head
    _rehearse(runs.make_detector(cfg, model, "no"), losses, only_head)
    images = build_image_sets(cfg, training=True)
    pictures, contents = read_sets.training(cfg)
    if pictures.num_classes == 0 and not only_head:
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
    seen_image_warnings(seen, images, settings.evaluator.allow_seen_images)
    training = TrainingSet(pictures, augmentation, exposure, cfg.data.num_classes, settings.seed)
    weigh_classes(losses, pictures, settings.trainer.num_workers)
    trainer = settings.trainer
    check_enough_images(len(training), trainer.batch_size, trainer.accumulate, num_processes())
    training.check(trainer.epochs)
    return Parts(run_dir, settings, model, losses, images, training, seen, trial)


def _check_model(cfg: DictConfig) -> None:
    """Refuse a model without masks, which every loss here reads."""
    if "num_queries" not in cfg.model:
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


def _rehearse(detector: Detector, losses: dict[str, Loss], only_head: bool) -> None:
    """Pass one black image through model, losses and scores: parts that do not fit say so now."""
    size = detector.image_size
    pasted = torch.zeros(size, dtype=torch.uint8)
    pasted[: size[0] // 2] = 1
    target = Target(
        (pasted == 0)[None], torch.zeros(1, dtype=torch.int64), pasted, torch.zeros(size) > 0
    )
    # A graph of the whole model would want much memory, that of a head little.
    with torch.set_grad_enabled(only_head):
        output = detector.model.train()(torch.zeros(1, 3, *size))
        terms = [term for loss in losses.values() for term in loss(output, [target]).values()]
        for name, scorer in detector.scorers.items():
            if isinstance(scorer, FittedScorer):
                raise UserError(
                    f"scorer={name} was fitted to another model than the one that is trained now: "
                    f"train without it, then type task=evaluate checkpoint=<run> scorer=[{name}]."
                )
            scorer(output)
    if only_head and not any(term.requires_grad for term in terms):
        raise UserError(
            f"loss={','.join(losses)} does not depend on the anomaly head, which is all that "
            "trainable=head trains: type loss=[anomaly_head]."
        )


def _train_and_evaluate(cfg: DictConfig, parts: Parts, warnings: Mapping[str, str]) -> None:
    settings, model, folder, trial = parts.settings, parts.model, parts.folder, parts.trial
    seed_everything(settings.seed)  # what was built or trained before must not shift the draws
    accelerator = make_accelerator(settings.trainer)
    measurement = Measurement(settings, accelerator, folder)
    try:
        with open_tracker(settings, folder, accelerator.is_main_process, trial) as tracker:
            if accelerator.is_main_process and forget_pruning(folder):
                tracker.set_tags({"optuna.state": "CONTINUED"})
            tracker.log_params(runs.flat(runs.training_settings(cfg)))
            if not agreed((folder / WEIGHTS).is_file()):
                detector = runs.make_detector(cfg, model, accelerator.mixed_precision)
                validate = Validation(
                    measurement, detector, parts.images, settings.trainer.keep_best
                )
                trained = _fit(parts, accelerator, tracker, validate)
                if accelerator.is_main_process:
                    save_weights(trained, folder / WEIGHTS)
            else:  # killed between training and the last number
                runs.fill(model, folder)
                model.to(accelerator.device)
            accelerator.wait_for_everyone()  # the weights are the first process's

            def load() -> Detector:
                # Without the autocast that Accelerate wraps its forward in for training.
                bare: Model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
                return runs.make_detector(cfg, bare, measurement.precision)

            precision = measurement.precision
            trained_now = Candidate.of(cfg, folder, parts.seen, warnings, precision, load)
            images = parts.images
            if not settings.evaluator.known_classes:  # data.val was for the validation
                images = images._replace(validation=None)
            evaluate_models(Cells(measurement, images), [trained_now], tracker, shown=not trial)
            if trial:
                tracker.set_tags({"optuna.state": "COMPLETE"})
    finally:
        forget_accelerator(accelerator)


def _fit(parts: Parts, accelerator: Accelerator, tracker: Tracker, validate: Validation) -> Model:
    """Train to the end; return the model without what Accelerate wraps around it."""

    def after_validation(metrics: dict[str, float], epoch: int, step: int) -> None:
        if parts.trial:
            parts.trial.report(metrics, parts.folder, epoch, settings.epochs, step)

    settings, name, seed = parts.settings.trainer, parts.settings.name, parts.settings.seed
    trainer = Trainer(
        name=name,
        accelerator=accelerator,
        model=parts.model,
        losses=parts.losses,
        loader=training_loader(
            parts.training, settings.batch_size * settings.accumulate, settings.num_workers, seed
        ),
        optim=parts.settings.optim,
        settings=settings,
        folder=parts.folder / runs.STATES,
        tracker=tracker,
        validate=validate,
        after_validation=after_validation,
        last_validation=lambda: agreed(last_validation(parts.folder)),
    )
    return trainer.fit()
