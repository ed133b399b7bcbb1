"""Streaming pixel metrics against scikit-learn on the same maps: seconds, memory, agreement.

Each side runs in a process of its own, so that peaks of memory do not mix. Ours does what an
evaluation does: it counts each map a second time by itself, for intervals and numbers per image.
scikit-learn, which pays for no such thing, is used as one would write it: gather the pixels of all
images, then call the three functions. Making the maps is in neither time. 100 images want about
11 GB for scikit-learn; ask for fewer by --images.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

SHAPE = (1024, 2048)
METRICS = ("ap", "auroc", "fpr95")


class Run(NamedTuple):
    """One side of the comparison."""

    metrics: dict[str, float]
    seconds: float
    peak_extra: float  # GB above what Python, the imports and one map take


def score_map(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) float32 scores in [0, 1] and uint8 labels: 4 % anomaly, 10 % void, overlapping."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(SHAPE, np.float32) * 2.5 - 4
    labels = np.zeros(SHAPE, np.uint8)
    top, left = rng.integers(100, 600), rng.integers(0, 1700)
    labels[top : top + 300, left : left + 300] = 1
    logits[labels == 1] += 5
    labels[-100:] = 255
    return 1 / (1 + np.exp(-logits)), labels


def stopwatch(images: int, each: Callable[[np.ndarray, np.ndarray], None]) -> float:
    """Seconds that `each` takes over all maps, without making them."""
    seconds = 0.0
    for scores, labels in map(score_map, range(images)):
        start = time.perf_counter()
        each(scores, labels)
        seconds += time.perf_counter() - start
    return seconds


def stream(images: int) -> Run:
    """One map at a time to PixelCounts, for the numbers, and to ImageCounts, for their spread."""
    from eomt_exp.evaluator.image_counts import ImageCounts
    from eomt_exp.evaluator.pixel import PixelCounts

    score_map(0)
    before, counts, per_image = peak_bytes(), PixelCounts(), ImageCounts()

    def count(scores: np.ndarray, labels: np.ndarray) -> None:
        counts.update(scores, labels)
        per_image.update(str(len(per_image.names)), scores, labels)

    seconds = stopwatch(images, count)
    start = time.perf_counter()
    results = counts.results()
    seconds += time.perf_counter() - start
    return Run({key: results[key] for key in METRICS}, seconds, (peak_bytes() - before) / 1e9)


def gather(images: int) -> Run:
    """scikit-learn on the pixels of all maps at once."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    score_map(0)
    before = peak_bytes()
    kept: list[tuple[np.ndarray, np.ndarray]] = []

    def keep(scores: np.ndarray, labels: np.ndarray) -> None:
        seen = labels != 255
        kept.append((scores[seen], labels[seen]))

    seconds = stopwatch(images, keep)
    start = time.perf_counter()
    scores, labels = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    kept.clear()
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    metrics = {"fpr95": float(fpr[np.argmax(tpr >= 0.95)])}
    del fpr, tpr
    metrics["ap"] = float(average_precision_score(labels, scores))
    metrics["auroc"] = float(roc_auc_score(labels, scores))
    seconds += time.perf_counter() - start
    return Run(metrics, seconds, (peak_bytes() - before) / 1e9)


def peak_bytes() -> int:
    """The most memory this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would inherit the peak of the parent process
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def alone(side: Callable[[int], Run], images: int) -> Run:
    """The run in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(side, images).result()


def table(images: int, ours: Run, theirs: Run) -> Iterator[str]:
    """Lines to print."""
    yield f"{images} maps of {SHAPE[0]}x{SHAPE[1]}     streaming  scikit-learn   ratio"
    time_ratio, memory_ratio = theirs.seconds / ours.seconds, theirs.peak_extra / ours.peak_extra
    yield f"{'seconds':22}{ours.seconds:14.2f}{theirs.seconds:14.2f}{time_ratio:8.1f}"
    per_map = ours.seconds / images, theirs.seconds / images
    yield f"{'seconds per map':22}{per_map[0]:14.4f}{per_map[1]:14.4f}"
    peaks = ours.peak_extra, theirs.peak_extra
    yield f"{'peak extra memory, GB':22}{peaks[0]:14.3f}{peaks[1]:14.3f}{memory_ratio:8.1f}"
    for key in METRICS:
        mine, oracle = ours.metrics[key], theirs.metrics[key]
        yield f"{key:22}{mine:14.8f}{oracle:14.8f}   difference {mine - oracle:+.1e}"


def main() -> None:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="score maps (default 100)")
    images = parser.parse_args().images
    if images < 1:
        parser.error(f"--images must be at least 1, got {images}")
    print("\n".join(table(images, alone(stream, images), alone(gather, images))))


if __name__ == "__main__":
    main()
