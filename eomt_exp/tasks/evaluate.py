"""`task=evaluate`: a trained model on every benchmark: numbers, pictures, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Subset

from eomt_exp import run_folders, runs
from eomt_exp.build import build, build_all
from eomt_exp.cli import UsageError
from eomt_exp.contracts import ImageSet
from eomt_exp.data.loader import image_loader
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.device import forget_accelerator, make_accelerator
from eomt_exp.engine.evaluation import (
    BenchmarkResult,
    evaluate_anomalies,
    evaluate_known_classes,
    shard,
    verify,
)
from eomt_exp.engine.figures import HeatMapRow, curves_figure, heat_map_figure, training_figure
from eomt_exp.engine.journal import FILE_NAME as JOURNAL
from eomt_exp.engine.journal import read_journal
from eomt_exp.engine.progress import progress
from eomt_exp.engine.report import print_report, write_metrics
from eomt_exp.engine.tracking import MLflowTracker, NullTracker, Tracker
from eomt_exp.tasks.semantic import find_or_train


def run(cfg: DictConfig) -> None:
    """Evaluate the run at cfg.checkpoint, or the semantic EoMT of this configuration."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    benchmarks = build_benchmarks(cfg)
    source = trained_run(cfg)
    if source is None:
        raise UsageError("task=evaluate needs a trained model: add checkpoint=<run folder>.")
    trained, model = runs.load_model(source)
    # The model is the run's; how it is scored is this command's.
    trained = OmegaConf.merge(
        trained, {k: cfg[k] for k in ("scorer", "score", "evaluator", "benchmark", "trainer")}
    )
    outputs = Path(cfg.paths.outputs)
    runs.begin(cfg, run_dir)
    accelerator = make_accelerator(OmegaConf.to_object(cfg.trainer))
    try:
        with open_tracker(cfg, run_dir, accelerator.is_main_process) as tracker:
            run_folders.mark_unfinished(outputs, run_dir)
            detector = runs.make_detector(
                trained, model.to(accelerator.device), accelerator.mixed_precision
            )
            evaluate(trained, detector, benchmarks, accelerator, tracker, run_dir, source)
    finally:
        forget_accelerator(accelerator)
    run_folders.mark_finished(outputs, run_dir)


def trained_run(cfg: DictConfig) -> Path | None:
    """The run folder a configuration starts from: checkpoint=, or start_from=semantic."""
    if cfg.checkpoint:
        return Path(cfg.checkpoint)
    if cfg.start_from is None:
        return None
    if cfg.start_from != "semantic":
        raise UsageError(f"start_from must be semantic or null, got {cfg.start_from!r}.")
    return find_or_train(cfg)


def build_benchmarks(cfg: DictConfig) -> dict[str, ImageSet]:
    """The benchmarks by name; each file is read once now, so that none can fail after training."""
    benchmarks = build_all(cfg.benchmark, "benchmark")
    if cfg.evaluator.verify:
        for images in benchmarks.values():
            verify(images)
    return benchmarks


def open_tracker(cfg: DictConfig, run_dir: Path, is_main: bool) -> Tracker:
    """MLflow, or only the journal, or, in the other processes, nothing."""
    if not is_main:
        return NullTracker()
    if not cfg.tracking.enabled:
        return NullTracker(run_dir)
    return MLflowTracker(
        uri=cfg.tracking.uri,
        experiment=cfg.tracking.experiment,
        run_name=f"{cfg.name}-{cfg.seed}-{run_dir.name}",
        run_dir=run_dir,
        artifact_root=cfg.tracking.artifacts,
        tags=dict(cfg.tracking.tags),
    )


def evaluate(
    cfg: DictConfig,
    detector: Detector,
    benchmarks: dict[str, ImageSet],
    accelerator: Any,
    tracker: Tracker,
    run_dir: Path,
    source: Path,
) -> dict[str, float]:
    """All benchmarks and the known classes of data.val; writes, tracks, prints and returns them."""
    metrics: dict[str, float] = {}
    figures: list[Path] = []
    for name, images in benchmarks.items():
        result = _on_benchmark(cfg, detector, images, name, accelerator)
        metrics |= result.metrics(name)
        if accelerator.is_main_process:
            figures += _draw(result, name, detector.score, run_dir / "figures")
    if cfg.data.val is not None:
        metrics |= known_classes(cfg, detector, accelerator)
    if not accelerator.is_main_process:
        return metrics
    if (run_dir / JOURNAL).is_file():
        figures.append(training_figure(run_dir / JOURNAL, run_dir / "figures" / "training.png"))
    write_metrics(run_dir / runs.METRICS, metrics, _manifest(cfg, detector, benchmarks, source))
    tracker.log_metrics(metrics, _last_step(run_dir))
    for figure in figures:
        tracker.log_artifact(figure, "figures")
    tracker.log_artifact(run_dir / runs.METRICS)
    tracker.log_artifact(run_dir / runs.CONFIG)
    print_report(metrics, run_dir, figures)
    return metrics


def known_classes(cfg: DictConfig, detector: Detector, accelerator: Any) -> dict[str, float]:
    """`val/miou` and its like."""
    images = build(cfg.data.val, "data.val")
    mine = Subset(images, shard(images, accelerator.process_index, accelerator.num_processes))
    stream = image_loader(mine, cfg.trainer.num_workers)
    results = evaluate_known_classes(detector, stream, images.num_classes)
    return {f"val/{_named(key, images.class_names)}": value for key, value in results.items()}


def _named(key: str, class_names: Sequence[str]) -> str:
    """iou/3 -> iou_car: three levels are for scorers."""
    head, _, index = key.partition("/")
    return f"{head}_{class_names[int(index)]}" if index else key


def _on_benchmark(
    cfg: DictConfig, detector: Detector, images: ImageSet, name: str, accelerator: Any
) -> BenchmarkResult:
    mine = Subset(images, shard(images, accelerator.process_index, accelerator.num_processes))
    with progress(len(mine), f"evaluate {name}", enabled=accelerator.is_main_process) as bar:
        return evaluate_anomalies(
            detector,
            image_loader(mine, cfg.trainer.num_workers),
            bits=cfg.evaluator.bits,
            num_examples=cfg.evaluator.figures,
            advance=bar.advance,
        )


def _draw(result: BenchmarkResult, name: str, score: str, folder: Path) -> list[Path]:
    rows = [HeatMapRow(e.image, e.anomaly, e.score, e.name) for e in result.examples]
    drawn = []
    if rows:
        drawn.append(heat_map_figure(rows, folder / f"{name}_{score}.png", f"{name} · {score}"))
    curves = {scorer: counts.curves() for scorer, counts in result.counts.items()}
    exact = {scorer: counts.results() for scorer, counts in result.counts.items()}
    drawn.append(curves_figure(curves, name, folder / f"{name}_curves.png", exact))
    return drawn


def _manifest(
    cfg: DictConfig, detector: Detector, benchmarks: dict[str, ImageSet], source: Path
) -> dict[str, Any]:
    """What the numbers depend on, beside the weights."""
    return {
        "experiment": cfg.name,
        "seed": cfg.seed,
        "weights": str(source),
        "content_key": runs.content_key(cfg),
        "precision": detector.precision,
        "windows": detector.windows,
        "window_size": list(detector.image_size),
        "score_resolution": "window, then bilinear to the label's size",
        "resolution": "native resolution of the labels",
        "void": 255,
        "images_without_anomaly": "kept",
        "score": detector.score,
        "images": {name: len(images) for name, images in benchmarks.items()},
        "skipped": {
            name: list(getattr(images, "skipped", [])) for name, images in benchmarks.items()
        },
        "definitions": {
            "ap": "sum of (R_n - R_(n-1)) * P_n over pooled pixels",
            "fpr95": "false positive rate at the first threshold with recall >= 0.95",
            "auroc": "half credit for ties",
            "bits": cfg.evaluator.bits,
        },
    }


def _last_step(run_dir: Path) -> int:
    return int(max((line["step"] for line in read_journal(run_dir / JOURNAL)), default=0))
