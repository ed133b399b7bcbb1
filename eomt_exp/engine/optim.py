"""Makes EoMT's optimiser: layer-wise decay, two-stage warm-up, poly schedule, mask annealing.

Formulas are those of the official recipe (tue-mps/eomt, training/): heads warm up first, the
backbone stands still meanwhile and warms up after them, and every mask is open for the last sixth
of the run. What is theirs in steps is by default ours in shares of the run, so that short runs keep
the shape. Their `lr_mult`, which by a slip of theirs never multiplied, is our backbone_lr_factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from eomt_exp.contracts import Model, UserError
from eomt_exp.schema import OptimConfig


def parameter_groups(model: Model, optim: OptimConfig) -> list[dict[str, Any]]:
    """Group parameters by learning rate; the groups hold every trainable one exactly once.

    Backbone block i of n has lr * backbone_lr_factor * layer_decay ** (n - 1 - i); embeddings count
    as the first block, the last norm as the last one. Without decay_joint_blocks, the blocks that
    see the queries keep the rate of the last one (official: llrd_l2_enabled=False).
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for part in model.parts():
        stage, scale = "head", 1.0
        if part.kind in ("backbone", "joint"):
            is_decayed = optim.decay_joint_blocks or part.kind == "backbone"
            depth = part.depth if is_decayed else 0
            stage, scale = "backbone", optim.backbone_lr_factor * optim.layer_decay**depth
        trained = [parameter for parameter in part.parameters if parameter.requires_grad]
        if trained:
            groups.setdefault((stage, scale), []).extend(trained)
    if not groups:
        raise UserError("nothing is trainable; set trainable=all or add an anomaly head.")
    return [
        {"params": params, "lr": 0.0, "peak_lr": optim.lr * scale, "stage": stage}
        for (stage, scale), params in groups.items()
    ]


def make_optimizer(model: Model, optim: OptimConfig) -> torch.optim.AdamW:
    """Make an AdamW over `parameter_groups`; fused, which is about three times as fast."""
    return torch.optim.AdamW(
        parameter_groups(model, optim), weight_decay=optim.weight_decay, fused=True
    )


def set_rates(
    optimizer: torch.optim.Optimizer, optim: OptimConfig, step: int, total_steps: int
) -> None:
    """Give every group its rate at a step; a function of the step, so there is no state to save."""
    head = warmup_steps(optim.head_warmup, total_steps)
    backbone = warmup_steps(optim.backbone_warmup, total_steps)
    factors = {
        "head": warmup_poly(step, 0, head, total_steps, optim.poly_power),
        "backbone": warmup_poly(step, head, backbone, total_steps, optim.poly_power),
    }
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factors[group["stage"]]


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Read a share of the run below 1; from 1 on, steps, as the official configs give them."""
    return round(warmup if warmup >= 1 else warmup * total_steps)


def warmup_poly(step: int, start: int, warmup: int, total: int, power: float) -> float:
    """Return 0 before `start`, rise for `warmup` steps, then (1 - progress) ** power to `total`."""
    if step < start:
        return 0.0
    step -= start
    if step < warmup:
        return step / warmup
    left = max(1, total - start - warmup)
    return max(0.0, 1 - (step - warmup) / left) ** power


def annealing_steps(
    given: Sequence[Sequence[float]] | None, total: int, num_blocks: int
) -> list[tuple[float, float]]:
    """Say from which step to which the masks of each joint block open, the first block first.

    `given` holds (start, end) pairs: shares of the run where the end is at most 1, else steps. None
    is what the official DINOv2 configs spell out in steps: a_i = T/6 + (T/2) i / (K - 1) and
    b_i = a_i + T/6.
    """
    if given is None:
        starts = [total / 6 + (total / 2) * i / max(1, num_blocks - 1) for i in range(num_blocks)]
        return [(start, start + total / 6) for start in starts]
    if len(given) != num_blocks:
        raise UserError(
            f"optim.mask_annealing needs a pair for each of the {num_blocks} blocks that see "
            f"queries, got {len(given)}."
        )
    units = [total if end <= 1 else 1 for _, end in given]
    return [(start * unit, end * unit) for (start, end), unit in zip(given, units, strict=True)]


def mask_probs(step: int, annealing: Sequence[tuple[float, float]]) -> list[float]:
    """Return the probability of masked attention of each joint block, given its (start, end).

    It is 1 before a_i, 0 from b_i on, between them (1 - (s - a_i) / (b_i - a_i)) ** 0.9.
    """
    probs = []
    for start, end in annealing:
        progress = min(1.0, max(0.0, (step - start) / (end - start)))
        probs.append((1 - progress) ** 0.9 if not math.isclose(progress, 1.0) else 0.0)
    return probs
