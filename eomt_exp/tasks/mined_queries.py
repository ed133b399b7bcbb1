"""Analyses the queries of a trained model, and gives scorers what was found out for their model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from eomt_exp import runs
from eomt_exp.build import build, build_all
from eomt_exp.contracts import FittedScorer, ImageSet, UserError
from eomt_exp.data.loader import image_loader
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.device import agreed, is_first_process
from eomt_exp.engine.progress import progress
from eomt_exp.engine.query_statistics import QueryCounts, QueryStatistics
from eomt_exp.engine.seen_images import Contents, SeenImages
from eomt_exp.files import write_text
from eomt_exp.report.query_report import QueryReport, print_queries, write_queries
from eomt_exp.schema import QueryAnalysisConfig, typed
from eomt_exp.scorers.maskomaly import AUTO, MINED
from eomt_exp.tasks.image_sets import VALIDATION, read_sets
from eomt_exp.weights.weight_files import sha256

Load = Callable[[DictConfig], Detector]  # of a configuration whose scorers do not matter


def analyse(
    cfg: DictConfig, thresholds: QueryAnalysisConfig, source: str | Path, load: Load, folder: Path
) -> None:
    """Look at the model of `source` on data.val and cfg.mining, and write what was seen.

    The mined queries are written last: with them an analysis is complete. Raises UserError for a
    model without queries, and for sets that are missing.
    """
    sets, contents = _read(cfg)
    bare = cfg.copy()
    with open_dict(bare):  # its own scorers may wait for this analysis
        bare.score, bare.scorer = "msp", {"msp": {"_target_": "eomt_exp.scorers.msp.MSP"}}
    found = _look(load(bare), sets, thresholds, cfg.trainer.num_workers)
    classes = list(sets[VALIDATION].class_names)
    specialised = found.specialised(len(classes), thresholds.min_share)
    report = QueryReport(
        f"Queries of {source}", found, _outputs(classes, found), specialised,
        found.outlier_queries(thresholds.min_iou), vars(thresholds),
        {name: len(images) for name, images in sets.items()},
    )  # fmt: skip
    if is_first_process():
        write_queries(report, folder)
        _record(contents).save(folder)
        facts = {
            "weights": str(source),
            "weights_sha256": sha256(runs.weights_of(source)),
            "num_queries": len(found.times),
            "outlier_queries": report.outliers,
            "ground_queries": [q for q, k in specialised.items() if k in cfg.data.road_classes],
            "thresholds": vars(thresholds),
            "images": {name: one.sha256 for name, one in contents.items()},
        }
        write_text(folder / MINED, json.dumps(facts, indent=2) + "\n")
        print_queries(report, folder)


def thresholds_of(cfg: DictConfig) -> QueryAnalysisConfig:
    """Return the thresholds of task=analyse_queries; UserError for wrong ones."""
    return typed(cfg.task, QueryAnalysisConfig, "task")


def mine_where_asked(cfg: DictConfig, source: str | Path, load: Load) -> None:
    """Put the folder of its analysis into a scorer with `mined: auto`; analyse where there is none.

    Thresholds are those of conf/task/analyse_queries.yaml, unless cfg.task has its own. Folders are
    named by all that decides the analysis: weights, images, thresholds and what of the
    protocol the model sees.
    """
    nodes = runs.plain(cfg)["scorer"]
    waiting = [
        n for n, node in nodes.items() if isinstance(node, dict) and node.get("mined") == AUTO
    ]
    if not waiting:
        return
    standard = compose("config", overrides=["task=analyse_queries"])
    analysis = cfg.copy()
    with open_dict(analysis):
        analysis.task = OmegaConf.merge(standard.task, cfg.task)
        if not cfg.mining:  # with its interpolations, which find their new home
            analysis.mining = standard.mining
    plain, thresholds = runs.plain(analysis), thresholds_of(analysis)
    decides = {
        "weights": sha256(runs.weights_of(source)),
        "data": {key: plain["data"][key] for key in ("val", "image_size", "road_classes")},
        "mining": plain["mining"],
        "protocol": {key: plain["protocol"][key] for key in ("windows", "image_size", "precision")},
        "thresholds": vars(thresholds),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(cfg.paths.outputs) / "analyse_queries" / f"by-content-{digest}"
    if not agreed((folder / MINED).is_file()):
        analyse(analysis, thresholds, source, load, folder)
        agreed(None)  # the other processes wait for what the first one writes
    with open_dict(cfg):
        for name in waiting:
            cfg.scorer[name].mined = str(folder)


def fitted_scorers(cfg: DictConfig, source: str | Path) -> dict[str, FittedScorer]:
    """Build the scorers that were fitted to a model, and print to what; UserError for another."""
    built = build_all(cfg.scorer, "scorer")
    found = {name: one for name, one in built.items() if isinstance(one, FittedScorer)}
    for name, scorer in found.items():
        if scorer.fitted["weights_sha256"] != sha256(runs.weights_of(source)):
            raise UserError(
                f"scorer={name} goes by {scorer.folder}, which is about {scorer.fitted['weights']} "
                f"and not about {source}: type scorer.{name}.mined=auto, or the folder of "
                f"task=analyse_queries checkpoint={source}."
            )
        if is_first_process():
            print(f"{name}: {scorer}", flush=True)
    return found


def _read(cfg: DictConfig) -> tuple[dict[str, ImageSet], dict[str, Contents]]:
    """Read data.val and the sets to mine, by name."""
    if cfg.data.val is None or not cfg.mining:
        what = "data.val is null" if cfg.data.val is None else "benchmark@mining=none"
        raise UserError(
            f"Queries are looked at on data.val and mined on benchmark@mining=, and {what}: type "
            "benchmark@mining=pasted_validation, say, with a data=… that has validation images."
        )
    nodes = runs.plain(cfg)
    built = {VALIDATION: (build(cfg.data.val, VALIDATION), nodes["data"]["val"])}
    for name, images in build_all(cfg.mining, "mining").items():
        built[f"mining.{name}"] = (images, nodes["mining"][name])
    sets, contents = {}, {}
    for name, (images, node) in built.items():
        sets[name], contents[name] = read_sets.measured(images, name, node, cfg.trainer.num_workers)
    return sets, contents


def _look(
    detector: Detector, sets: dict[str, ImageSet], thresholds: QueryAnalysisConfig, workers: int
) -> QueryStatistics:
    """Run the model over all images: predictions are counted on data.val, masks on the others."""
    counts = QueryCounts(thresholds.min_confidence, thresholds.mask_threshold)
    with progress(sum(map(len, sets.values())), "queries", enabled=is_first_process()) as bar:
        for name, images in sets.items():
            for item in image_loader(images, workers):
                windows = detector.outputs(item.image, item.anomaly)
                if name == VALIDATION:
                    for output, _ in windows:
                        counts.add_predictions(output.class_logits)
                else:
                    counts.add_image((output.mask_logits[0], truth) for output, truth in windows)
                bar.advance()
    return counts.statistics()


def _outputs(classes: list[str], found: QueryStatistics) -> list[str]:
    """Name the C class outputs: known classes, perhaps the outlier class, no-object."""
    others = ["outlier", "no_object"]
    return classes + others[len(classes) - found.times.shape[1] :]


def _record(contents: dict[str, Contents]) -> SeenImages:
    """Record images that queries were chosen by: as a validation, or as mined."""
    seen = SeenImages()
    for name, one in contents.items():
        seen.add("validation" if name == VALIDATION else "mining", one.images)
    return seen
