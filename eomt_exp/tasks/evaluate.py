"""`task=evaluate` measures trained models on every benchmark, and reports it."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, open_dict

from eomt_exp import runs
from eomt_exp.config_keys import OF_A_RUN, OF_A_RUN_UNLESS_TYPED
from eomt_exp.contracts import UserError
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.device import agreed, forget_accelerator, is_first_process, make_accelerator
from eomt_exp.run_folders import working_in
from eomt_exp.tasks.candidate import Candidate
from eomt_exp.tasks.image_sets import build_image_sets, read_sets, seen_image_warnings
from eomt_exp.tasks.measure import Cells, Measurement
from eomt_exp.tasks.mined_queries import fitted_scorers, mine_where_asked
from eomt_exp.tasks.mlflow_runs import open_tracker
from eomt_exp.tasks.publish import evaluate_models
from eomt_exp.tasks.start import checked_settings, fill, seen_by
from eomt_exp.tasks.train import start_of


def run(cfg: DictConfig) -> None:
    """Evaluate the run or weights at cfg.checkpoint, or this configuration's semantic EoMT."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    read_sets.forget_files()
    with working_in(run_dir, Path(cfg.paths.outputs)) if is_first_process() else nullcontext():
        _run(cfg, run_dir)


def _run(cfg: DictConfig, run_dir: Path) -> None:
    if any(one.startswith("protocol=[") for one in _typed()):
        raise UserError("one protocol at a time; -m protocol=default,smiyc runs one after another.")
    configs = _configs(cfg)
    settings = checked_settings(cfg, configs)
    if not cfg.checkpoint and cfg.start_from is None:
        raise UserError(
            "task=evaluate needs a trained model: add checkpoint=<run folder, file or hf://…>, or "
            "several as checkpoint=[…,…]."
        )
    images = build_image_sets(configs[0])
    sources = [source for one in configs if (source := start_of(one)) is not None]
    accelerator = make_accelerator(settings.trainer)
    try:
        measurement = Measurement(settings, accelerator, run_dir)
        cells = Cells(measurement, images)
        models: list[Candidate] = []
        for one, source in zip(configs, sources, strict=True):
            mine_where_asked(
                one, source, partial(detector_of, source=source, measurement=measurement)
            )
            fitted = fitted_scorers(one, source)
            seen = seen_by(source, fitted.values())
            warnings = seen_image_warnings(seen, images, settings.evaluator.allow_seen_images)
            load = partial(detector_of, one, source, measurement)
            taken = {model.label for model in models}
            models.append(
                Candidate(one, source, seen, warnings, measurement.precision, load, taken, fitted)
            )
        for model in models:  # what does not fit says so before anything is written
            if not agreed(cells.is_complete(model)):
                _ = model.detector
            if len(models) > 1:
                model.let_go()
        kept = configs[0] if len(configs) == 1 else cfg
        runs.begin(kept, run_dir)
        with open_tracker(settings, run_dir, accelerator.is_main_process) as tracker:
            tracker.log_params(runs.flat(runs.plain(kept)))
            evaluate_models(cells, models, tracker)
    finally:
        forget_accelerator(accelerator)


def _configs(cfg: DictConfig) -> list[DictConfig]:
    """Return a configuration a model: that of its run where it has one, under what was typed."""
    if not isinstance(cfg.checkpoint, ListConfig):
        return [as_trained(cfg)]
    if not cfg.checkpoint:
        raise UserError("checkpoint=[] names no model; type checkpoint=[<run>,<run>].")
    configs = []
    for one in cfg.checkpoint:
        copy = cfg.copy()
        with open_dict(copy):
            copy.checkpoint = str(one)
        configs.append(as_trained(copy))
    for other in configs[1:] if cfg.evaluator.known_classes else []:
        if (other.data.name, other.data.val) != (configs[0].data.name, configs[0].data.val):
            raise UserError(
                f"{other.checkpoint} was trained on data={other.data.name} with other validation "
                f"images than {configs[0].checkpoint} (data={configs[0].data.name}); one table "
                "wants one kind of known classes: add evaluator.known_classes=false, or evaluate "
                "them apart."
            )
    return configs


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
    machine's.
    """
    if not (cfg.checkpoint and runs.is_run(cfg.checkpoint)):
        return cfg
    trained = runs.load_config(Path(cfg.checkpoint))
    keys = {one.lstrip("+~").split("=")[0] for one in _typed()}
    typed = {key.split(".")[0] for key in keys}
    if "experiment" in keys and "task" not in keys:  # it says to evaluate, and what by
        typed |= {"scorer", "score"}
    if ignored := typed & {"model", "backbone"}:
        parts = " and ".join(sorted(ignored))
        print(f"{cfg.checkpoint} has its own {parts}; what was typed is for weights from elsewhere")
    own = [*OF_A_RUN, *(key for key in OF_A_RUN_UNLESS_TYPED if key not in typed)]
    if cfg.data.name != trained.data.name:
        own.append("data")
    with open_dict(cfg):
        for group in own:
            cfg[group] = trained[group]
        cfg.data.image_size = trained.data.image_size
    return cfg


def _typed() -> list[str]:
    return list(HydraConfig.get().overrides.task)
