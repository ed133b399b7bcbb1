"""A made-up leaderboard with everything in it: two models, two scorers, two benchmarks.

Scores are drawn, but numbers are counted from them by the evaluator, so that tables, curves and
histograms of the example agree as those of a real one do.
"""

from __future__ import annotations

import copy
import math

import numpy as np

from eomt_exp.contracts import VOID
from eomt_exp.data.synthetic_roads import SyntheticBenchmark
from eomt_exp.engine.evaluation import Example
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.report.leaderboard import (
    Anchor,
    Comparison,
    Histogram,
    ImageRow,
    Leaderboard,
    OverSeeds,
    Result,
    SizeRow,
    TnrRow,
)

MODELS = ("eim_oe-0", "baseline-0")
SCORERS = ("rba", "max_logit")
BENCHMARKS = ("synth_anomaly", "smiyc_obstacle21")
STAMP = "3 of 12 images of synth_anomaly were seen in training"
NOTE = "baseline-0: what it was trained on is not on record."
MANIFEST = {
    "protocol": {
        "name": "default",
        "fpr95": "first",
        "windows": True,
        "void": 255,
        "precision": "float32",
    },
    "weights": {
        "eim_oe-0": {"source": "outputs/eim_oe/2024-05-01", "sha256": "0f" * 32},
        "baseline-0": {"source": "outputs/baseline/2024-05-01", "sha256": "a1" * 32},
    },
    "images": {"synth_anomaly": 12, "smiyc_obstacle21": 12},
    "skipped": {"synth_anomaly": []},
    "seed": 0,
    "commit": None,
}


def leaderboard(
    models: tuple[str, ...] = MODELS,
    scorers: tuple[str, ...] = SCORERS,
    benchmarks: tuple[str, ...] = BENCHMARKS,
    num_images: int = 12,
    num_examples: int = 1,
    height: int = 96,
) -> Leaderboard:
    """One undefined metric (PPV of the last method), one stamp, one anchor a benchmark."""
    board = Leaderboard("EIM beside its baseline", [], {}, {})
    for number, benchmark in enumerate(benchmarks):
        kind = "obstacle" if "obstacle" in benchmark else "anomaly"
        images = SyntheticBenchmark(kind, num_images, height, 2 * height, seed=number)
        scenes = [images[index] for index in range(num_images)]
        for place, model in enumerate(models):
            for rank, scorer in enumerate(scorers):
                strength = 2.6 - 0.9 * place - 0.35 * rank - 0.3 * number
                maps = [_scores(s.anomaly, strength, 7 * index) for index, s in enumerate(scenes)]
                board.results.append(_result(model, scorer, benchmark, scenes, maps))
                if rank == 0:
                    rows = board.results[-1].images
                    board.examples[model, benchmark] = _examples(scenes, maps, rows, num_examples)
        board.anchors.append(
            Anchor(benchmark, "RbA, Swin-B", {"ap": 0.7845, "fpr95": 0.1183}, "README of RbA", "")
        )
        methods = [f"{model} {scorers[0]}" for model in models]
        if len(methods) > 1:
            board.comparisons.append(
                Comparison(benchmark, "ap", *methods[:2], 0.113, 0.041, 0.187, 0.0004)
            )
        board.over_seeds.append(
            OverSeeds("eim_oe", scorers[0], benchmark, "ap", 0.612, 0.013, (0, 1, 2))
        )
    board.results[-1].metrics["ppv"] = math.nan
    classes = ("road", "sidewalk", "building", "car", "person", "traffic_sign")
    for place, model in enumerate(models):
        ious = {f"iou_{name}": 0.95 - 0.08 * i - 0.02 * place for i, name in enumerate(classes)}
        mean = sum(ious.values()) / len(ious)
        of_categories = {"flat": 0.985 - 0.01 * place, "vehicle": 0.871, "human": math.nan}
        board.known_classes[model] = {
            **{"miou": mean, "macc": mean + 0.05, "aacc": 0.93, **ious},
            "category_miou": 0.928 - 0.005 * place,
            **{f"category_iou_{name}": iou for name, iou in of_categories.items()},
        }
    board.manifest, board.stamps, board.notes = copy.deepcopy(MANIFEST), [STAMP], [NOTE]
    return board


def _scores(anomaly: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """(H, W) float32: blotchy noise, higher on most of the anomaly."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.normal(0, 0.9, [-(-side // 8) for side in anomaly.shape]), np.ones((8, 8)))
    noise = coarse[: anomaly.shape[0], : anomaly.shape[1]] + rng.normal(0, 0.4, anomaly.shape)
    return (noise + strength * rng.uniform(0.3, 1.2) * (anomaly == 1)).astype(np.float32)


def _result(model: str, scorer: str, benchmark: str, scenes: list, maps: list) -> Result:
    counts, rows = PixelCounts(bits=18), []
    for scene, score in zip(scenes, maps, strict=True):
        counts.update(score, scene.anomaly)
        rows.append(_image_row(scene, score))
    found = counts.results()
    metrics = found | {
        "ap_trapezoid": found["ap"] + 0.001,
        "siou": 0.3 + 0.4 * found["ap"],
        "ppv": 0.2 + 0.5 * found["ap"],
        "component_f1": 0.1 + 0.6 * found["ap"],
    }
    intervals = {
        key: (max(found[key] - 0.06, 0.0), min(found[key] + 0.05, 1.0)) for key in ("ap", "fpr95")
    }
    ranges = ((10, 100), (100, 1000), (1000, None))
    sizes = [
        SizeRow(*ends, 9 - 3 * i, 0.2 + 0.25 * i, 0.3 + 0.1 * i) for i, ends in enumerate(ranges)
    ]
    histogram = _histogram(scenes, maps)
    tnr = [TnrRow(*row) for row in counts.tnr_table()]
    return Result(
        model, scorer, benchmark, metrics, intervals, counts.curves(), histogram, rows, sizes, tnr
    )


def _image_row(scene, score: np.ndarray) -> ImageRow:
    one = PixelCounts(bits=17)
    one.update(score, scene.anomaly)
    found = one.results()
    share = found["positives"] / max(found["positives"] + found["negatives"], 1)
    return ImageRow(scene.name, found["ap"], found["fpr95"], found["auroc"], share)


def _histogram(scenes: list, maps: list) -> Histogram:
    truth = np.concatenate([scene.anomaly.ravel() for scene in scenes])
    score = np.concatenate([score.ravel() for score in maps])[truth != VOID]
    truth = truth[truth != VOID]
    edges = np.linspace(score.min(), score.max(), 101)
    shares = [np.histogram(score[truth == kind], edges)[0] for kind in (0, 1)]
    return Histogram(edges, *(part / max(part.sum(), 1) for part in shares))


def _examples(scenes: list, maps: list, rows: list[ImageRow], count: int) -> list[Example]:
    order = [i for i in np.argsort([-row.ap for row in rows]) if not math.isnan(rows[i].ap)]
    chosen = [("best", i) for i in order[:count]] + [("worst", i) for i in order[::-1][:count]]
    return [
        Example(kind, rows[i].name, rows[i].ap, "rba", scenes[i].image, scenes[i].anomaly, maps[i])
        for kind, i in chosen
    ]
