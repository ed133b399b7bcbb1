"""What flows through the house: the named types and protocols that every room leans on.

Shape legend, used by every comment in the package:
B images, Q queries, K known classes, C class outputs (known, maybe one outlier class, no-object
last), D embedding width, M masks of one image, N tokens, H and W pixels of the input, h and w the
grid of the mask logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOID = 255
"""Pixels nobody may look at: no label, or outside the region of interest."""

NORMAL, ANOMALY, NO_OBJECT = 0, 1, 2
"""The three states of a query, in the order of the anomaly head's logits."""


class Target(NamedTuple):
    """What one image truly shows."""

    masks: Tensor  # (M, H, W) bool, one mask per class present, as semantic EoMT is trained
    labels: Tensor  # (M,) int64, the class of each mask; K is the outlier class, where there is one
    anomaly: Tensor  # (H, W) uint8: 0 normal, 1 anomaly (a pasted outlier in training), VOID
    ignore: Tensor  # (H, W) bool, pixels the mask losses leave out


class Sample(NamedTuple):
    """One training image, ready for the model."""

    image: Tensor  # (3, H, W) float32 RGB in [0, 1]
    target: Target
    name: str


class Batch(NamedTuple):
    """Samples of one size, stacked."""

    images: Tensor  # (B, 3, H, W) float32 RGB in [0, 1]
    targets: list[Target]
    names: list[str]


class LabelledImage(NamedTuple):
    """One picture with its truth, as a data set hands it out: numpy arrays in native resolution."""

    image: Any  # (H, W, 3) uint8 RGB ndarray
    labels: Any  # (H, W) uint8 ndarray: known classes 0..K-1, VOID elsewhere
    anomaly: Any  # (H, W) uint8 ndarray: 0 normal, 1 anomaly, VOID
    name: str


class PixelOutput(NamedTuple):
    """What a per-pixel network says, or a MaskOutput once its queries are summed."""

    logits: Tensor  # (B, K, H, W)

    def semantic_scores(self) -> Tensor:
        """(B, K, H, W): the evidence for each known class at each pixel."""
        return self.logits

    def resized(self, size: tuple[int, int]) -> PixelOutput:
        """Logits on an (H, W) grid, bilinear."""
        return PixelOutput(
            F.interpolate(self.logits, size=size, mode="bilinear", align_corners=False)
        )


class MaskOutput(NamedTuple):
    """What a mask transformer says: each query gives a mask and a class."""

    mask_logits: Tensor  # (B, Q, h, w)
    class_logits: Tensor  # (B, Q, C)
    queries: Tensor  # (B, Q, D), normalised, what the heads read
    anomaly_logits: Tensor | None  # (B, Q, 3), or None without an anomaly head
    num_classes: int  # K
    aux: tuple[MaskOutput, ...] = ()  # predictions of the supervised blocks, first block first
    semantic: Tensor | None = None  # (B, K, h, w), filled by with_semantic()

    @property
    def has_outlier_class(self) -> bool:
        """Whether the class head has an output for pasted outliers, between known and no-object."""
        return self.class_logits.shape[-1] == self.num_classes + 2

    def semantic_scores(self) -> Tensor:
        """(B, K, h, w): L_k = sum_q sigmoid(mask_q) * softmax(class_q)_k over the known classes.

        The softmax runs over all C outputs and the others are dropped after it, so sum_k of one
        query may be well under 1 (facts of EoMT, `to_per_pixel_logits_semantic`).
        """
        if self.semantic is not None:
            return self.semantic
        probs = self.class_logits.softmax(dim=-1)[..., : self.num_classes]
        return torch.einsum("bqk,bqhw->bkhw", probs, self.mask_logits.sigmoid())

    def with_semantic(self) -> MaskOutput:
        """The same output with L computed once, for several scorers to share."""
        return self._replace(semantic=self.semantic_scores())

    def resized(self, size: tuple[int, int]) -> MaskOutput:
        """Mask logits on an (H, W) grid; bilinear before the sigmoid, as EoMT does it."""
        logits = F.interpolate(self.mask_logits, size=size, mode="bilinear", align_corners=False)
        return self._replace(mask_logits=logits, semantic=None)


class Tokens(NamedTuple):
    """An image as a transformer sees it, before the first block."""

    values: Tensor  # (B, P + h*w, D): prefix tokens (class, registers), then patches row by row
    grid: tuple[int, int]  # (h, w)
    positions: Tensor | None = None  # rotary angles, to be handed to each block; None without


@runtime_checkable
class Backbone(Protocol):
    """Image to tokens, block by block, so that queries can join half-way. Six members."""

    embed_dim: int  # D
    patch_size: int
    blocks: nn.ModuleList  # in order; layer-wise decay and freezing go by them
    norm: nn.Module  # the last norm, shared by every prediction

    def embed(self, images: Tensor) -> Tokens:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of patch_size."""

    def block(
        self, index: int, tokens: Tensor, positions: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """One block. Tokens (B, N, D) may have queries in front, which have no position.

        keep (B, 1, Q, N) bool says what each of the first Q tokens may attend to; all others, and
        with None all, attend to everything.
        """


@runtime_checkable
class SpatialBackbone(Protocol):
    """Image to a pyramid of 2-D maps; queries can join the blocks of the last one. Six members."""

    embed_dim: int  # D, channels of the last map
    widths: tuple[int, ...]  # channels of each map, finest first; the last is D
    stages: Sequence[nn.ModuleList]  # the blocks of each; what closes a stage is in its last block
    norm: nn.Module  # the last norm over D, shared by every prediction

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) RGB in [0, 1] -> (B, C, h, w) maps, finest first.

        The last is the one that enters the blocks of the last stage.
        """

    def block(self, index: int, cells: Tensor) -> Tensor:
        """One block of the last stage: (B, D, h, w) to the same."""


class Part(NamedTuple):
    """A part of a model: what is frozen, slowed down and described together."""

    name: str
    kind: Literal["backbone", "joint", "head", "anomaly_head"]  # joint: backbone, with queries
    depth: int  # backbone blocks between this part and the last one; 0 outside the backbone
    parameters: tuple[nn.Parameter, ...]


class AnomalyHead(Protocol):
    """Query to three states: normal, anomaly, no-object."""

    def __call__(self, queries: Tensor, class_logits: Tensor) -> Tensor:
        """(B, Q, D), (B, Q, C) -> (B, Q, 3)."""


class Loss(Protocol):
    """Output and truth to named, already weighted terms; the total is their sum."""

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Each value is a scalar that carries gradient."""


class Scorer(Protocol):
    """Output to score map; a higher score is more anomalous, always."""

    level: Literal["semantic", "query"]  # semantic ones need only semantic_scores()

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w)."""


class ImageSet(Protocol):
    """A data set or benchmark: files (or a renderer) to labelled images."""

    num_classes: int  # K of the known classes
    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LabelledImage: ...


class OutlierPool(Protocol):
    """Objects to paste: cut-outs with an alpha channel."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """(h, w, 4) uint8 RGBA ndarray, alpha > 0 is the object."""


class DataError(ValueError):
    """A file or folder the user gave is missing or broken; the message says what to do."""


class CheckpointError(ValueError):
    """Weights that are missing, broken or of another model; the message says what to do."""
