"""`task=export` writes a trained model as files that need none of our code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image

from eomt_exp import runs
from eomt_exp.build import build
from eomt_exp.contracts import ImageSet, UserError
from eomt_exp.data.files.pictures import find_pictures
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.progress import progress
from eomt_exp.engine.score_graph import ENDINGS, ScoreGraph, loaded
from eomt_exp.files import replacing, write_text
from eomt_exp.report.export_page import write_page, write_script
from eomt_exp.run_folders import working_in
from eomt_exp.schema import ExportConfig, typed
from eomt_exp.tasks.evaluate import as_trained, opened
from eomt_exp.tasks.mined_queries import Load
from eomt_exp.weights.publishing import write_hugging_face, write_official

SCALES = (1.0, 0.75, 0.5)  # of the pictures that a graph of any size is compared on
EQUAL_CLASSES = 0.9999  # of the pixels, at least
# Of a run's configuration, what its model and its scores depend on; the rest is of one machine.
_KEPT = ("name", "seed", "score", "scorer", "model", "trainable", "protocol")
_KEPT_OF_DATA = ("name", "num_classes", "image_size", "road_classes")


def run(cfg: DictConfig) -> None:
    """Write the model at cfg.checkpoint in task.format into Hydra's folder."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    options = typed(cfg.task, ExportConfig, "task")
    with working_in(run_dir, Path(cfg.paths.outputs)):
        cfg = as_trained(cfg)
        if cfg.model.get("official_quirks") and options.size and options.format in ENDINGS:
            raise UserError(
                "model.official_quirks=true resizes by Pillow, which is in no graph; type "
                "task.size=null, and resize as you like before it."
            )
        with open_dict(cfg):
            cfg.protocol.precision = "no"  # what a graph is compared with
        with opened(cfg, run_dir) as (source, load):
            if options.format in ENDINGS:
                _export_graph(cfg, options, source, load(cfg), run_dir)
            else:
                _export_weights(cfg, options, source, load, run_dir)
    print(f"folder     {run_dir}", flush=True)


def _export_graph(
    cfg: DictConfig, options: ExportConfig, source: str | Path, detector: Detector, folder: Path
) -> None:
    size = (options.size[0], options.size[1]) if options.size else None
    path = folder / f"model{ENDINGS[options.format]}"
    graph = ScoreGraph(detector, size, options.half)
    tolerance = options.tolerance or (0.05 if options.half else 1e-4)
    with replacing(path) as scratch:
        graph.save(scratch, options.format)
        checked = _compared(cfg, options, scratch, detector, size)
        text = (
            f"scores differ by {checked['difference']:.2g} at most on {checked['images']} images, "
            f"{100 * checked['equal_classes']:.4f} % of the classes are equal"
        )
        print(text + ".", flush=True)
        # float16 moves classes at the outlines too.
        if checked["difference"] > tolerance or (
            checked["equal_classes"] < EQUAL_CLASSES and not options.half
        ):
            raise UserError(
                f"the graph is not the detector, and is not kept: {text}; allowed are "
                f"task.tolerance={tolerance:g} and {100 * EQUAL_CLASSES:g} %."
            )
    facts = _facts(cfg, source, options) | {"file": path.name, "size": size, "checked": checked}
    write_page(facts, _metrics(source), folder)
    write_text(folder / "facts.json", json.dumps(facts, indent=2) + "\n")
    if options.format == "onnx":
        write_script(facts, folder)


def _compared(
    cfg: DictConfig, options: ExportConfig, path: Path, detector: Detector,
    size: tuple[int, int] | None,
) -> dict[str, Any]:  # fmt: skip
    """Run the written graph and the detector on images, and return how far they differ."""
    run_graph = loaded(path)
    detector.windows &= size is not None
    difference, equal, pixels, sizes = 0.0, 0, 0, set()
    with progress(options.images, "compare") as bar:
        for image in islice(_pictures(cfg, size), options.images):
            scores, known = detector.scores(image, only=(detector.score,))
            score, classes = run_graph(image)
            gap = np.abs(score - scores[detector.score]).max()
            difference = max(difference, float("inf") if np.isnan(gap) else float(gap))
            equal, pixels = equal + int((classes == known).sum()), pixels + known.size
            sizes.add(image.shape[:2])
            bar.advance()
    return {
        "images": bar.done,
        "sizes": sorted(sizes),
        "difference": difference,
        "equal_classes": equal / max(pixels, 1),
    }


def _pictures(cfg: DictConfig, size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    """Yield the images to compare on, of the size there is, or of three sizes in turn."""
    images: Iterator[np.ndarray]
    if cfg.input is not None:
        images = (one.decoded() for one in find_pictures([str(cfg.input)]))
    elif cfg.data.val is None:
        raise UserError("data.val is null: name pictures to compare on, input=<folder>.")
    else:
        validation: ImageSet = build(cfg.data.val, "data.val")
        images = (validation[index].image for index in range(len(validation)))
    for image, scale in zip(images, cycle(SCALES), strict=False):
        height, width = size or (round(side * scale) for side in image.shape[:2])
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        yield np.asarray(picture)


def _export_weights(
    cfg: DictConfig, options: ExportConfig, source: str | Path, load: Load, folder: Path
) -> None:
    trained_size = list(cfg.data.image_size)
    if options.format == "hugging_face":
        side = options.size[0] if options.size else min(trained_size)
        with open_dict(cfg):
            cfg.data.image_size = cfg.model.encoder.image_size = [side, side]
            cfg.protocol.image_size = None  # whatever it was measured at
        model = runs.build_model(cfg, pretrained=False)
        runs.fill(model, source)
        names = _class_names(cfg, source)
        outputs = names + ["outlier"] * bool(cfg.model.get("outlier_class"))
        write_hugging_face(model.eval(), side, outputs, folder)
        _write_run(cfg, source, folder)
    else:
        write_official(load(cfg).model, folder)
    facts = _facts(cfg, source, options) | {"trained_size": trained_size}
    write_page(facts, _metrics(source), folder)


def _write_run(cfg: DictConfig, source: str | Path, folder: Path) -> None:
    """Write what load_detector needs of a run beside its weights: settings and numbers."""
    plain = runs.plain(cfg)
    kept = {key: plain[key] for key in _KEPT}
    kept["data"] = {key: plain["data"][key] for key in _KEPT_OF_DATA}
    kept["evaluator"] = {key: plain["evaluator"][key] for key in ("batch_size", "operating_fpr")}
    kept["model"].get("encoder", {}).update(weights=None, needs_weights=None)
    write_text(folder / runs.CONFIG, OmegaConf.to_yaml(OmegaConf.create(kept)))
    thresholds = runs.validated(source).thresholds
    saved = {
        "metrics": _metrics(source),
        "manifest": {"models": {str(cfg.name): {"thresholds": thresholds}}},
    }
    write_text(folder / runs.METRICS, json.dumps(saved, indent=1) + "\n")


def _facts(cfg: DictConfig, source: str | Path, options: ExportConfig) -> dict[str, Any]:
    trained = runs.load_config(Path(source)) if runs.is_run(source) else cfg
    return {
        "title": f"{trained.name}, seed {trained.seed}, {trained.data.name}",
        "experiment": str(trained.name),
        "seed": int(trained.seed),
        "data": str(trained.data.name),
        "score": str(cfg.score),
        "threshold": runs.validated(source).thresholds.get(cfg.score),
        "operating_fpr": float(trained.evaluator.operating_fpr),
        "class_names": _class_names(cfg, source),
        "outlier_class": bool(cfg.model.get("outlier_class")),
        "image_size": list(runs.window_size(cfg)),
        "protocol": str(cfg.protocol.get("name", "default")),
        "format": options.format,
        "is_graph": options.format in ENDINGS,
        "half": options.half,
    }


def _class_names(cfg: DictConfig, source: str | Path) -> list[str]:
    return runs.validated(source).class_names or [
        f"class_{number}" for number in range(cfg.data.num_classes)
    ]


def _metrics(source: str | Path) -> dict[str, Any]:
    return dict((runs.read_metrics(Path(source)) or {}).get("metrics", {}))
