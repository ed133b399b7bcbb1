"""EoMT against transformers' EomtForUniversalSegmentation: same weights, same images, same truth.

ViT-S/16 with four registers, 100 queries, 19 classes and 11 masks an image; forward open, forward
masked, and a masked training step (forward, loss, backward), in float32 and under bf16 autocast.
Both start from RGB in [0, 1]; masks for transformers are float32, as its own processor hands them
over, and ours are made so inside the measured time. In bf16 on a CPU our attention is spelled
out, and rounds its scores (backbones/attention.py); the gaps below the table are what that does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import Row, compare, console, machine, parser, positive, table
from eomt_exp.backbones.pixel_encoder import IMAGENET_MEAN, IMAGENET_STD
from eomt_exp.backbones.timm_vit import TimmViT
from eomt_exp.contracts import Target
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.models.eomt import EoMT
from eomt_exp.weights.formats import to_official

CLASSES, MASKS, JOINT_BLOCKS = 19, 11, 3
WANTED = {"forward, unmasked": 1.0, "forward, masked": 1.1, "training step, masked": 1.25}
PRECISIONS = ("float32", "bf16")


class Shape(NamedTuple):
    """The network of both sides; the defaults are ViT-S/16 reg4."""

    name: str = "vit_small_patch14_reg4_dinov2"
    dim: int = 384
    depth: int = 12
    heads: int = 6
    queries: int = 100


class Pair(NamedTuple):
    """The same network twice."""

    ours: EoMT
    theirs: Any  # EomtForUniversalSegmentation

    def set_masking(self, prob: float) -> None:
        """The share of queries that see only their own mask, in every joint block."""
        self.ours.set_mask_probs([prob] * self.ours.num_blocks)
        self.theirs.attn_mask_probs.fill_(prob)


class Inputs(NamedTuple):
    """One batch, as each side wants it."""

    images: Tensor  # (B, 3, S, S) RGB in [0, 1]
    targets: list[Target]
    mean: Tensor  # (1, 3, 1, 1), for transformers, which normalises before its model
    std: Tensor
    labels: dict[str, list[Tensor]]  # mask_labels (M, S, S) float32 and class_labels (M,)


def make_pair(size: int, device: torch.device, shape: Shape | None = None) -> Pair:
    """Random weights, LayerScale about 1: as DINOv2 starts it, its blocks would do nothing."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    shape = shape or Shape()
    config = EomtConfig(
        hidden_size=shape.dim,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        image_size=size,
        num_blocks=JOINT_BLOCKS,
        num_queries=shape.queries,
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    theirs: Any = EomtForUniversalSegmentation(config)
    for name, parameter in theirs.named_parameters():
        if name.endswith("lambda1"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    encoder: Any = TimmViT(
        name=shape.name,
        image_size=(size, size),
        embed_dim=shape.dim,
        overrides={"embed_dim": shape.dim, "depth": shape.depth, "num_heads": shape.heads},
    )
    ours = EoMT(
        encoder=encoder, num_classes=CLASSES, num_queries=shape.queries, num_blocks=JOINT_BLOCKS
    )
    absent, unknown = ours.load_state_dict(to_official(theirs.state_dict())[0], strict=False)
    assert set(absent) <= {"encoder.pixel_mean", "encoder.pixel_std"}, absent
    assert not unknown, unknown
    return Pair(ours.to(device), theirs.to(device))


def make_inputs(batch: int, size: int, device: torch.device) -> Inputs:
    """Random images; the truth is a patchwork of MASKS classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator)
    targets = [_target(size, generator) for _ in range(batch)]
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return Inputs(
        images.to(device),
        send_to_device(targets, device),
        mean.to(device),
        std.to(device),
        {
            "mask_labels": [target.masks.float().to(device) for target in targets],
            "class_labels": [target.labels.to(device) for target in targets],
        },
    )


def _target(size: int, generator: torch.Generator) -> Target:
    patches = torch.randint(MASKS, (8, 8), generator=generator)
    patches.view(-1)[:MASKS] = torch.arange(MASKS)  # every class is present
    labels = F.interpolate(patches[None, None].float(), size=(size, size))[0, 0]
    return Target(
        masks=labels[None] == torch.arange(MASKS)[:, None, None],
        labels=torch.randperm(CLASSES, generator=generator)[:MASKS],
        anomaly=torch.zeros(size, size, dtype=torch.uint8),
        ignore=torch.zeros(size, size, dtype=torch.bool),
    )


class Sides:
    """What is timed: each task of WANTED for both sides, at one precision."""

    def __init__(self, pair: Pair, inputs: Inputs, precision: str) -> None:
        self.pair, self.inputs, self.precision = pair, inputs, precision
        self.loss = MaskClassification()

    def prepare(self, task: str) -> tuple[Any, Any]:
        """Set both models up for a task; returns ours and theirs."""
        self.pair.set_masking(0.0 if "unmasked" in task else 1.0)
        trains = task.startswith("training")
        for model in self.pair:
            model.train(trains)
        if trains:
            return self.our_step, self.their_step
        return self.our_forward, self.their_forward

    def our_forward(self) -> tuple[Tensor, Tensor]:
        """Mask and class logits."""
        with torch.inference_mode(), self._autocast():
            output = self.pair.ours(self.inputs.images)
        return output.mask_logits, output.class_logits

    def their_forward(self) -> tuple[Tensor, Tensor]:
        """Mask and class logits."""
        with torch.inference_mode(), self._autocast():
            output = self.pair.theirs(self._pixel_values())
        return output.masks_queries_logits, output.class_queries_logits

    def our_step(self) -> Tensor:
        """The loss; outside of autocast, where our trainer computes it."""
        with self._autocast():
            output = self.pair.ours(self.inputs.images)
        total = torch.stack([*self.loss(output, self.inputs.targets).values()]).sum()
        total.backward()
        self.pair.ours.zero_grad(set_to_none=True)
        return total.detach()

    def their_step(self) -> Tensor:
        """The loss, which their forward computes."""
        with self._autocast():
            total = self.pair.theirs(self._pixel_values(), **self.inputs.labels).loss
        total.backward()
        self.pair.theirs.zero_grad(set_to_none=True)
        return total.detach()

    def _pixel_values(self) -> Tensor:
        return (self.inputs.images - self.inputs.mean) / self.inputs.std

    def _autocast(self) -> Any:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.inputs.images.device.type, dtype=torch.bfloat16)


def measure(sides: Sides, repeats: int) -> Iterator[Row]:
    """One row a task."""
    for task, wanted in WANTED.items():
        ours, theirs = sides.prepare(task)
        yield compare(
            f"{sides.precision} {task}",
            ours,
            theirs,
            repeats=repeats,
            device=sides.inputs.images.device,
            wanted=wanted,
        )


def agreement(sides: Sides) -> Iterator[str]:
    """Lines that say how far both sides are apart on the same input and the same random draws."""
    for task in WANTED:
        works = sides.prepare(task)
        results = []
        for work in works:
            torch.manual_seed(0)
            result = work()
            results.append(result if isinstance(result, tuple) else (result,))
        names = ("loss",) if task.startswith("training") else ("masks", "classes")
        gaps = [
            f"{name} {difference(ours, theirs):.1e}"
            for name, ours, theirs in zip(names, *results, strict=True)
        ]
        yield f"{sides.precision} {task}: {', '.join(gaps)}"


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|."""
    gap = (ours.float() - theirs.float()).abs().max()
    return float(gap / theirs.float().abs().max())


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    read = parser(__doc__, repeats=5)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    read.add_argument("--device", default=default, help=f"default {default}")
    read.add_argument("--size", type=positive, default=512, help="side of the images (default 512)")
    read.add_argument("--batch", type=positive, default=2, help="images (default 2)")
    return read.parse_args(arguments)


def main() -> None:
    """Time both sides and print the table."""
    chosen = options()
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    try:
        pair = make_pair(chosen.size, device)
    except ImportError as error:
        print(f"skipped, transformers cannot be imported ({error}); pip install -e '.[dev]'")
        return
    import transformers

    inputs = make_inputs(chosen.batch, chosen.size, device)
    rows, lines = [], []
    for precision in PRECISIONS:
        sides = Sides(pair, inputs, precision)
        lines += [*agreement(sides)]
        rows += [*measure(sides, chosen.repeats)]
    print(f"{machine(device)}, transformers {transformers.__version__}")
    title = f"EoMT ViT-S/16, {chosen.size}x{chosen.size}, batch {chosen.batch}"
    console().print(table(title, rows, theirs="transformers"))
    print("max |ours - theirs| / max |theirs| on the same input:", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
