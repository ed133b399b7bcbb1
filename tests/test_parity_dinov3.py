"""EoMT on DINOv3 against transformers' EomtDinov3ForUniversalSegmentation, with random weights.

Rotary positions with queries in front, biases of queries and values, both kinds of MLP. In float64;
both programs compute rotary angles in float32 all the same, each rounding in its own way, and that
is what BOUND leaves room for. Given the same angles they are as equal as DINOv2's are.
Run: pytest tests/test_parity_dinov3.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("transformers")

from transformers_oracle import (
    double_precision,
    errors,
    hear,
    random_dinov3,
    relative_error,
    some_images,
    twin,
)

from eomt_exp.models.eomt import EoMT

BOUND, SAME_ANGLES_BOUND = 1e-6, 1e-9


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


@pytest.fixture(params=["plain", "gated"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, EoMT]:
    """A random model of transformers, and its twin; DINOv3's "plus" sizes have gated MLPs."""
    is_gated = request.param == "gated"
    oracle = random_dinov3(use_gated_mlp=is_gated)
    name = "vit_small_plus_patch16_dinov3_qkvb" if is_gated else "vit_small_patch16_dinov3_qkvb"
    model = twin(oracle.eval(), name)
    attention = model.encoder.blocks[0].attn
    assert attention.q_bias.abs().min() > 0
    assert attention.v_bias.abs().min() > 0
    return oracle, model


@torch.no_grad()
def test_unmasked_forward(pair: tuple[Any, EoMT]) -> None:
    oracle, model = pair
    oracle.attn_mask_probs.zero_()
    model.set_mask_probs([0.0, 0.0])
    theirs = hear(oracle, some_images())
    assert len(theirs.masks) == 1
    assert errors(model(some_images()), theirs) <= BOUND


@torch.no_grad()
def test_masked_forward(pair: tuple[Any, EoMT]) -> None:
    oracle, model = pair
    theirs, ours = hear(oracle, some_images()), model(some_images())
    assert relative_error([ours.mask_logits], theirs.masks[-1:]) <= BOUND
    assert relative_error([ours.class_logits], theirs.classes[-1:]) <= BOUND


@torch.no_grad()
def test_masked_forward_in_every_supervised_block(pair: tuple[Any, EoMT]) -> None:
    oracle, model = pair
    theirs = hear(oracle.train(), some_images())
    assert len(theirs.masks) == 3
    assert errors(model.train()(some_images()), theirs) <= BOUND
    model.set_mask_probs([0.0, 0.0])
    assert errors(model(some_images()), theirs) > 1e-3  # the masks do matter here


@torch.no_grad()
def test_no_weight_is_idle(pair: tuple[Any, EoMT]) -> None:
    """The comparison can fail: each tensor, moved in one place, breaks the bound."""
    oracle, model = pair
    # (h*w, 2 d): sines, then cosines
    sines, cosines = model.encoder.embed(some_images()).positions.chunk(2, dim=-1)
    oracle.rope_embeddings.forward = lambda _: (cosines, sines)
    theirs = hear(oracle.train(), some_images())
    model.train()
    assert errors(model(some_images()), theirs) <= SAME_ANGLES_BOUND
    for name, parameter in model.named_parameters():
        value = parameter.view(-1)[0].clone()
        parameter.view(-1)[0] += 1e-3
        assert errors(model(some_images()), theirs) > 100 * SAME_ANGLES_BOUND, name
        parameter.view(-1)[0] = value


@torch.no_grad()
def test_positions_matter(pair: tuple[Any, EoMT]) -> None:
    oracle, model = pair
    theirs = hear(oracle.train(), some_images())
    embed = model.encoder.embed
    with mock.patch.object(model.encoder, "embed", lambda x: embed(x)._replace(positions=None)):
        assert errors(model.train()(some_images()), theirs) > 1e-3
