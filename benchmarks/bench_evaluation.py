"""Where the time of an evaluation goes: photographs, a small model, five scorers, all metrics.

Shares are of the CPU time of all threads. Below: a photograph's five maps counted for the set and
for the image, against scikit-learn's AP and ROC curve of the same maps, which is half of that.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks import timing
from benchmarks.bench_detector import detectors
from eomt_exp.contracts import LabelledImage
from eomt_exp.data.files.decode import decode_image
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.evaluation import Settings, measure_benchmark
from eomt_exp.engine.score_store import ScoreStore
from eomt_exp.evaluator.components import ComponentCounts
from eomt_exp.evaluator.image_counts import ImageCounts
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.evaluator.pixel_arrays import KeyedPixels
from eomt_exp.scorers.energy import Energy
from eomt_exp.scorers.entropy import Entropy

SHAPE, SIZE = (720, 1280), (128, 256)  # of a photograph, and of the model's input


class Photographs:
    """Draws smooth pictures as JPEG bytes; a twentieth of the pixels is anomalous."""

    def __init__(self, count: int, shape: tuple[int, int] = SHAPE) -> None:
        rng = np.random.default_rng(0)
        self.files, self.anomaly = [], np.zeros(shape, np.uint8)
        self.anomaly[shape[0] // 2 : shape[0] // 2 + shape[0] // 5, : shape[1] // 4] = 1
        for _ in range(count):
            coarse = rng.integers(256, size=(9, 16, 3), dtype=np.uint8)
            picture = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
            noisy = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(file := io.BytesIO(), "JPEG", quality=95)
            self.files.append(file.getvalue())

    def read(self, positions: Sequence[int]) -> Iterator[LabelledImage]:
        """Decode one after another, in this process."""
        return map(self.decode, positions)

    def decode(self, index: int) -> LabelledImage:
        """Decode one picture."""
        image = decode_image(self.files[index], f"photograph {index}")
        return LabelledImage(image, self.anomaly, self.anomaly, f"{index}")


def small_detector() -> Detector:
    """A tiny EoMT of random weights with the five scorers of a semantic model."""
    detector = detectors(192, 4, SIZE)["input"]
    detector.scorers = {**detector.scorers, "energy": Energy(), "entropy": Entropy()}
    return detector


def shares(detector: Detector, photographs: Photographs) -> tuple[float, Counter[str]]:
    """CPU seconds of one evaluation, and of its parts, each without the parts inside it."""
    spent: Counter[str] = Counter()
    lock, running = threading.Lock(), threading.local()

    def timed(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed_work(*arguments: Any, **options: Any) -> Any:
            start, outside = time.thread_time(), getattr(running, "inside", 0.0)
            running.inside = 0.0
            try:
                return work(*arguments, **options)
            finally:
                took = time.thread_time() - start
                with lock:
                    spent[part] += took - running.inside
                running.inside = outside + took

        return timed_work

    parts: tuple[tuple[str, type, str], ...] = (
        ("decode", Photographs, "decode"),
        ("model", type(detector.model), "forward"),
        ("scorers, sizes", Detector, "_to_tensor"),
        ("scorers, sizes", Detector, "_add_windows"),
        ("scorers, sizes", Detector, "_detection"),
        ("keys", KeyedPixels, "__init__"),
        ("bins", PixelCounts, "add"),
        ("numbers per image", ImageCounts, "add"),
        ("store", ScoreStore, "put"),
        ("store", ScoreStore, "get"),
        ("components", ComponentCounts, "update"),
        ("metrics", PixelCounts, "f1_threshold"),
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for part, owner, name in parts:
            stack.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        settings = Settings(Path(folder), components=(500, 100), num_examples=4)
        start = time.process_time()
        measure_benchmark(detector, photographs.read, len(photographs.files), settings)
        total = time.process_time() - start
    return total, spent


def sides(detector: Detector, photograph: LabelledImage) -> tuple[timing.Work, timing.Work]:
    """Ours and scikit-learn's numbers of one photograph under each scorer."""
    from sklearn.metrics import average_precision_score, roc_curve

    maps, _ = detector.scores(photograph.image)
    counts = {name: PixelCounts() for name in maps}

    def ours() -> dict[str, float]:
        images = {name: ImageCounts() for name in maps}
        for name, scores in maps.items():
            pixels = KeyedPixels(scores, photograph.anomaly)
            counts[name].add(pixels)
            images[name].add("0", pixels)
        return {name: image.ap("0") for name, image in images.items()}

    def theirs() -> dict[str, float]:
        labels, found = photograph.anomaly.ravel(), {}
        for name, scores in maps.items():
            found[name] = float(average_precision_score(labels, scores.ravel()))
            roc_curve(labels, scores.ravel(), drop_intermediate=False)
        return found

    return ours, theirs


def main() -> None:
    """Print where the time goes, and the comparison."""
    chosen = options()
    torch.set_num_threads(chosen.threads)
    detector, photographs = small_detector(), Photographs(chosen.images)
    total, spent = shares(detector, photographs)
    each = 1000 * total / chosen.images
    print(f"CPU time of a {SHAPE[1]}x{SHAPE[0]} photograph, five scorers: {each:.0f} ms")
    for part, seconds in [*spent.most_common(), ("the rest", total - spent.total())]:
        print(f"{part:22}{1000 * seconds / chosen.images:8.1f} ms{seconds / total:8.1%}")
    ours, theirs = sides(detector, next(photographs.read([0])))
    row = timing.compare("five maps", ours, theirs, repeats=chosen.repeats)
    title = f"Counting one photograph. {timing.machine('cpu')}"
    timing.console().print(timing.table(title, [row], theirs="scikit-learn"))


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = timing.parser(__doc__, repeats=5, threads=1)
    parser.add_argument("--images", type=timing.positive, default=36, help="(default 36)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
