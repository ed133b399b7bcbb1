"""A trained model as a detector: any image in, a score per pixel out, in the image's own size.

Follows EoMT's semantic inference: scale the image until it just covers the training size, slide
windows over what is longer, average, scale back. Evidence for the classes is averaged before a
score is formed from it; scores of single queries are averaged themselves.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.contracts import MaskOutput, PixelOutput, Scorer


class Detector:
    """Scores of one model; `detector(image)` gives the scorer called `score`.

    With `windows=False` the whole image is resized to the training size instead, at the price of
    its aspect ratio.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        scorers: dict[str, Scorer],
        score: str,
        image_size: tuple[int, int],
        windows: bool = True,
        batch_size: int = 8,
        precision: str = "no",
    ) -> None:
        if score not in scorers:
            raise ValueError(f"score={score} must be one of the scorers: {', '.join(scorers)}.")
        self.model = model
        self.scorers = scorers
        self.score = score
        self.image_size = (image_size[0], image_size[1])
        self.windows = windows
        self.batch_size = batch_size
        self.precision = precision

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) float32; higher is more anomalous."""
        return self.scores(image, only=(self.score,))[0][self.score]

    @torch.inference_mode()
    def scores(
        self, image: np.ndarray, only: tuple[str, ...] | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Every score map (H, W) float32, and the known class of each pixel (H, W) int64."""
        scorers = {n: s for n, s in self.scorers.items() if only is None or n in only}
        self.model.eval()
        evidence, query_maps = self._stitched(self._to_tensor(image), scorers)
        maps = {
            name: query_maps[name] if scorer.level == "query" else scorer(PixelOutput(evidence))
            for name, scorer in scorers.items()
        }
        size = image.shape[:2]
        known = _resize(evidence, size).argmax(dim=1)[0]
        scaled = {name: _resize(m[:, None], size)[0, 0] for name, m in maps.items()}
        return {name: m.float().cpu().numpy() for name, m in scaled.items()}, known.cpu().numpy()

    def _to_tensor(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, H', W') in [0, 1], scaled to cover the training size."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"an image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}."
            )
        device = next(self.model.parameters()).device
        tensor = torch.from_numpy(np.array(image)).to(device)  # a copy: it may be read-only
        tensor = tensor.permute(2, 0, 1)[None].float() / 255
        size = self.image_size
        if self.windows:
            factor = max(s / n for s, n in zip(size, image.shape[:2], strict=True))
            size = tuple(
                max(s, round(n * factor)) for s, n in zip(size, image.shape[:2], strict=True)
            )
        return F.interpolate(tensor, size=size, mode="bilinear", antialias=True).clamp(0, 1)

    def _stitched(
        self, image: Tensor, scorers: dict[str, Scorer]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Averages over windows: evidence (1, K, H', W') and query-level scores (1, H', W')."""
        boxes = window_boxes((image.shape[-2], image.shape[-1]), self.image_size)
        height, width = self.image_size
        counts = image.new_zeros(image.shape[-2:])
        evidence: Tensor | None = None
        maps = {
            n: image.new_zeros(1, *image.shape[-2:])
            for n, s in scorers.items()
            if s.level == "query"
        }
        for start in range(0, len(boxes), self.batch_size):
            chunk = boxes[start : start + self.batch_size]
            crops = torch.cat([image[..., y : y + height, x : x + width] for y, x in chunk])
            output = self._forward(crops).resized((height, width))
            semantic = output.semantic_scores()
            if evidence is None:
                evidence = image.new_zeros(1, semantic.shape[1], *image.shape[-2:])
            window_maps = {name: scorers[name](output) for name in maps}
            for i, (y, x) in enumerate(chunk):
                rows, columns = slice(y, y + height), slice(x, x + width)
                evidence[0, :, rows, columns] += semantic[i]
                counts[rows, columns] += 1
                for name, window_map in window_maps.items():
                    maps[name][0, rows, columns] += window_map[i]
        assert evidence is not None
        return evidence / counts, {name: m / counts for name, m in maps.items()}

    def _forward(self, crops: Tensor) -> MaskOutput | PixelOutput:
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
        with torch.autocast(crops.device.type, kind, enabled=self.precision != "no"):
            output = self.model(crops)
        # Scores in float32: half precision ties the very pixels a metric must tell apart.
        return type(output)(*[v.float() if isinstance(v, Tensor) else v for v in output])


def window_boxes(size: tuple[int, int], window: tuple[int, int]) -> list[tuple[int, int]]:
    """Top left corners (y, x) of the fewest evenly overlapping windows that cover `size`."""
    starts = []
    for length, side in zip(size, window, strict=True):
        count = math.ceil(length / side)
        step = (length - side) / max(1, count - 1)
        starts.append([int(i * step) for i in range(count)])
    return [(y, x) for y in starts[0] for x in starts[1]]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
