"""AdamW's step: few groups and the fused kernel, against the official one group for each tensor.

Both hold the same weights and gradients and the same rates: EoMT's layer-wise decay of 0.8, weight
decay on everything. Theirs is torch.optim.AdamW as the official code calls it, defaults and all.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.timing import Row, compare, console, machine, parser, table
from eomt_exp.backbones.timm_vit import TimmViT
from eomt_exp.engine.optim import make_optimizer
from eomt_exp.models.eomt import EoMT
from eomt_exp.schema import OptimConfig

WIDTHS = {
    "ViT-S": ("vit_small_patch14_reg4_dinov2", 384),
    "ViT-B": ("vit_base_patch14_reg4_dinov2", 768),
}
RECIPE = OptimConfig(
    lr=1e-4,
    backbone_lr_factor=1.0,
    weight_decay=0.05,
    layer_decay=0.8,
    decay_joint_blocks=True,
    head_warmup=0,
    backbone_warmup=0,
    poly_power=0.9,
)


def make_model(size: str, image_size: int, device: torch.device) -> EoMT:
    """EoMT for Cityscapes on a ViT of WIDTHS, random weights."""
    name, dim = WIDTHS[size]
    with device:
        encoder: Any = TimmViT(name=name, image_size=(image_size, image_size), embed_dim=dim)
        return EoMT(encoder=encoder, num_classes=19, num_blocks=3)


def our_optimizer(model: EoMT) -> torch.optim.AdamW:
    """`make_optimizer` past its warm-up."""
    optimizer = make_optimizer(model, RECIPE)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    return optimizer


def their_optimizer(model: EoMT) -> torch.optim.AdamW:
    """One group a tensor, rates by the official formula, read off the official names."""
    groups = [
        {"params": [parameter], "lr": RECIPE.lr * official_factor(name, len(model.encoder.blocks))}
        for name, parameter in model.named_parameters()
    ]
    return torch.optim.AdamW(groups, weight_decay=RECIPE.weight_decay)


def official_factor(name: str, depth: int) -> float:
    """What a tensor's rate is of the base rate; embeddings go with the first block."""
    if not name.startswith("encoder.backbone.") or name.startswith("encoder.backbone.norm."):
        return 1.0
    index = int(name.split(".")[3]) if ".blocks." in name else 0
    return RECIPE.layer_decay ** (depth - 1 - index)


def copies_of(model: EoMT) -> tuple[EoMT, EoMT]:
    """Two models of the same weights and the same random gradients."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.grad = torch.randn(ours.shape, generator=generator).to(ours) * 1e-3
        theirs.grad = ours.grad.clone()
    return model, other


def measure(what: str, model: EoMT, repeats: int, device: torch.device) -> Row:
    """One row."""
    ours, theirs = copies_of(model)
    return compare(
        f"{what} ({sum(p.numel() for p in ours.parameters()) / 1e6:.1f} M)",
        our_optimizer(ours).step,
        their_optimizer(theirs).step,
        repeats=repeats,
        device=device,
        wanted=2.0,
        warm_up=2,
    )


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    read = parser(__doc__, repeats=20)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    read.add_argument("--device", default=default, help=f"default {default}")
    read.add_argument(
        "--models", nargs="+", choices=[*WIDTHS], default=[*WIDTHS], help="default all"
    )
    return read.parse_args(arguments)


def main() -> None:
    """Time both sides and print the table."""
    chosen = options()
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    rows = [
        measure(name, make_model(name, 512, device), chosen.repeats, device)
        for name in chosen.models
    ]
    print(machine(device))
    title = "AdamW step of EoMT, layer decay 0.8"
    console().print(table(title, rows, theirs="a group a tensor"))


if __name__ == "__main__":
    main()
