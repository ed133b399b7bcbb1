"""The anomaly heads: what they read, what they may train.

A new file in conf/anomaly_head is tested unasked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
import yaml
from torch import nn

from eomt_exp.heads.query_head import QueryHead, normalised_entropy

FILES = sorted((Path(__file__).parents[1] / "conf" / "anomaly_head").glob("*.yaml"))
HEADS = {p.stem: node for p in FILES if (node := yaml.safe_load(p.read_text()))["_target_"]}
each_head = pytest.mark.parametrize("name", HEADS)


def configured(name: str) -> Any:
    torch.manual_seed(0)
    return planted.part_of(HEADS[name] | {"embed_dim": planted.D})


def head_of(reads: bool, **other: float) -> QueryHead:
    """A head that reads entropy and largest probability, or neither."""
    torch.manual_seed(0)
    return QueryHead(embed_dim=planted.D, use_entropy=reads, use_max_prob=reads, **other)


@each_head
def test_a_head_says_three_states_and_never_trains_the_class_head(name: str):
    output = planted.random_output()
    head = configured(name)
    logits = head(output.queries, output.class_logits)
    assert logits.shape == (planted.B, planted.Q, 3)
    logits.square().sum().backward()
    assert output.class_logits.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in head.parameters())


def test_a_head_reads_of_the_classes_what_its_file_is_named_after():
    output = planted.random_output()
    for name, reads in {
        "query_only": (False, False),
        "entropy": (True, False),
        "max_prob": (False, True),
        "uncertainty": (True, True),
    }.items():
        head = configured(name)
        logits = head(output.queries, output.class_logits)
        sharper = head(output.queries, 5.0 * output.class_logits)
        assert torch.equal(logits, sharper) != any(reads), name
        assert (head.use_entropy, head.use_max_prob) == reads


def test_entropy_is_one_when_uniform_and_zero_when_sure():
    log_probs = torch.tensor([[0.0, 0.0, 0.0], [1e4, 0.0, 0.0]]).log_softmax(-1)
    torch.testing.assert_close(normalised_entropy(log_probs), torch.tensor([[1.0], [0.0]]))


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_a_head_stays_finite_at_extreme_logits(scale: float):
    output = planted.random_output(scale=scale)
    head = head_of(True)
    assert head(output.queries, output.class_logits).isfinite().all()


def test_a_head_keeps_the_dtype_of_its_queries():
    output = planted.random_output()
    head = head_of(True).to(torch.bfloat16)
    logits = head(output.queries.bfloat16(), output.class_logits.bfloat16())
    assert logits.dtype == torch.bfloat16


def test_one_layer_is_a_linear_head():
    linear = head_of(False, num_layers=1)
    assert [type(layer) for layer in linear.layers] == [nn.Linear]


def test_a_head_learns_to_tell_queries_apart():
    torch.manual_seed(0)
    queries, states = torch.randn(1, 60, planted.D), torch.arange(60)[None] % 3
    queries[..., :3] += 3.0 * nn.functional.one_hot(states, 3)
    head = head_of(False, hidden_dim=16)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(100):
        logits = head(queries, torch.zeros(1, 60, planted.K + 1))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), states.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(-1) == states).float().mean() > 0.95
