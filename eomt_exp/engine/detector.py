"""Makes a detector of a model: any image in, a score per pixel out, in the image's own size.

It follows EoMT's semantic inference: scale the image until it just covers the training size, slide
windows over what is longer, average, scale back. Evidence for the classes is averaged before a
score is formed from it; scores of single queries are averaged themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from eomt_exp.contracts import MaskOutput, Model, PixelOutput, Scorer, UserError

Resolution = Literal["input", "mask"]


class Detection(NamedTuple):
    """Holds what a detector found in one image, in that image's size."""

    scores: dict[str, np.ndarray]  # by scorer: (H, W) float32, higher is more anomalous
    known: np.ndarray | None  # (H, W) int64, the likeliest known class; None where not asked for


class AnyDetector:
    """Turns images into score maps: what an evaluation asks of one model or of an ensemble."""

    scorers: Mapping[str, object]  # by name, what each score map comes from
    score: str  # the one that it goes by
    image_size: tuple[int, int]  # (H, W) of what the model sees
    batch_size: int
    finds_classes: bool = True  # whether it names the likeliest known class of a pixel too

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) float32; higher is more anomalous."""
        (found,) = self.stream([image], only=(self.score,), known=False)
        return found.scores[self.score]

    def stream(
        self, images: Iterable[np.ndarray], only: Sequence[str] | None = None, known: bool = True
    ) -> Iterator[Detection]:
        """Yield one Detection an image, in order; `only` names the scorers wanted, () for none."""
        raise NotImplementedError


class Detector(AnyDetector):
    """Scores images with one model; `detector(image)` gives the scorer called `score`.

    With `windows=False` the whole image is resized to the training size instead, at the price of
    its aspect ratio. `resolution` says where masks meet classes: "input" upsamples every mask
    before its sigmoid, as EoMT does it; "mask" sums in the grid of the masks, for what is linear in
    them (evidence for the classes, scores of queries), and upsamples the sums: a bilinear step
    after the sigmoid instead of before it, seen at outlines only.
    """

    scorers: dict[str, Scorer]

    def __init__(
        self,
        *,
        model: Model,
        scorers: dict[str, Scorer],
        score: str,
        image_size: tuple[int, int],
        windows: bool = True,
        batch_size: int = 8,
        precision: str = "no",
        resolution: Resolution = "input",
    ) -> None:
        if score not in scorers:
            raise UserError(
                f"score={score} must be one of the scorers: {', '.join(scorers)}; "
                f"type score={next(iter(scorers), '…')}, say."
            )
        self.model = model
        self.scorers = scorers
        self.score = score
        self.image_size = (image_size[0], image_size[1])
        self.windows = windows
        self.batch_size = batch_size
        self.precision = precision
        self.resolution = resolution

    def scores(
        self, image: np.ndarray, only: Sequence[str] | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return every score map (H, W) float32, and each pixel's known class (H, W) int64."""
        (found,) = self.stream([image], only=only)
        assert found.known is not None
        return found.scores, found.known

    def stream(
        self, images: Iterable[np.ndarray], only: Sequence[str] | None = None, known: bool = True
    ) -> Iterator[Detection]:
        """Yield one Detection an image, in order; `only` names the scorers wanted, () for none.

        Windows of successive images share a forward pass until it holds `batch_size` of them.
        """
        scorers = {n: s for n, s in self.scorers.items() if only is None or n in only}
        add_windows = torch.inference_mode()(self._add_windows)
        detection = torch.inference_mode()(self._detection)
        open_canvases: list[_Canvas] = []
        waiting: list[tuple[_Canvas, int, int]] = []
        for image in images:
            canvas = _Canvas(self._scaled(self._to_tensor(image)), image.shape[:2])
            boxes = window_boxes(canvas.size, self.image_size)
            canvas.missing = len(boxes)
            open_canvases.append(canvas)
            waiting += [(canvas, y, x) for y, x in boxes]
            while len(waiting) >= self.batch_size:
                add_windows(waiting[: self.batch_size], scorers)
                del waiting[: self.batch_size]
            while open_canvases and not open_canvases[0].missing:
                yield detection(open_canvases.pop(0), scorers, known)
        if waiting:
            add_windows(waiting, scorers)
        for canvas in open_canvases:
            yield detection(canvas, scorers, known)

    @torch.inference_mode()
    def outputs(self, image: np.ndarray, truth: np.ndarray) -> Iterator[tuple[MaskOutput, Tensor]]:
        """Yield the output of each window of one image (H, W, 3), and the truth (h, w) under it.

        Masks are in the window's size; `truth` (H, W) uint8 is scaled as the image is, by the
        nearest pixel. Raises UserError for a model without queries.
        """
        self.model.eval()
        scaled = self._scaled(self._to_tensor(image))
        size, (height, width) = (scaled.shape[-2], scaled.shape[-1]), self.image_size
        labels = torch.from_numpy(np.array(truth))[None, None].to(scaled)
        labels = F.interpolate(labels, size=size, mode="nearest-exact")
        for y, x in window_boxes(size, self.image_size):
            box = (..., slice(y, y + height), slice(x, x + width))
            (output,) = self._forward(scaled[box])
            if isinstance(output, PixelOutput):
                raise UserError(
                    f"{type(self.model).__name__} has no queries to look at; take a model with "
                    "masks, as model=eomt."
                )
            yield output.resized((height, width)), labels[box][0, 0]

    def graph(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(H, W, 3) uint8 -> score (H, W) float32 and known class (H, W) int64, to be exported.

        Of tensors alone and by the same steps as stream(), so that torch.export can follow them. A
        size that is not fixed there needs windows=False.
        """
        canvas = _PaddedCanvas(self._scaled(image), (image.shape[0], image.shape[1]))
        boxes = [(canvas, y, x) for y, x in window_boxes(canvas.size, self.image_size)]
        scorers = {self.score: self.scorers[self.score]}
        self._add_windows(boxes, scorers)
        maps, classes = self._finished(canvas, scorers, known=True)
        assert maps is not None
        assert classes is not None
        return maps[0], classes

    def _to_tensor(self, image: np.ndarray) -> Tensor:
        """Check an image (H, W, 3) uint8, and bring it to the model's device."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"an image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}."
            )
        if self.windows and self.model.official_quirks:  # Pillow rounds to whole grey levels
            size = self._covering(image.shape[:2])
            picture = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
            image = np.asarray(picture)
        device = next(self.model.parameters()).device
        return torch.from_numpy(np.array(image)).to(device)  # a copy: it may be read-only

    def _scaled(self, image: Tensor) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, H', W') in [0, 1], scaled to cover the training size."""
        size = self._covering(image.shape[:2]) if self.windows else self.image_size
        scaled = image.permute(2, 0, 1)[None].float().div_(255)
        return F.interpolate(scaled, size=size, mode="bilinear", antialias=True).clamp(0, 1)

    def _covering(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the size (H, W) of an image once it just covers the training size."""
        factor = max(s / n for s, n in zip(self.image_size, size, strict=True))
        height, width = (
            max(s, round(n * factor)) for s, n in zip(self.image_size, size, strict=True)
        )
        return height, width

    def _add_windows(
        self, windows: Sequence[tuple[_Canvas, int, int]], scorers: dict[str, Scorer]
    ) -> None:
        """Add the scores of one forward pass to the canvases that the windows come from."""
        self.model.eval()
        height, width = self.image_size
        crops = torch.cat([c.image[..., y : y + height, x : x + width] for c, y, x in windows])
        left = iter(windows)
        for output in self._forward(crops):
            if self.resolution == "input":
                output = output.resized((height, width))
            semantic = _resize(output.semantic_scores(), (height, width))  # (b, K, h, w)
            queries = {n: s(output)[:, None] for n, s in scorers.items() if s.level == "query"}
            queries = {n: _resize(maps, (height, width))[:, 0] for n, maps in queries.items()}
            for i, (canvas, y, x) in enumerate(islice(left, len(semantic))):
                box = (slice(y, y + height), slice(x, x + width))
                canvas.add(box, semantic[i], {name: maps[i] for name, maps in queries.items()})

    def _detection(self, canvas: _Canvas, scorers: dict[str, Scorer], known: bool) -> Detection:
        maps, classes = self._finished(canvas, scorers, known)
        scores = {} if maps is None else dict(zip(scorers, maps.cpu().numpy(), strict=True))
        return Detection(scores, None if classes is None else classes.cpu().numpy())

    def _finished(
        self, canvas: _Canvas, scorers: dict[str, Scorer], known: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return scores (N, H, W) float32 and classes (H, W) of a canvas in the image's size."""
        assert canvas.evidence is not None
        evidence = canvas.evidence / canvas.counts
        maps = [
            canvas.maps[name] / canvas.counts
            if scorer.level == "query"
            else scorer(PixelOutput(evidence))[0]
            for name, scorer in scorers.items()
        ]
        scores = _resize(torch.stack(maps)[None], canvas.original)[0].float() if maps else None
        classes = _resize(evidence, canvas.original).argmax(dim=1)[0] if known else None
        return scores, classes

    def _forward(self, crops: Tensor) -> list[MaskOutput | PixelOutput]:
        """Return the outputs of (B, 3, h, w) crops, of two or three of them each.

        Masks at full resolution are large: all at once they would be gigabytes. A matrix product
        of one alone would be shared among threads in another way, with other bits.
        """
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
        with torch.autocast(crops.device.type, kind, enabled=self.precision != "no"):
            output = self.model(crops.to(next(self.model.parameters()).dtype))
        parts = max(len(crops) // 2, 1)
        # Scores in float32: half precision ties the very pixels a metric must tell apart.
        split = [
            v.float().tensor_split(parts) if isinstance(v, Tensor) else [v] * parts for v in output
        ]
        return [type(output)(*part) for part in zip(*split, strict=True)]


@dataclass(eq=False)
class _Canvas:
    """Sums up one image while its windows come in, and counts the windows of each pixel."""

    image: Tensor  # (1, 3, H', W')
    original: tuple[int, int]
    missing: int = 0
    counts: Tensor = field(init=False)  # (H', W')
    evidence: Tensor | None = None  # (1, K, H', W')
    maps: dict[str, Tensor] = field(default_factory=dict)  # (H', W')

    def __post_init__(self) -> None:
        self.counts = self.image.new_zeros(self.size)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]

    def add(self, box: tuple[slice, slice], semantic: Tensor, queries: dict[str, Tensor]) -> None:
        """Add one window: evidence (K, h, w) and score maps (h, w)."""
        if self.evidence is None:
            self.evidence = self.image.new_zeros(1, semantic.shape[0], *self.size)
            self.maps = {name: self.image.new_zeros(self.size) for name in queries}
        self.evidence[0, :, box[0], box[1]] += semantic
        self.counts[box] += 1
        for name, window_map in queries.items():
            self.maps[name][box] += window_map
        self.missing -= 1


class _PaddedCanvas(_Canvas):
    """Sums up windows out of place: in a graph, writing into a part of a tensor is slow."""

    def add(self, box: tuple[slice, slice], semantic: Tensor, queries: dict[str, Tensor]) -> None:
        """Add one window, with zeros around it."""
        sides = zip(self.size, semantic.shape[-2:], box, strict=True)
        (top, bottom), (left, right) = (
            (part.start, whole - part.start - side) for whole, side, part in sides
        )

        def padded(values: Tensor) -> Tensor:
            return F.pad(values, (left, right, top, bottom))

        first = self.evidence is None
        evidence = padded(semantic)[None]
        self.evidence = evidence if self.evidence is None else self.evidence + evidence
        self.counts = self.counts + padded(semantic.new_ones(semantic.shape[-2:]))
        for name, window_map in queries.items():
            found = padded(window_map)
            self.maps[name] = found if first else self.maps[name] + found
        self.missing -= 1


def window_boxes(size: tuple[int, int], window: tuple[int, int]) -> list[tuple[int, int]]:
    """Return top left corners (y, x) of the fewest evenly overlapping windows that cover `size`."""
    starts = []
    for length, side in zip(size, window, strict=True):
        count = math.ceil(length / side)
        step = (length - side) / max(1, count - 1)
        starts.append([int(i * step) for i in range(count)])
    return [(y, x) for y in starts[0] for x in starts[1]]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    # While an export of any size is traced, the size is a symbol, which must not be compared.
    if isinstance(size[0], int) and maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
