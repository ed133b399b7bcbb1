"""Checks a configuration, and finds and loads what a model begins with.

That is a run, public weights, or a semantic EoMT, which is trained once and found by its content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from eomt_exp import config_keys, runs, schema
from eomt_exp.config_keys import OF_ALL_STAGES, OF_LOADING
from eomt_exp.contracts import FittedScorer, Model, UserError
from eomt_exp.engine.device import agreed, is_first_process
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.tasks.benchmark_exports import check_exports
from eomt_exp.weights.loading import Report
from eomt_exp.weights.weight_files import HUB, WEIGHTS, weight_files


class TaskSettings(NamedTuple):
    """Holds what a task goes by, typed: its values are in range and fit together."""

    name: str
    seed: int
    score: str
    content_key: str
    trainer: schema.TrainerConfig
    optim: schema.OptimConfig
    evaluator: schema.EvaluatorConfig
    protocol: schema.ProtocolConfig
    tracking: schema.TrackingConfig
    evaluates: bool  # instead of training first
    has_checkpoint: bool


def checked_settings(cfg: DictConfig, models: Sequence[DictConfig] = ()) -> TaskSettings:
    """Refuse wrong settings before anything long, and download hub ids.

    `models` are the configurations of models that are evaluated together, where cfg is of none.
    """
    if cfg.ensemble and not evaluates(cfg):
        raise UserError("ensemble=[…] is measured, not trained: add task=evaluate.")
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
        evaluates=evaluates(cfg),
        has_checkpoint=bool(cfg.checkpoint or cfg.ensemble),
        **typed,
    )


def tell_without_effect(cfg: DictConfig, models: Sequence[DictConfig] = ()) -> None:
    """Name the keys that were typed and that neither this task nor one of its models reads."""
    task = str(cfg.task._target_).split(".")[-2]
    typed = config_keys.typed_keys(HydraConfig.get().overrides.task)
    found, note = typed, ""
    for one in models or [cfg]:
        reads, kept = config_keys.READ[task], {*OF_LOADING}
        if one.checkpoint and task != "train" and runs.is_run(one.checkpoint):
            kept |= {*config_keys.OF_A_RUN, "data.image_size"}
            note = "; a run keeps its own"
        elif one.checkpoint:
            kept.clear()
        elif one.start_from is not None:
            reads += OF_ALL_STAGES
        if task == "evaluate" and not cfg.ensemble:
            kept |= {*config_keys.OF_AN_ENSEMBLE}
        plain: Any = OmegaConf.to_container(one)
        found = found & config_keys.without_effect(typed, plain, reads, kept)
    if found and is_first_process():
        print(f"typed without effect on task={task}: {', '.join(sorted(found))}{note}.", flush=True)


def evaluates(cfg: DictConfig) -> bool:
    """Return whether this is a configuration of task=evaluate."""
    return str(cfg.task._target_).endswith("evaluate.run")


def seen_by(start: str | Path, fitted: Iterable[FittedScorer] = ()) -> SeenImages:
    """Return what the model behind a run folder, file or hub id has seen, as far as is recorded.

    A file in a run folder, or in one of its checkpoints, is that run's. What scorers were fitted on
    is as if the model had seen it: the test is of both.
    """
    seen = _seen_by_model(start)
    for scorer in fitted:
        seen.include(SeenImages.load(Path(scorer.folder)))
    return seen


def _seen_by_model(start: str | Path) -> SeenImages:
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
    if cfg.delta_weights and (not cfg.checkpoint or runs.is_run(cfg.checkpoint)):
        raise UserError("delta_weights=true is for published weights: checkpoint=<file or hf://…>.")
    if cfg.delta_weights and not (cfg.backbone.get("weights") or cfg.backbone.get("pretrained")):
        raise UserError(
            "delta_weights=true adds to the weights the backbone was trained from: "
            "type backbone.weights=/path/to/them, or backbone.pretrained=true to download them."
        )
    if cfg.checkpoint:
        weight_files(runs.weights_of(cfg.checkpoint))


@contextmanager
def semantic_run(cfg: DictConfig) -> Iterator[tuple[Path, DictConfig | None]]:
    """Give the run folder of the semantic EoMT with this configuration's model, data and seed.

    And, where none has been trained, the configuration to train there. A second job that needs the
    same model waits here, and then finds it.
    """
    semantic = semantic_config(cfg)
    folder = Path(cfg.paths.outputs) / "semantic" / f"by-content-{runs.content_key(semantic)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One process of a job takes the lock for all: the others must be free to train with it.
    first = is_first_process()
    with _locked(f"{folder}.lock") if first else nullcontext():
        found = agreed(_find(folder, semantic) if first else None)
        text = f"found {found}"
        if found is None:
            folder.mkdir(exist_ok=True)
            text = f"none for this model, data and seed; training it in {folder}"
        if first:
            print(f"semantic EoMT: {text}", flush=True)
        yield (folder, semantic) if found is None else (found, None)


def semantic_config(cfg: DictConfig) -> DictConfig:
    """Return `+experiment=semantic` with this configuration's model, data and seed.

    Its data are those of `known`, where cfg.data has no labels of known classes.
    """
    semantic = compose("config", overrides=["+experiment=semantic"])
    with open_dict(semantic):
        for key in OF_ALL_STAGES:
            group, _, name = key.rpartition(".")
            to, given = (semantic[group], cfg[group]) if group else (semantic, cfg)
            to[name] = given[name]  # a group with its interpolations, which find their new home
        if cfg.known is not None:
            semantic.data = OmegaConf.merge(OmegaConf.structured(schema.DataConfig), cfg.known)
    return semantic


def _locked(path: str) -> AbstractContextManager[object]:
    """Take a file lock, which is held inside a `with`, and say so where it has to wait."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"another job trains this semantic EoMT; waiting for {path}", flush=True)
        return lock.acquire()


def _find(folder: Path, semantic: DictConfig) -> Path | None:
    """Return this very folder, or a run of `+experiment=semantic` with the same content key."""
    wanted = runs.content_key(semantic)
    others = sorted(folder.parent.glob(f"*/{runs.METRICS}"), reverse=True)
    for run_dir in [folder, *(path.parent for path in others)]:
        done = (runs.read_metrics(run_dir) or {}).get("manifest", {}).get("content_key")
        if done is None or not (run_dir / WEIGHTS).is_file():
            continue
        # A run of an earlier commit may name classes of data that have been replaced since.
        if wanted in (done, runs.content_key(runs.load_config(run_dir))):
            return run_dir
    return None
