"""An ONNX graph under onnxruntime against the detector it was made from, image to score map.

Both have the same random weights, windows and threads.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import timing
from benchmarks.bench_detector import CLASSES, IMAGE, QUERIES, SIZE, detectors
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.score_graph import ScoreGraph, loaded
from eomt_exp.models.erfnet import ERFNet
from eomt_exp.scorers.max_logit import MaxLogit


def sides() -> dict[str, Detector]:
    """The detectors to export."""
    erfnet = Detector(
        model=ERFNet(num_classes=CLASSES).eval(), scorers={"max_logit": MaxLogit()},
        score="max_logit", image_size=SIZE,
    )  # fmt: skip
    return {
        "EoMT, width 192": detectors(embed_dim=192)["input"],
        "EoMT-S": detectors()["input"],
        "ERFNet": erfnet,
    }


def main() -> None:
    """Print the table."""
    options = timing.parser(__doc__, repeats=6).parse_args()
    torch.set_num_threads(options.threads)
    image = np.random.default_rng(0).integers(0, 256, (*IMAGE, 3), dtype=np.uint8)
    rows = []
    for name, detector in sides().items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            ScoreGraph(detector, IMAGE, half=False).save(path, "onnx")
            run_graph = loaded(path, options.threads)
        rows.append(
            timing.compare(
                name,
                lambda run_graph=run_graph: run_graph(image),
                lambda detector=detector: detector.scores(image, only=(detector.score,)),
                repeats=options.repeats,
                wanted=1.0,
            )
        )
    title = f"{QUERIES} queries, image {IMAGE[0]}x{IMAGE[1]}: {timing.machine('cpu')}"
    timing.console().print(timing.table(title, rows, theirs="PyTorch"))


if __name__ == "__main__":
    main()
