"""`task=evaluate` measures trained models on every benchmark, and reports it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from eomt_exp import runs
from eomt_exp.config_keys import OF_A_RUN, OF_A_RUN_UNLESS_TYPED, typed_keys
from eomt_exp.contracts import UserError
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.device import agreed, forget_accelerator, is_first_process, make_accelerator
from eomt_exp.run_folders import working_in
from eomt_exp.schema import FusionConfig
from eomt_exp.tasks.candidate import Candidate
from eomt_exp.tasks.fusion import check_known_classes, fuse, keep_fused_scores, seen_in_all
from eomt_exp.tasks.image_sets import ImageSets, build_image_sets, read_sets, seen_image_warnings
from eomt_exp.tasks.measure import Cells, Measurement
from eomt_exp.tasks.mined_queries import Load, fitted_scorers, mine_where_asked
from eomt_exp.tasks.mlflow_runs import open_tracker
from eomt_exp.tasks.publish import evaluate_models
from eomt_exp.tasks.start import checked_settings, evaluates, fill, seen_by, tell_without_effect
from eomt_exp.tasks.train import start_of


def run(cfg: DictConfig) -> None:
    """Evaluate the run or weights at cfg.checkpoint, or this configuration's semantic EoMT."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    read_sets.forget_files()
    with working_in(run_dir, Path(cfg.paths.outputs)) if is_first_process() else nullcontext():
        _run(cfg, run_dir)


def _run(cfg: DictConfig, run_dir: Path) -> None:
    if any(one.startswith("protocol=[") for one in HydraConfig.get().overrides.task):
        raise UserError("one protocol at a time; -m protocol=default,smiyc runs one after another.")
    fusion: FusionConfig = OmegaConf.to_object(cfg.fusion)  # type: ignore[assignment]
    parts = _each(cfg, cfg.ensemble)  # before cfg becomes that of its own model
    if parts:
        keep_fused_scores(fusion, parts)
    configs = _configs(cfg) if cfg.checkpoint or not parts else []
    if parts:
        check_known_classes(fusion, [*configs, *parts])
    for one in configs:
        if one.score not in one.scorer:
            raise UserError(
                f"score={one.score} is not in scorer=[{','.join(map(str, one.scorer))}]; type "
                f"score={next(iter(one.scorer), '…')} too, say."
            )
    settings = checked_settings(cfg, [*configs, *parts])
    tell_without_effect(cfg, [*configs, *parts])
    if not cfg.checkpoint and cfg.start_from is None and not parts:
        raise UserError(
            "task=evaluate needs a trained model: add checkpoint=<run folder, file or hf://…>, or "
            "several as checkpoint=[…,…]."
        )
    images = build_image_sets([*configs, *parts][0])
    sources = [source for one in configs if (source := start_of(one)) is not None]
    accelerator = make_accelerator(settings.trainer)
    try:
        measurement = Measurement(settings, accelerator, run_dir)
        measured = images if cfg.evaluator.known_classes else images._replace(validation=None)
        cells = Cells(measurement, measured)
        models = _candidates(configs, sources, images, measurement)
        members = _candidates(parts, [one.checkpoint for one in parts], images, measurement)
        seen = seen_in_all(members, images)
        warnings = seen_image_warnings(seen, images, settings.evaluator.allow_seen_images)
        # What does not fit says so before anything is written.
        for model in [*(m for m in models if not agreed(cells.is_complete(m))), *members]:
            _ = model.detector
            if len(models) + len(members) > 1:
                model.let_go()
        kept = configs[0] if len(configs) == 1 and not parts else cfg
        runs.begin(kept, run_dir)
        if images.tuning and accelerator.is_main_process:
            seen.save(run_dir)
        with open_tracker(settings, run_dir, accelerator.is_main_process) as tracker:
            tracker.log_params(runs.flat(runs.plain(kept)))
            if parts:
                models.append(fuse(cells, members, fusion, images, seen, warnings))
            evaluate_models(cells, models, tracker)
    finally:
        forget_accelerator(accelerator)


def _candidates(
    configs: Sequence[DictConfig],
    sources: Sequence[str | Path],
    images: ImageSets,
    measurement: Measurement,
) -> list[Candidate]:
    found: list[Candidate] = []
    for one, source in zip(configs, sources, strict=True):
        load = partial(detector_of, source=source, measurement=measurement)
        mine_where_asked(one, source, load)
        fitted = fitted_scorers(one, source)
        seen = seen_by(source, fitted.values())
        allowed = measurement.settings.evaluator.allow_seen_images
        warnings = seen_image_warnings(seen, images, allowed)
        taken = {model.label for model in found}
        precision, load = measurement.precision, partial(load, one)
        found.append(Candidate.of(one, source, seen, warnings, precision, load, taken, fitted))
    return found


def _configs(cfg: DictConfig) -> list[DictConfig]:
    """Return a configuration a model: that of its run where it has one, under what was typed."""
    if not isinstance(cfg.checkpoint, ListConfig):
        return [as_trained(cfg)]
    if not cfg.checkpoint:
        raise UserError("checkpoint=[] names no model; type checkpoint=[<run>,<run>].")
    configs = _each(cfg, cfg.checkpoint)
    for other in configs[1:] if cfg.evaluator.known_classes else []:
        if (other.data.name, other.data.val) != (configs[0].data.name, configs[0].data.val):
            raise UserError(
                f"{other.checkpoint} was trained on data={other.data.name} with other validation "
                f"images than {configs[0].checkpoint} (data={configs[0].data.name}); one table "
                "wants one kind of known classes: add evaluator.known_classes=false, or evaluate "
                "them apart."
            )
    return configs


def _each(cfg: DictConfig, sources: Iterable[str]) -> list[DictConfig]:
    configs = []
    for one in sources:
        copy = cfg.copy()
        with open_dict(copy):
            copy.checkpoint = str(one)
        configs.append(as_trained(copy))
    return configs


@contextmanager
def opened(cfg: DictConfig, folder: Path) -> Iterator[tuple[str | Path, Load]]:
    """Give the trained model of a configuration: its source, and what loads a detector of it.

    The settings are checked first. Raises UserError where there is no trained model.
    """
    settings = checked_settings(cfg)
    tell_without_effect(cfg)
    source = start_of(cfg)
    if source is None:
        task = str(cfg.task._target_).split(".")[-2]
        raise UserError(
            f"task={task} needs a trained model: add checkpoint=<run folder, file or hf://…>, or "
            "start_from=semantic."
        )
    accelerator = make_accelerator(settings.trainer)
    try:
        measurement = Measurement(settings, accelerator, folder)
        yield source, partial(detector_of, source=source, measurement=measurement)
    finally:
        forget_accelerator(accelerator)


def detector_of(cfg: DictConfig, source: str | Path, measurement: Measurement) -> Detector:
    """Load a run's model as configured there, or this configuration's with public weights."""
    if runs.is_run(source):
        model = runs.load_model(Path(source))[1]
    else:
        model = runs.build_model(cfg, pretrained=bool(cfg.delta_weights))
        fresh = fill(cfg, model, source).fresh
        if fresh:
            raise UserError(
                f"{source} leaves {len(fresh)} weights of this model random "
                f"({', '.join(fresh[:3])}), and their scores would be no result: train it first "
                "(+experiment=semantic checkpoint=…), or take the model, classes and anomaly_head "
                "the file was made for."
            )
    return runs.make_detector(
        cfg, model.eval().to(measurement.accelerator.device), measurement.precision
    )


def as_trained(cfg: DictConfig) -> DictConfig:
    """Return this configuration around a trained model: what was not typed is the run's.

    Validation images are the exception where the data set is the same: their paths are this
    machine's. The folder of an evaluation stands for the model evaluated there, as it was.
    """
    if not (cfg.checkpoint and runs.is_run(cfg.checkpoint)):
        return cfg
    trained = runs.load_config(Path(cfg.checkpoint))
    if evaluates(trained) and not isinstance(trained.checkpoint, str):
        raise UserError(
            f"{cfg.checkpoint} is an evaluation of more than one model, or of one that was found "
            "by content; name the runs, or the folder of an evaluation of one checkpoint=."
        )
    keys = typed_keys(HydraConfig.get().overrides.task)
    typed = {key.partition(".")[0] for key in keys}
    # An experiment that evaluates says what by; members of an ensemble have scores of their own.
    if "experiment" in keys and "task" not in keys and not cfg.ensemble:
        typed |= {"scorer", "score"}
    own = [*OF_A_RUN, *(key for key in OF_A_RUN_UNLESS_TYPED if key not in typed)]
    if cfg.data.name != trained.data.name:
        own.append("data")
    with open_dict(cfg):
        for group in own:
            cfg[group] = trained[group]
        cfg.data.image_size = trained.data.image_size
        if "protocol.image_size" not in keys:
            cfg.protocol.image_size = trained.protocol.image_size
        if evaluates(trained):
            cfg.checkpoint, cfg.delta_weights = trained.checkpoint, trained.delta_weights
    return cfg
