"""The segmentation loss waits for the device once, however many images and outputs there are.

The losses run on a pretended GPU (torch's fake tensors, so no card is needed), on which asking for
a value is an error and every copy can be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import planted
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from eomt_exp.contracts import MaskOutput, Target
from eomt_exp.losses import matching
from eomt_exp.losses.entropy_maximisation import EntropyMaximisation
from eomt_exp.losses.isotropy_penalty import IsotropyPenalty
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.losses.outlier_margin import OutlierMargin
from eomt_exp.losses.relative_margin import RelativeMargin
from eomt_exp.scorers.max_logit import MaxLogit

TO_HOST, TO_DEVICE = ("cuda", "cpu", True), ("cpu", "cuda", False)
POINTS = 64


class Watch(TorchDispatchMode):
    """Notes operations, and copies between devices: from, to, and whether they are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.copies: list[tuple[str, str, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.operations.add(func.overloadpacket.__name__)
        before = [t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        after = [t.device.type for t in tree_leaves(result) if isinstance(t, Tensor)]
        if before and after and before[0] != after[0]:
            self.copies.append((before[0], after[0], not kwargs.get("non_blocking", False)))
        return result


def some_batch(num_aux: int) -> tuple[MaskOutput, list[Target]]:
    """Pasted pixels are left out, so that every branch of the losses is taken."""
    targets = planted.two_targets(label_outlier=True)
    targets[1] = targets[1]._replace(ignore=targets[1].masks[0])
    return planted.random_output(outlier_class=True, num_aux=num_aux), targets


def copies_of(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, num_aux: int) -> list:
    """The copies that `call(output, targets)` makes on the pretended GPU."""

    def on_host(values: Tensor) -> np.ndarray:
        values = np.zeros(values.cpu().shape, dtype=np.float32)
        values[-1] = True  # some pixels are left out
        return values

    # A fake tensor has no values that scipy could read, so any assignment will do.
    monkeypatch.setattr(matching, "on_host", on_host)
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        batch = tree_map_only(Tensor, lambda one: one.to("cuda"), some_batch(num_aux))
        watch.copies.clear()
        call(*batch)
    return watch.copies


@pytest.mark.parametrize("num_aux", [0, 3])
@pytest.mark.parametrize("queries", [None, "all", "outlier", "unmatched"])
def test_costs_leave_in_one_piece_and_pairs_return_in_one(
    queries: Any, num_aux: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss: Any = MaskClassification(num_points=POINTS)
    matches = queries in (None, "unmatched")
    if queries:
        loss = IsotropyPenalty(queries=queries, num_points=POINTS)
    assert copies_of(loss, monkeypatch, num_aux) == ([TO_HOST, TO_DEVICE] if matches else [])


@pytest.mark.parametrize(
    "loss",
    [
        OutlierMargin(scorer=MaxLogit(), low=-1.0, high=0.0),
        RelativeMargin(scorer=MaxLogit(), margin=0.5, copy_margin=0.4, tolerance=0.1),
        EntropyMaximisation(),
    ],
)
def test_a_loss_on_scores_copies_nothing(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_copy(output: MaskOutput, targets: list[Target]) -> None:
        loss(output, [targets[0], targets[1]._replace(copy_of=0)])

    assert copies_of(with_a_copy, monkeypatch, 0) == []


def test_the_pretended_device_sees_what_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(output: MaskOutput, targets: list[Target]) -> None:
        torch.tensor([1.0, 2.0], device=output.mask_logits.device)
        output.class_logits.to("cpu")

    assert copies_of(careless, monkeypatch, 0) == [("cpu", "cuda", True), TO_HOST]
    with pytest.raises(DataDependentOutputException):
        copies_of(lambda _, targets: bool(targets[0].ignore.any()), monkeypatch, 0)


def test_the_gradient_asks_the_device_for_nothing() -> None:
    output, targets = some_batch(2)
    terms = MaskClassification(num_points=POINTS)(output, targets)
    total = torch.stack(list(terms.values())).sum()
    with Watch() as watch:
        total.backward()
    assert "grid_sampler_2d_backward" in watch.operations
    assert not {"_local_scalar_dense", "nonzero", "masked_select"} & watch.operations
