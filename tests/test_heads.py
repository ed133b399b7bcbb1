"""The anomaly heads: what they read, what they may train. Run: pytest tests/test_heads.py."""

from __future__ import annotations

from pathlib import Path

import planted
import pytest
import torch
import yaml
from torch import nn

from eomt_exp.heads.query_head import QueryHead, normalised_entropy

FOLDER = Path(__file__).parents[1] / "conf" / "anomaly_head"
VARIANTS = [(False, False), (True, False), (False, True), (True, True)]


def head_of(use_entropy: bool, use_max_prob: bool, **other: float) -> QueryHead:
    torch.manual_seed(0)
    return QueryHead(
        embed_dim=planted.D, use_entropy=use_entropy, use_max_prob=use_max_prob, **other
    )


@pytest.mark.parametrize(("use_entropy", "use_max_prob"), VARIANTS)
def test_a_head_says_three_states_and_never_trains_the_class_head(
    use_entropy: bool, use_max_prob: bool
):
    output = planted.random_output()
    head = head_of(use_entropy, use_max_prob)
    logits = head(output.queries, output.class_logits)
    assert logits.shape == (planted.B, planted.Q, 3)
    logits.square().sum().backward()
    assert output.class_logits.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in head.parameters())


@pytest.mark.parametrize(("use_entropy", "use_max_prob"), VARIANTS)
def test_a_head_listens_to_the_classes_only_if_asked_to(use_entropy: bool, use_max_prob: bool):
    output = planted.random_output()
    head = head_of(use_entropy, use_max_prob)
    sharper = head(output.queries, 5.0 * output.class_logits)
    same = torch.equal(sharper, head(output.queries, output.class_logits))
    assert same == (not use_entropy and not use_max_prob)


def test_entropy_is_one_when_uniform_and_zero_when_sure():
    log_probs = torch.tensor([[0.0, 0.0, 0.0], [1e4, 0.0, 0.0]]).log_softmax(-1)
    torch.testing.assert_close(normalised_entropy(log_probs), torch.tensor([[1.0], [0.0]]))


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_a_head_stays_finite_at_extreme_logits(scale: float):
    output = planted.random_output(scale=scale)
    head = head_of(True, True)
    assert head(output.queries, output.class_logits).isfinite().all()


def test_a_head_keeps_the_dtype_of_its_queries():
    output = planted.random_output()
    head = head_of(True, True).to(torch.bfloat16)
    logits = head(output.queries.bfloat16(), output.class_logits.bfloat16())
    assert logits.dtype == torch.bfloat16


def test_one_layer_is_a_linear_head_and_none_is_refused():
    linear = head_of(False, False, num_layers=1)
    assert [type(layer) for layer in linear.layers] == [nn.Linear]
    with pytest.raises(ValueError, match="at least 1"):
        head_of(False, False, num_layers=0)


def test_a_head_learns_to_tell_queries_apart():
    torch.manual_seed(0)
    queries, states = torch.randn(1, 60, planted.D), torch.arange(60)[None] % 3
    queries[..., :3] += 3.0 * nn.functional.one_hot(states, 3)
    head = head_of(False, False, hidden_dim=16)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(100):
        logits = head(queries, torch.zeros(1, 60, planted.K + 1))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), states.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(-1) == states).float().mean() > 0.95


@pytest.mark.parametrize(
    ("name", "expected"),
    zip(["query_only", "entropy", "max_prob", "uncertainty"], VARIANTS, strict=True),
)
def test_each_head_file_builds_the_head_it_is_named_after(name: str, expected: tuple[bool, bool]):
    node = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert node.pop("_target_") == "eomt_exp.heads.query_head.QueryHead"
    assert node.pop("embed_dim") == "${backbone.embed_dim}"
    head = QueryHead(embed_dim=planted.D, **node)
    assert (head.use_entropy, head.use_max_prob) == expected


def test_no_head_is_a_choice_too():
    assert yaml.safe_load((FOLDER / "none.yaml").read_text()) == {"_target_": None}
