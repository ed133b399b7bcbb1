"""How fast the synthetic scenes are drawn: `python benchmarks/bench_synthetic_roads.py`."""

from __future__ import annotations

import time

import cv2

from eomt_exp.data.synthetic_objects import SyntheticOutliers
from eomt_exp.data.synthetic_roads import SyntheticBenchmark, SyntheticRoads

WARM_UP, MEASURED = 20, 100  # the first scenes also pay for the textures of the process


def rate(drawn: SyntheticRoads | SyntheticBenchmark | SyntheticOutliers) -> float:
    """Pictures a second of processor time, which other work on the machine does not change much."""
    for index in range(WARM_UP):
        drawn[index]
    start = time.process_time()
    for index in range(WARM_UP, WARM_UP + MEASURED):
        drawn[index]
    return MEASURED / (time.process_time() - start)


def main() -> None:
    """Print a table line a renderer, on one core at 128 x 256."""
    cv2.setNumThreads(1)
    length = WARM_UP + MEASURED
    print("| what | size | per second on one core |\n|---|---|---|")
    print(f"| synthetic scenes | 128 x 256 | {rate(SyntheticRoads('train', length)):.0f} |")
    for kind in ("anomaly", "obstacle"):
        print(f"| synth_{kind} | 128 x 256 | {rate(SyntheticBenchmark(kind, length)):.0f} |")
    print(f"| outliers | 96 | {rate(SyntheticOutliers(length)):.0f} |")


if __name__ == "__main__":
    main()
