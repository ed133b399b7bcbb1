"""A made-up leaderboard with everything in it: two models, two scorers, two benchmarks.

Scores are drawn at random, but its results are the evaluator's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from eomt_exp.data.synthetic_roads import SyntheticBenchmark
from eomt_exp.engine.detector import Detection
from eomt_exp.engine.evaluation import Measured, Settings, measure_benchmark
from eomt_exp.report.leaderboard import Comparison, Leaderboard, OverSeeds, PublishedResult
from eomt_exp.report.results import results_of
from eomt_exp.schema import Fpr95

MODELS = ("eim_oe-0", "baseline-0")
SCORERS = ("rba", "max_logit")
BENCHMARKS = ("synth_anomaly", "smiyc_obstacle21")
WARNING = "3 of 12 images of synth_anomaly were seen in training"
NOTE = "baseline-0: what it was trained on is not on record."
MANIFEST = {
    "protocol": {"name": "default", "fpr95": "first", "windows": True, "void": 255},
    "weights": {
        "eim_oe-0": {"source": "outputs/eim_oe/2024-05-01", "sha256": "0f" * 32},
        "baseline-0": {"source": "outputs/baseline/2024-05-01", "sha256": "a1" * 32},
    },
    "skipped": {"synth_anomaly": []},
    "commit": None,
}
NUM_IMAGES, HEIGHT = 4, 64


def leaderboard() -> Leaderboard:
    """A copy that a test may change; PPV of the last method is undefined."""
    return copy.deepcopy(_leaderboard())


@cache
def _leaderboard() -> Leaderboard:
    board = Leaderboard("EIM beside its baseline", [], {}, {})
    for number, benchmark in enumerate(BENCHMARKS):
        kind = "obstacle" if "obstacle" in benchmark else "anomaly"
        images = SyntheticBenchmark(kind, NUM_IMAGES, HEIGHT, 2 * HEIGHT, seed=number)
        scenes = [images[index] for index in range(NUM_IMAGES)]
        for place, model in enumerate(MODELS):
            found = _measured(scenes, 2.6 - 0.9 * place - 0.3 * number)
            board.results += results_of(found, model, benchmark, fpr95=Fpr95.first, thresholds={},
                                        resamples=20)  # fmt: skip
            board.examples[model, benchmark] = found.examples
        board.published.append(
            PublishedResult(
                benchmark, "RbA, Swin-B", {"ap": 0.7845, "fpr95": 0.1183}, "README of RbA", ""
            )
        )
        methods = [f"{model} {SCORERS[0]}" for model in MODELS]
        board.comparisons.append(Comparison(benchmark, "ap", *methods, 0.113, 0.041, 0.187, 0.0004))
        board.over_seeds.append(
            OverSeeds("eim_oe", SCORERS[0], benchmark, "ap", 0.612, 0.013, (0, 1, 2))
        )
    board.results[-1].metrics["ppv"] = math.nan
    classes = ("road", "sidewalk", "building", "car", "person", "traffic_sign")
    for place, model in enumerate(MODELS):
        ious = {f"iou_{name}": 0.95 - 0.08 * i - 0.02 * place for i, name in enumerate(classes)}
        mean = sum(ious.values()) / len(ious)
        board.known_classes[model] = {
            **{"miou": mean, "macc": mean + 0.05, "aacc": 0.93, **ious},
            **{"category_miou": 0.928 - 0.005 * place, "category_iou_flat": 0.985 - 0.01 * place},
            **{"category_iou_vehicle": 0.871, "category_iou_human": math.nan},
        }
    board.manifest, board.warnings, board.notes = MANIFEST, [WARNING], [NOTE]
    return board


def _scores(anomaly: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """(H, W) float32: blotchy noise, higher on most of the anomaly."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.normal(0, 0.9, [-(-side // 8) for side in anomaly.shape]), np.ones((8, 8)))
    noise = coarse[: anomaly.shape[0], : anomaly.shape[1]] + rng.normal(0, 0.4, anomaly.shape)
    return (noise + strength * rng.uniform(0.3, 1.2) * (anomaly == 1)).astype(np.float32)


def _measured(scenes: list, strength: float) -> Measured:
    """Every scorer on the scenes, the second a little worse than the first."""

    def stream(images: Iterable[np.ndarray], **_: object) -> Iterator[Detection]:
        for index, (scene, _image) in enumerate(zip(scenes, images, strict=True)):
            maps = [_scores(scene.anomaly, strength - 0.35 * i, 7 * index) for i in range(2)]
            yield Detection(dict(zip(SCORERS, maps, strict=True)), None)

    detector: Any = SimpleNamespace(scorers=SCORERS, score=SCORERS[0], stream=stream, batch_size=1)
    with TemporaryDirectory() as scratch:
        settings = Settings(Path(scratch), bits=18, components=(4, 2), num_examples=1)
        read = partial(map, scenes.__getitem__)
        return measure_benchmark(detector, read, NUM_IMAGES, settings)
