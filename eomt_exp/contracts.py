"""Define the named types and protocols through which the parts of the package meet.

Shape legend, used by every comment in the package:
B images, Q queries, K known classes, C class outputs (known, maybe one outlier class, no-object
last), D embedding width, M masks of one image, N tokens, H and W pixels of the input, h and w the
grid of the mask logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    import numpy as np

VOID = 255
"""Marks pixels that never count: they have no label, or lie outside the region of interest."""

NORMAL, ANOMALY, NO_OBJECT = 0, 1, 2
"""These are the three states of a query, in the order of the anomaly head's logits."""

OutlierTarget = Literal["ignore", "outlier_class", "no_object"]
"""Says what an outlier is to the mask losses: see Exposure."""


class Target(NamedTuple):
    """Holds the truth of one image."""

    masks: Tensor  # (M, H, W) bool, one mask per class present, as semantic EoMT is trained
    labels: Tensor  # (M,) int64, the class of each mask; K is the outlier class, where there is one
    anomaly: Tensor  # (H, W) uint8: 0 normal, 1 anomaly (labelled, or pasted in), VOID
    ignore: Tensor  # (H, W) bool, pixels the mask losses leave out
    copy_of: int = -1  # index in the batch of the image it shows in another domain; -1 for none


class Pasted(NamedTuple):
    """Says which object an exposure has set into an image, and where it was seen then."""

    number: int  # in its pool, which knows its name
    top: int  # of the box around its pixels in the image; a later object may hide some of them
    left: int
    height: int
    width: int
    pixels: int


class Sample(NamedTuple):
    """Holds one training image, ready for the model."""

    image: Tensor  # (3, H, W) float32 RGB in [0, 1]
    target: Target
    name: str
    pasted: tuple[Pasted, ...] = ()
    copy: Sample | None = None  # the scene in another domain, without objects, where one is trained


class Batch(NamedTuple):
    """Stacks samples of one size; the copies that some of them have follow behind all of them."""

    images: Tensor  # (B, 3, H, W) float32 RGB in [0, 1]
    targets: list[Target]
    names: list[str]

    def pieces(self, size: int) -> list[Batch]:
        """Divide it into batches of `size` samples, each with the copies of its own behind them."""
        of_sample = [i if one.copy_of < 0 else one.copy_of for i, one in enumerate(self.targets)]
        count = sum(one.copy_of < 0 for one in self.targets)
        found = []
        for first in range(0, count, size) if count > size else ():
            rows = [row for row, of in enumerate(of_sample) if first <= of < first + size]
            targets = [self.targets[row] for row in rows]
            targets = [one._replace(copy_of=max(one.copy_of - first, -1)) for one in targets]
            found.append(Batch(self.images[rows], targets, [self.names[row] for row in rows]))
        return found or [self]


class LabelledImage(NamedTuple):
    """Holds one image of a data set with its truth: numpy arrays in native resolution."""

    image: Any  # (H, W, 3) uint8 RGB ndarray
    labels: Any  # (H, W) uint8 ndarray: known classes 0..K-1, VOID elsewhere
    anomaly: Any  # (H, W) uint8 ndarray: 0 normal, 1 anomaly, VOID
    name: str
    pasted: tuple[Pasted, ...] = ()


class PixelOutput(NamedTuple):
    """Holds the output of a per-pixel network, or of a mask model once its queries are summed."""

    logits: Tensor  # (B, K, H, W)

    def semantic_scores(self) -> Tensor:
        """Return the evidence for each known class at each pixel, (B, K, H, W)."""
        return self.logits

    def resized(self, size: tuple[int, int]) -> PixelOutput:
        """Resize the logits to an (H, W) grid, bilinear."""
        return PixelOutput(
            F.interpolate(self.logits, size=size, mode="bilinear", align_corners=False)
        )


class MaskOutput(NamedTuple):
    """Holds the output of a mask transformer: each query gives a mask and a class."""

    mask_logits: Tensor  # (B, Q, h, w)
    class_logits: Tensor  # (B, Q, C)
    queries: Tensor  # (B, Q, D), normalised, what the heads read
    anomaly_logits: Tensor | None  # (B, Q, 3), or None without an anomaly head
    num_classes: int  # K
    aux: tuple[MaskOutput, ...] = ()  # predictions of the supervised blocks, first block first
    distances: Tensor | None = None  # (B, Q, C) to the prototypes of a DistanceHead; else None

    @property
    def has_outlier_class(self) -> bool:
        """Return whether a class output, between known and no-object, is for pasted outliers."""
        return self.class_logits.shape[-1] == self.num_classes + 2

    def semantic_scores(self) -> Tensor:
        """Sum over queries, (B, K, h, w): L_k = sum_q sigmoid(mask_q) * softmax(class_q)_k.

        The softmax runs over all C outputs and only the K known are kept, so sum_k of one query
        may be well under 1 (facts of EoMT, `to_per_pixel_logits_semantic`).
        """
        probs = self.class_logits.softmax(dim=-1)[..., : self.num_classes]
        return torch.einsum("bqk,bqhw->bkhw", probs, self.mask_logits.sigmoid())

    def resized(self, size: tuple[int, int]) -> MaskOutput:
        """Resize mask logits to an (H, W) grid, bilinear before the sigmoid, as EoMT does."""
        logits = F.interpolate(self.mask_logits, size=size, mode="bilinear", align_corners=False)
        return self._replace(mask_logits=logits)


class Tokens(NamedTuple):
    """Holds an image as a transformer sees it before the first block."""

    values: Tensor  # (B, P + h*w, D): prefix tokens (class, registers), then patches row by row
    grid: tuple[int, int]  # (h, w)
    positions: Tensor | None = None  # rotary angles, to be handed to each block; None without


@runtime_checkable
class Backbone(Protocol):
    """Turns an image into tokens, block by block, so that queries can join half-way."""

    embed_dim: int  # D
    patch_size: int
    blocks: nn.ModuleList  # in order; layer-wise decay and freezing go by them
    norm: nn.Module  # the last norm, shared by every prediction

    def embed(self, images: Tensor) -> Tokens:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of patch_size."""

    def block(
        self, index: int, tokens: Tensor, positions: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """Run one block on (B, N, D) tokens, the first of which may be queries, without a position.

        keep (B, 1, Q, N) bool says what each of the first Q tokens may attend to; all others, and
        with None all, attend to everything.
        """


@runtime_checkable
class SpatialBackbone(Protocol):
    """Turns an image into a pyramid of 2-D maps; queries can join the blocks of the last one."""

    embed_dim: int  # D, channels of the last map
    widths: tuple[int, ...]  # channels of each map, finest first; the last is D
    stages: Sequence[nn.ModuleList]  # the blocks of each; what closes a stage is in its last block
    norm: nn.Module  # the last norm over D, shared by every prediction

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) RGB in [0, 1] -> (B, C, h, w) maps, finest first.

        The last is the one that enters the blocks of the last stage.
        """

    def block(self, index: int, cells: Tensor) -> Tensor:
        """Run one block of the last stage, (B, D, h, w) -> (B, D, h, w)."""


class Part(NamedTuple):
    """Names parameters of a model that are frozen, slowed down and described together."""

    name: str
    # joint: of the backbone, with queries; decoder: between the backbone and the heads
    kind: Literal["backbone", "joint", "decoder", "head", "anomaly_head"]
    depth: int  # backbone blocks between this part and the last one; 0 outside the backbone
    parameters: tuple[nn.Parameter, ...]


class Model(nn.Module):
    """Turns an image into masks and classes, or into logits per pixel.

    What engine and tasks ask of any model. A class, since no Protocol can say that it is a Module
    too; a model inherits from it, and one without queries is as it is here.
    """

    encoder: Any  # a Backbone, a SpatialBackbone or another Module
    num_classes: int  # K
    num_queries: int = 0  # Q; 0 for a model without masks
    num_blocks: int = 0  # joint ones, that the queries pass
    masked_attention: bool = False  # whether queries attend to their own masks in them
    anneals: bool = False  # whether training opens these masks, by set_mask_probs
    official_quirks: bool = False  # whether what we do otherwise is as in EoMT's official code

    def forward(self, images: Tensor) -> MaskOutput | PixelOutput:
        """(B, 3, H, W) RGB in [0, 1] -> the output of all B images."""
        raise NotImplementedError

    def parts(self) -> list[Part]:
        """List all parameters, each in exactly one part."""
        raise NotImplementedError

    def set_trainable(self, which: str) -> None:
        """Freeze all but `which`: head, heads, last_blocks or all. Raises UserError."""
        raise NotImplementedError

    def set_mask_probs(self, probs: Sequence[float]) -> None:
        """Set, per joint block, the probability that a query attends only to its own mask."""

    def checkpoint_blocks(self) -> None:
        """Compute blocks again for the gradient instead of keeping what is inside them.

        The gradient is the same, for less memory and about a third more time. UserError for a
        model that has not been made for it.
        """
        raise UserError(
            f"trainer.gradient_checkpointing=true: {type(self).__name__} keeps what is inside its "
            "blocks. Type trainer.gradient_checkpointing=false, or take model=eomt."
        )


class ClassHead(Protocol):
    """Gives queries their class logits: a Module, whose weights are named class_head.*.

    In train mode they are what the losses see, in eval mode what scores are formed from.
    """

    def __call__(self, queries: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, C)."""


@runtime_checkable
class DistanceHead(ClassHead, Protocol):
    """Classifies queries by how near they are to a prototype of each class."""

    def distances(self, queries: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, C), at least 0."""

    def from_linear(self, weight: Tensor) -> dict[str, Tensor]:
        """(C, D) rows of a trained linear head -> the state of this head to start from."""


class AnomalyHead(Protocol):
    """Classifies queries into three states: normal, anomaly, no-object."""

    def __call__(self, queries: Tensor, class_logits: Tensor) -> Tensor:
        """(B, Q, D), (B, Q, C) -> (B, Q, 3)."""


class Loss(Protocol):
    """Computes named, already weighted terms from output and truth; the total is their sum.

    Losses inherit from it: what they do not say of themselves is as here.
    """

    needs_anomalies: bool  # without an anomaly in any image it has nothing to teach
    step: Sequence[Sequence[Target]] = ()  # all batches of the optimiser step, this process's own

    def begin_step(self, batches: Sequence[Sequence[Target]]) -> None:
        """Say what the step's batches hold before the first, so that means can be over all."""
        self.step = batches

    def __call__(self, output: MaskOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Each value is a scalar that carries gradient."""


class Scorer(Protocol):
    """Turns an output into a score map; a higher score is always more anomalous."""

    level: Literal["semantic", "query"]  # semantic ones need only semantic_scores()

    def __call__(self, output: MaskOutput | PixelOutput) -> Tensor:
        """-> (B, h, w)."""


@runtime_checkable
class FittedScorer(Scorer, Protocol):
    """Scores by what was found out about one model, on images that cannot be its test any more."""

    folder: str  # holds what was fitted, and the record of these images
    fitted: dict[str, Any]  # what was fitted, as JSON has it; "weights_sha256" names the model


class ImageSet(Protocol):
    """Reads labelled images of a data set or benchmark from files, or renders them.

    Sets inherit from it: what they do not say of themselves is as here.
    """

    num_classes: int = 0  # K of the known classes
    class_names: Sequence[str] = ()
    class_categories: Sequence[str] | None = None  # of each class, for the category IoU
    labels_anomalies: bool = False  # some pixels may be labelled 1, so that training can use them
    reads_files: bool = False  # its files are checked before they are needed
    expected_images: int | None = None  # how many the published set has
    skipped: Sequence[str] = ()  # file names of the images left out by on_broken=skip
    component_sizes: tuple[int, int] | None = None  # pixels of the smallest predicted and true one

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LabelledImage: ...

    def locations(self, index: int) -> tuple[str, str | None]:
        """Say where an image and its label map lie, for messages; of sets that read files.

        None for a truth that is not published.
        """
        raise NotImplementedError


class OutlierPool(Protocol):
    """Holds objects to paste: cut-outs with an alpha channel. Pools inherit from it, as sets do."""

    reads_files: bool = False  # its files are checked before they are needed

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """(h, w, 4) uint8 RGBA ndarray, alpha > 0 is the object."""

    def name(self, index: int) -> str:
        """Say what the object is called, so that it can be found again."""
        return f"object {index}"


class Exposure(Protocol):
    """Puts outliers into training images; a YAML of conf/outlier_exposure/ names it by `_target_`.

    That YAML must have the key `target`, from which the model learns how many classes it has:
    "outlier_class" makes outliers class K, "ignore" leaves their pixels out of the mask losses, and
    "no_object" leaves them in, as pixels that no mask may cover. The same then holds for anomalies
    that are labelled in the images.
    """

    @property
    def pool(self) -> OutlierPool:
        """What is put in; if it reads files, all are read before training begins."""

    @property
    def target(self) -> OutlierTarget:
        """What outliers are to the mask losses."""

    def __call__(self, image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        """Return the image with outliers or as it came, without writing to its arrays.

        Pixels of an outlier get anomaly 1 and the label VOID; where outliers are a class, training
        labels them K. All draws come from `rng`, so that a resumed run sees the same images.
        """

    def shifted(self, image: LabelledImage, rng: np.random.Generator) -> LabelledImage | None:
        """Return the scene before any paste in another domain, to be trained beside it, or None."""


class UserError(ValueError):
    """The user can fix what is wrong by another command; the message says what to type.

    It is shown as one line, and the command ends with exit code 2. Any other exception is a bug
    in this package and shows its traceback.
    """


class DataError(UserError):
    """A file or folder the user gave is missing or broken."""


class CheckpointError(UserError):
    """Weights are missing, broken or of another model."""


class TrainingError(UserError):
    """A training cannot go on with the settings it has; other settings may do."""


class OutOfMemory(TrainingError, MemoryError):
    """A batch does not fit into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of a GPU or of the machine was not enough."""
    is_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_memory or "can't allocate memory" in str(error)  # torch's allocator for the CPU


class TrialPruned(Exception):
    """The pruner of a study has ended this training early, which is no failure."""
