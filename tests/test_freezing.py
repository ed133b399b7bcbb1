"""Every parameter is in one part and learns; what is frozen stays still, to the last bit."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from eomt_exp.backbones.vit_pytorch import VitPytorchSimpleViT, VitPytorchViT
from eomt_exp.contracts import Target
from eomt_exp.engine.optim import make_optimizer
from eomt_exp.heads.isomax_plus import IsoMaxPlus
from eomt_exp.heads.query_head import QueryHead
from eomt_exp.losses.anomaly_head import AnomalyHeadLoss
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.models.eomt import EoMT
from eomt_exp.models.mask2former import Mask2Former
from eomt_exp.schema import OptimConfig
from tests import test_mask2former, test_spatial_eomt, test_vit_pytorch
from tests.test_model import SIZE, tiny, with_head
from tests.test_scalable_vit import images_of

TRAINED_KINDS = {
    "head": {"anomaly_head"},
    "heads": {"anomaly_head", "head"},
    "last_blocks": {"anomaly_head", "head", "joint", "decoder"},
    "all": {"anomaly_head", "head", "joint", "decoder", "backbone"},
}


def annealing() -> EoMT:
    model = with_head()
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


def around(kind: type) -> EoMT:
    encoder = test_vit_pytorch.tiny(kind).float()
    return EoMT(encoder=encoder, num_classes=5, num_queries=7, num_blocks=2)


def mask2former() -> Mask2Former:
    model = test_mask2former.tiny(anomaly_head=QueryHead(embed_dim=32, hidden_dim=16))
    for layer in model.pixel_decoder.encoder.layers:  # of 0, positions would do nothing
        nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.1)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "timm": annealing,
    "ViT": lambda: around(VitPytorchViT),
    "SimpleViT": lambda: around(VitPytorchSimpleViT),
    "spatial": test_spatial_eomt.with_head,
    "prototypes": lambda: tiny(class_head=IsoMaxPlus(embed_dim=48, num_classes=5)),
    "mask2former": mask2former,
}
ITS_IMPORT = pytest.param("mask2former", marks=pytest.mark.slow)  # of transformers, takes seconds


@pytest.mark.parametrize("name", ["timm", "ViT", "SimpleViT", "spatial", ITS_IMPORT])
def test_each_parameter_is_in_exactly_one_part_and_learns(name: str) -> None:
    model = MODELS[name]().train()
    listed = Counter(id(p) for part in model.parts() for p in part.parameters)
    assert listed == Counter(id(p) for p in model.parameters())
    output = model(images_of())
    outputs = (output, *output.aux)
    assert len(outputs) == 3
    total = sum(o.mask_logits.square().mean() + o.class_logits.square().mean() for o in outputs)
    if output.anomaly_logits is not None:
        total = total + output.anomaly_logits.square().mean()
    total.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert 0 < parameter.grad.abs().max() < float("inf"), parameter_name


@pytest.mark.parametrize("name", ["timm", "spatial", ITS_IMPORT])
@pytest.mark.parametrize("which", TRAINED_KINDS)
def test_the_optimiser_moves_what_is_trained_and_leaves_the_rest_bit_equal(
    which: str, name: str
) -> None:
    model = MODELS[name]()
    model.set_trainable(which)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, optim())
    parts = [part for part in model.parts() if part.kind in TRAINED_KINDS[which]]
    trained = {id(p) for part in parts for p in part.parameters}
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(trained)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    losses = [AnomalyHeadLoss(num_points=64), MaskClassification(num_points=64)]
    for _ in range(3):
        output = model.train()(images_of())
        used = losses[:1] if which == "head" else losses
        terms = [t for loss in used for t in loss(output, [a_target()] * 2).values()]
        torch.stack(terms).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {n for n, p in model.named_parameters() if id(p) in trained}


@pytest.mark.slow
def test_what_was_never_trained_learns_at_the_rate_of_the_heads() -> None:
    model, settings = mask2former(), optim()
    settings.backbone_lr_factor = 0.1
    groups = make_optimizer(model, settings).param_groups
    rates = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    assert [part.depth for part in model.parts() if part.kind == "backbone"] == [4, 4, 3, 2, 1, 0]
    for part in model.parts():
        rate = 0.01 * 0.1 * 0.8**part.depth if part.kind == "backbone" else 0.01
        assert [rates[id(p)] for p in part.parameters] == pytest.approx(
            [rate] * len(part.parameters)
        )


def test_what_lies_before_the_first_trained_part_has_no_graph(monkeypatch) -> None:
    model = annealing().train()
    seen: list[bool] = []
    block = model.encoder.block

    def spied(*given):
        seen.append((out := block(*given)).requires_grad)
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
        output = model(images_of())
        assert seen == graphs
        assert output.anomaly_logits.requires_grad
        assert output.mask_logits.requires_grad == (which != "head")


def test_a_frozen_body_neither_supervises_nor_anneals() -> None:
    model = annealing().train()
    model.set_trainable("head")
    assert not model.anneals
    assert model(images_of()).aux == ()
    model.set_trainable("heads")
    assert not model.anneals  # the blocks behind the masks stand still
    assert len(model(images_of()).aux) == 2
    model.set_trainable("last_blocks")
    assert model.anneals


def test_dropout_of_a_frozen_body_is_off() -> None:
    model = annealing()
    model.encoder.backbone.pos_drop = nn.Dropout(0.5)
    model.set_trainable("head")
    model.train()
    assert model.anomaly_head.training
    assert not model.encoder.backbone.blocks.training
    assert torch.equal(model(images_of()).class_logits, model(images_of()).class_logits)
