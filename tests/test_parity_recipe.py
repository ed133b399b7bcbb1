"""Rates, warm-up and mask annealing against stored tables of the published recipe."""

from __future__ import annotations

from typing import Any

import official_tables as tables
import pytest

from eomt_exp.engine.optim import annealing_steps, make_optimizer, mask_probs, set_rates
from eomt_exp.models.eomt import EoMT
from eomt_exp.schema import OptimConfig
from tests.planted import tiny_vit

EXACT = {"rel": 1e-12, "abs": 0.0}


def twelve_blocks() -> EoMT:
    """As deep as ViT-B, three blocks with queries, and as narrow as can be."""
    encoder = tiny_vit((32, 32), dim=16, depth=12, heads=1)
    return EoMT(encoder=encoder, num_classes=3, num_queries=4, num_blocks=3)


def recipe(**changes: Any) -> OptimConfig:
    published = {
        "lr": 1e-4, "backbone_lr_factor": 1.0, "weight_decay": 0.05, "layer_decay": 0.8,
        "decay_joint_blocks": True, "head_warmup": 500, "backbone_warmup": 1000, "poly_power": 0.9,
    }  # fmt: skip
    return OptimConfig(**published | changes)


def groups_by_name(model: EoMT, optim: OptimConfig, step: int, total: int) -> dict[str, dict]:
    """Parameter name -> its group of the optimiser, as it stands at a step."""
    optimizer = make_optimizer(model, optim)
    set_rates(optimizer, optim, step, total)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters()}


def block_of(name: str) -> int | None:
    """The block that a parameter of the encoder belongs to; None for all others."""
    parts = name.split(".")
    return int(parts[parts.index("blocks") + 1]) if "blocks" in parts else None


@pytest.mark.parametrize(
    ("changes", "base", "blocks"),
    [
        ({}, 1e-4, tables.DINOV2_BLOCK_RATES),
        ({"lr": 2e-4, "decay_joint_blocks": False}, 2e-4, tables.DINOV3_BLOCK_RATES),
        ({"lr": 2e-4, "layer_decay": 1.0}, 2e-4, (2e-4,) * 12),  # DINOv3, semantic ADE20K
    ],
)
def test_every_parameter_has_its_published_peak_rate(
    changes: dict[str, Any], base: float, blocks: tuple[float, ...]
) -> None:
    optim = recipe(head_warmup=0, backbone_warmup=0, **changes)
    groups = groups_by_name(twelve_blocks(), optim, 0, 1000)
    for name, group in groups.items():
        block = block_of(name)
        if block is not None:
            expected = blocks[block]
        else:  # tokens, positions and patches go with the first block; heads have the base rate
            first = name.startswith("encoder.") and ".norm" not in name
            expected = blocks[0] if first else base
        assert group["lr"] == pytest.approx(expected, **EXACT), name
        assert group["weight_decay"] == 0.05, name  # norms, biases and tokens too
    assert {block_of(name) for name in groups} == {None, *range(12)}


@pytest.mark.parametrize("schedule", [tables.DINOV2_ADE, tables.DINOV3_COCO], ids=["v2", "v3"])
def test_warmup_and_decay_follow_the_published_schedule(schedule: tables.Schedule) -> None:
    model = twelve_blocks()
    optim = recipe(head_warmup=schedule.head_warmup, backbone_warmup=schedule.backbone_warmup)
    for step, head, backbone in schedule.shares:
        groups = groups_by_name(model, optim, step, schedule.total)
        for name, peak, share in (
            ("class_head.weight", 1e-4, head),
            ("q.weight", 1e-4, head),
            ("upscale.0.norm.weight", 1e-4, head),
            ("encoder.backbone.norm.weight", 1e-4, backbone),
            ("encoder.backbone.blocks.11.attn.qkv.weight", 1e-4, backbone),
            ("encoder.backbone.blocks.8.mlp.fc1.bias", 5.12e-5, backbone),
            ("encoder.backbone.pos_embed", 8.589934592e-6, backbone),
        ):
            assert groups[name]["lr"] == pytest.approx(peak * share, rel=1e-11), (name, step)


@pytest.mark.parametrize(("total", "blocks"), tables.MASK_PROBS)
def test_masks_open_when_the_published_configurations_say(total: int, blocks: int) -> None:
    annealing = annealing_steps(None, total, blocks)
    for step, expected in tables.MASK_PROBS[total, blocks]:
        # Shut and open are exact: they decide whether a mask is computed at all.
        wanted = [p if p in (0, 1) else pytest.approx(p, rel=1e-11) for p in expected]
        assert mask_probs(step, annealing) == wanted, step


def test_masks_may_open_when_a_configuration_says() -> None:
    """Steps, as for DINOv3, whose block 0 opens from the first step on, or shares of the run."""
    steps = [(0, 3000), (6000, 9000)]
    annealing = annealing_steps(steps, 12000, 2)
    assert annealing == steps
    assert mask_probs(0, annealing) == [1.0, 1.0]
    assert mask_probs(1500, annealing) == [pytest.approx(0.5**0.9), 1.0]
    assert mask_probs(9000, annealing) == [0.0, 0.0]
    assert annealing_steps([(0.5, 1), (0, 0.25)], 12000, 2) == [(6000, 12000), (0, 3000)]
    with pytest.raises(ValueError, match="each of the 3 blocks that see queries, got 2"):
        annealing_steps(steps, 12000, 3)
