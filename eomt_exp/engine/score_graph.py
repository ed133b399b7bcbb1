"""Exports a detector as one graph, an image in and a score map out, that needs none of our code."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eomt_exp.contracts import UserError
from eomt_exp.engine.detector import Detector

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # image -> score, classes

INPUT, OUTPUTS = "image", ("score", "classes")
ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2"}
_OPSET = 18  # the first whose Resize is antialiased
_LARGEST_SIDE = 16384  # pixels, of an image of any size
_MOST_BYTES = 2_000_000_000  # of one file of protocol buffers


class ScoreGraph(nn.Module):
    """Maps an image (H, W, 3) uint8 RGB to its score (H, W) float32 and known classes (H, W) int64.

    With a `size` (H, W) it takes images of that size, by windows where the detector has them.
    Without, images of any size, each resized to the one that the model was trained for.
    """

    def __init__(self, detector: Detector, size: tuple[int, int] | None, half: bool) -> None:
        super().__init__()
        self.size = size
        self.model = copy.deepcopy(detector.model).cpu()
        if half:
            self.model.half()
        self.detector = Detector(
            model=self.model,
            scorers={detector.score: detector.scorers[detector.score]},
            score=detector.score,
            image_size=detector.image_size,
            windows=detector.windows and size is not None,
            resolution=detector.resolution,
        )
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the steps of Detector.stream() to one image."""
        return self.detector.graph(image)

    def save(self, path: Path, format: str) -> None:
        """Write the graph. Raises UserError without its library, or where it is too large."""
        height, width = self.size or (2 * side + 7 for side in self.detector.image_size)
        example = torch.zeros(height, width, 3, dtype=torch.uint8)
        sides = [torch.export.Dim(n, min=8, max=_LARGEST_SIDE) for n in ("height", "width")]
        dynamic: Any = None if self.size else ({0: sides[0], 1: sides[1]},)
        if format == "torch_export":
            with torch.no_grad():
                program = torch.export.export(self, (example,), dynamic_shapes=dynamic)
            torch.export.save(program, path)
            return
        _library("onnx"), _library("onnxscript")
        for name in ("onnx_ir", "onnxscript"):
            logging.getLogger(name).setLevel(logging.ERROR)  # they tell each weight they share
        if (total := sum(p.nbytes for p in self.parameters())) > _MOST_BYTES:
            raise UserError(
                f"an ONNX file ends at 2 GB, and these weights are {total / 1e9:.1f} GB: type "
                "task.half=true, or task.format=torch_export."
            )
        with torch.no_grad():
            exported: Any = torch.onnx.export(
                self, (example,), dynamo=True, dynamic_shapes=dynamic, opset_version=_OPSET,
                input_names=[INPUT], output_names=[*OUTPUTS], verbose=False,
            )  # fmt: skip
        exported.save(path, external_data=False)


def loaded(path: Path, threads: int = 0) -> Run:
    """Load a graph that was written, to run it as its user will; onnxruntime chooses 0 threads."""
    if path.suffix == ENDINGS["onnx"]:
        onnxruntime = _library("onnxruntime")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return lambda image: tuple(session.run(None, {INPUT: image}))
    module = torch.export.load(path).module()

    def run(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            score, classes = module(torch.from_numpy(np.array(image)))
        return score.numpy(), classes.numpy()

    return run


def _library(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'task.format=onnx needs {name}; type pip install -e ".[onnx]".') from error
