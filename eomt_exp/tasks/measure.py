"""A model on every benchmark and on the known classes: numbers, pictures, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig
from torch.utils.data import Subset

from eomt_exp import runs
from eomt_exp.build import build, build_all
from eomt_exp.contracts import ImageSet
from eomt_exp.data.loader import image_loader
from eomt_exp.engine.detector import Detector
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
from eomt_exp.engine.weight_files import sha256


class ImageSets(NamedTuple):
    """What a model is measured on."""

    benchmarks: dict[str, ImageSet]
    validation: ImageSet  # for the known classes


def build_image_sets(cfg: DictConfig) -> ImageSets:
    """Benchmarks and data.val; each file is read once now, so that none can fail after training."""
    sets = ImageSets(build_all(cfg.benchmark, "benchmark"), build(cfg.data.val, "data.val"))
    if cfg.evaluator.verify:
        for images in (*sets.benchmarks.values(), sets.validation):
            verify(images)
    return sets


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


def measure(
    cfg: DictConfig,
    detector: Detector,
    images: ImageSets,
    accelerator: Any,
    tracker: Tracker,
    run_dir: Path,
    source: str | Path,
) -> dict[str, float]:
    """All benchmarks and the known classes; tracks, writes, prints and returns the numbers.

    `source` is the run folder, file or hub id that the weights come from.
    metrics.json says that a run is complete, so it is written when all else is safe.
    """
    metrics: dict[str, float] = {}
    figures: list[Path] = []
    for name, benchmark in images.benchmarks.items():
        result = _on_benchmark(cfg, detector, benchmark, name, accelerator)
        metrics |= result.metrics(name)
        if accelerator.is_main_process:
            figures += _draw(result, name, detector.score, run_dir / "figures")
    metrics |= known_classes(cfg, detector, images.validation, accelerator)
    if not accelerator.is_main_process:
        return metrics
    if (run_dir / JOURNAL).is_file():
        figures.append(training_figure(run_dir / JOURNAL, run_dir / "figures" / "training.png"))
    for figure in figures:
        tracker.log_artifact(figure, "figures")
    tracker.log_artifact(run_dir / runs.CONFIG)
    tracker.log_metrics(metrics, _last_step(run_dir))
    tracker.flush()
    manifest = _manifest(cfg, detector, images, source)
    write_metrics(run_dir / runs.METRICS, metrics, manifest)
    tracker.log_artifact(run_dir / runs.METRICS)
    print_report(metrics, run_dir, figures)
    return metrics


def known_classes(
    cfg: DictConfig, detector: Detector, images: ImageSet, accelerator: Any
) -> dict[str, float]:
    """`val/miou` and its like."""
    stream = image_loader(_mine(images, accelerator), cfg.trainer.num_workers)
    results = evaluate_known_classes(detector, stream, images.num_classes)
    return {f"val/{_named(key, images.class_names)}": value for key, value in results.items()}


def _mine(images: ImageSet, accelerator: Any) -> Any:
    """This process's share."""
    return Subset(
        cast(Any, images), shard(images, accelerator.process_index, accelerator.num_processes)
    )


def _named(key: str, class_names: Sequence[str]) -> str:
    """iou/3 -> iou_car: three levels are for scorers."""
    head, _, index = key.partition("/")
    return f"{head}_{class_names[int(index)]}" if index else key


def _on_benchmark(
    cfg: DictConfig, detector: Detector, images: ImageSet, name: str, accelerator: Any
) -> BenchmarkResult:
    mine = _mine(images, accelerator)
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
    curves: dict[str, Any] = {scorer: counts.curves() for scorer, counts in result.counts.items()}
    exact = {scorer: counts.results() for scorer, counts in result.counts.items()}
    drawn.append(curves_figure(curves, name, folder / f"{name}_curves.png", exact))
    return drawn


def _manifest(
    cfg: DictConfig, detector: Detector, images: ImageSets, source: str | Path
) -> dict[str, Any]:
    """What the numbers depend on, beside the weights."""
    return {
        "experiment": cfg.name,
        "seed": cfg.seed,
        "weights": str(source),
        "weights_sha256": sha256(runs.weights_of(source)),
        "content_key": runs.content_key(cfg),
        "precision": detector.precision,
        "windows": detector.windows,
        "window_size": list(detector.image_size),
        "score_resolution": "window, then bilinear to the label's size",
        "resolution": "native resolution of the labels",
        "void": 255,
        "images_without_anomaly": "kept",
        "score": detector.score,
        "images": {name: len(part) for name, part in images.benchmarks.items()},
        "skipped": {
            name: list(getattr(part, "skipped", [])) for name, part in images.benchmarks.items()
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
