"""Counts a model without its weights: parameters, sizes, and the work of one forward pass.

Everything is counted on PyTorch's meta device, where tensors have shapes and no memory, so a
billion parameters are described as fast as a million.
"""

from __future__ import annotations

import re
from copy import deepcopy
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from eomt_exp.contracts import Backbone, MaskOutput, Model, Part, SpatialBackbone

NOTE = (
    "GMACs: 10^9 multiply-accumulates of one image's forward pass, in products and convolutions;\n"
    "papers mostly call this number GFLOPs."
)


class PartSum(NamedTuple):
    """Sums up a part of a model, or successive blocks of one kind."""

    name: str
    parameters: int
    trained: int  # parameters that get a gradient


class Description(NamedTuple):
    """Holds what `describe` found."""

    parts: list[PartSum]
    sizes: dict[str, str]
    macs: dict[str, int]  # multiply-accumulates of one forward pass, per way to run it

    @property
    def parameters(self) -> int:
        """Count all parameters of the model."""
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        """Count the parameters that get a gradient."""
        return sum(part.trained for part in self.parts)


def describe(model: Model, image_size: tuple[int, int]) -> Description:
    """Count a model that was built on the meta device, for one image of (H, W) pixels.

    Work is counted as in evaluation: without the predictions that only training supervises.
    """
    # Without gradients: torch's counter stumbles over views of parameters that want one.
    still = deepcopy(model).eval().requires_grad_(False)
    with torch.device("meta"):
        images = torch.empty(1, 3, *image_size)
        return Description(part_sums(model.parts()), _sizes(still, images), _work(still, images))


def part_sums(parts: list[Part]) -> list[PartSum]:
    """Sum up parts; "block 0", "block 1" and so on of one kind become "blocks 0-1"."""

    def family(part: Part) -> tuple[str, str]:
        numbered = re.fullmatch(r"(.+) \d+", part.name)
        return (numbered[1], part.kind) if numbered else (part.name, "")

    sums = []
    for (stem, kind), members in groupby(parts, family):
        group = list(members)
        name, first, last = group[0].name, group[0].name, group[-1].name
        if len(group) > 1:
            name = f"{stem}s {first.split()[-1]}-{last.split()[-1]}"
        name += ", with queries" if kind == "joint" else ""
        tensors = [p for part in group for p in part.parameters]
        trained = sum(p.numel() for p in tensors if p.requires_grad)
        sums.append(PartSum(name, sum(p.numel() for p in tensors), trained))
    return sums


def multiply_accumulates(model: Model, images: Tensor) -> int:
    """Count those of one forward pass; torch counts two operations for each."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2


def print_description(found: Description, title: str) -> None:
    """Print title, note and a table of parts with their parameters, of sizes and of work.

    One column says what is trained. Lines are never broken, so that logs can be searched.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("part", no_wrap=True)
    for heading in ("parameters", "trained"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in found.parts:
        some = f"{part.trained:,}" if part.trained else "no"
        trained = "yes" if part.trained == part.parameters else some
        table.add_row(part.name, f"{part.parameters:,}", trained)
    table.add_section()
    table.add_row("total", *(f"{n / 1e6:.2f} M" for n in (found.parameters, found.trained)))
    table.add_section()
    for name, value in found.sizes.items():
        table.add_row(name, value, "")
    table.add_section()
    for how, count in found.macs.items():
        table.add_row(f"GMACs{how}", f"{count / 1e9:.2f}", "")
    console = Console(highlight=False)
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)
    console.print(NOTE, markup=False, soft_wrap=True)


def _sizes(model: Model, images: Tensor) -> dict[str, str]:
    """Say what lies between image and masks, in terms of the model's kind of encoder."""
    sizes = {"image": _by(images)}
    encoder, num_queries = model.encoder, model.num_queries
    if isinstance(encoder, Backbone):
        tokens = encoder.embed(images)
        rows, columns = tokens.grid
        patches, prefix = rows * columns, tokens.values.shape[1] - rows * columns
        parts = f"{prefix} + {patches:,} + {num_queries}"
        sizes["patch grid"] = f"{rows} x {columns}"
        sizes["tokens per image"] = f"{prefix + patches + num_queries:,}"
        sizes["of them prefix + patches + queries"] = parts
    elif isinstance(encoder, SpatialBackbone):
        maps = encoder.pyramid(images)
        sizes |= {f"map of stage {stage}": _by(cells) for stage, cells in enumerate(maps, 1)}
    if num_queries:
        sizes["queries"] = str(num_queries)
        sizes["blocks with queries"] = str(model.num_blocks)
    output = model(images)
    if isinstance(output, MaskOutput):
        return sizes | {"mask grid": _by(output.mask_logits)}
    return sizes | {"logits": _by(output.logits)}


def _by(images: Tensor) -> str:
    return " x ".join(str(side) for side in images.shape[-2:])


def _work(model: Model, images: Tensor) -> dict[str, int]:
    if not model.num_queries:
        return {"": multiply_accumulates(model, images)}
    work = {}
    for how, masked in {"": False, ", masked attention": True}.items():
        model.masked_attention = masked
        work[how] = multiply_accumulates(model, images)
    # Some can do without masks; where that changes nothing, there is one way only.
    return work if len({*work.values()}) > 1 else {"": work[""]}
