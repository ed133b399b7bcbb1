"""trainable=…: every parameter in one part, and what is frozen stays still, to the last bit."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from eomt_exp.contracts import Target
from eomt_exp.engine.optim import make_optimizer
from eomt_exp.heads.query_head import QueryHead
from eomt_exp.losses.anomaly_head import AnomalyHeadLoss
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.models.eomt import EoMT
from eomt_exp.schema import OptimConfig
from tests.test_model import SIZE, tiny

TRAINED_KINDS = {
    "head": {"anomaly_head"},
    "heads": {"anomaly_head", "head"},
    "last_blocks": {"anomaly_head", "head", "joint"},
    "all": {"anomaly_head", "head", "joint", "backbone"},
}


def with_head() -> EoMT:
    model = tiny(anomaly_head=QueryHead(embed_dim=48, hidden_dim=16))
    model.set_mask_probs([0.7, 1.0])
    return model


def optim() -> OptimConfig:
    return OptimConfig(
        lr=0.01, backbone_lr_factor=1.0, weight_decay=0.5, layer_decay=0.8,
        decay_joint_blocks=True, head_warmup=0.0, backbone_warmup=0.0, poly_power=0.9,
    )  # fmt: skip


def a_target() -> Target:
    anomaly = torch.zeros(SIZE, dtype=torch.uint8)
    anomaly[8:20, 8:30] = 1
    masks = torch.stack([anomaly == 0, anomaly == 1])
    return Target(masks, torch.tensor([1, 3]), anomaly, torch.zeros(SIZE, dtype=torch.bool))


def test_each_parameter_is_in_exactly_one_part() -> None:
    model = with_head()
    seen = Counter(id(p) for part in model.parts() for p in part.parameters)
    assert seen == Counter(id(p) for p in model.parameters())
    assert {part.kind for part in model.parts()} == TRAINED_KINDS["all"]
    joint = [part.name for part in model.parts() if part.kind == "joint"]
    assert joint == ["block 2", "block 3", "norm"]


@pytest.mark.parametrize("which", TRAINED_KINDS)
def test_the_optimiser_holds_what_is_trained_exactly_once(which: str) -> None:
    model = with_head()
    model.set_trainable(which)
    held = [id(p) for group in make_optimizer(model, optim()).param_groups for p in group["params"]]
    trained = [
        id(p)
        for part in model.parts()
        if part.kind in TRAINED_KINDS[which]
        for p in part.parameters
    ]
    assert sorted(held) == sorted(trained)
    assert len(set(held)) == len(held)


@pytest.mark.parametrize("which", TRAINED_KINDS)
def test_training_steps_leave_frozen_weights_and_buffers_bit_equal(which: str) -> None:
    model = with_head()
    model.set_trainable(which)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, optim())
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    losses = [AnomalyHeadLoss(num_points=64), MaskClassification(num_points=64)]
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        output = model.train()(images)
        used = losses[:1] if which == "head" else losses
        terms = [t for loss in used for t in loss(output, [a_target()] * 2).values()]
        torch.stack(terms).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    ids = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert moved == {n for n, p in model.named_parameters() if id(p) in ids}


def test_what_lies_before_the_first_trained_part_has_no_graph(monkeypatch) -> None:
    model = with_head().train()
    images = torch.rand(1, 3, *SIZE)
    seen: list[bool] = []
    block = model.encoder.block

    def spied(index, tokens, positions, keep):
        out = block(index, tokens, positions, keep)
        seen.append(out.requires_grad)
        return out

    monkeypatch.setattr(model.encoder, "block", spied)
    expected = {
        "head": [False] * 4,
        "heads": [False, False, True, True],  # the queries are trained, and join at block 2
        "last_blocks": [False, False, True, True],
        "all": [True] * 4,
    }
    for which, graphs in expected.items():
        seen.clear()
        model.set_trainable(which)
        output = model(images)
        assert seen == graphs
        assert output.anomaly_logits.requires_grad
        assert output.mask_logits.requires_grad == (which != "head")


def test_a_frozen_body_neither_supervises_nor_anneals() -> None:
    model = with_head().train()
    model.set_trainable("head")
    assert not model.anneals
    trained = model(torch.rand(1, 3, *SIZE))
    assert trained.aux == ()
    model.set_trainable("heads")
    assert not model.anneals  # the blocks behind the masks stand still
    assert len(model(torch.rand(1, 3, *SIZE)).aux) == 2
    model.set_trainable("last_blocks")
    assert model.anneals


def test_dropout_of_a_frozen_body_is_off() -> None:
    model = with_head()
    model.encoder.backbone.pos_drop = nn.Dropout(0.5)
    model.set_trainable("head")
    model.train()
    assert model.anomaly_head.training
    assert not model.encoder.backbone.blocks.training
    images = torch.rand(1, 3, *SIZE)
    assert torch.equal(model(images).class_logits, model(images).class_logits)
