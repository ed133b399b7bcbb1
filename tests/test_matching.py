"""Points and pairs: what is sampled where, and which query is given which mask."""

from __future__ import annotations

import itertools
from functools import partial

import planted
import pytest
import torch
from planted import ORDER, POINTS
from torch import Tensor

from eomt_exp.losses.matching import NO_CLASS, Matcher, pairwise_mask_costs, segmentation_truth
from eomt_exp.losses.point_sampling import (
    PointSampler,
    ignored_cells,
    points_ignored,
    sample_points,
)

truth_of = partial(segmentation_truth, dtype=torch.float32)


def test_sampling_at_a_pixel_centre_reads_that_pixel():
    maps = torch.arange(12.0).reshape(1, 3, 4)
    centres = torch.tensor([[[0.125, 0.5 / 3], [0.875, 2.5 / 3], [0.5, 0.5]]])
    torch.testing.assert_close(sample_points(maps, centres), torch.tensor([[0.0, 11.0, 5.5]]))


def test_a_point_is_ignored_exactly_if_an_ignored_pixel_weighs_in():
    torch.manual_seed(0)
    ignore = torch.rand(2, 9, 13) > 0.8
    points = torch.rand(2, 500, 2)
    out = points_ignored(ignored_cells(ignore), torch.arange(2), points)
    assert torch.equal(out, sample_points(ignore.float(), points) > 0)


def test_undecided_regions_are_sampled_unless_they_are_ignored():
    logits = torch.full((1, 8, 8), planted.SURE)
    logits[0, 2:6, 2:6] = 0.0  # undecided: a quarter of the picture
    image = torch.zeros(1, dtype=torch.int64)
    cells = ignored_cells((logits == 0).repeat_interleave(4, 1).repeat_interleave(4, 2))

    def share_inside(given: Tensor | None) -> float:
        sampler = PointSampler(num_points=64, oversample_ratio=8.0, importance_ratio=0.75)
        points = sampler.choose(logits, sampler.draw(1, logits), image, given)
        assert points.shape == (1, 64, 2)
        return points_ignored(cells, image, points).float().mean().item()

    torch.manual_seed(0)
    assert share_inside(None) > 0.75
    assert share_inside(cells) < 0.25


def test_the_cheap_pairwise_costs_equal_the_definition_pair_by_pair():
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(3, 50), torch.rand(2, 50), (torch.rand(50) > 0.3).float()
    bce, dice = pairwise_mask_costs(logits, labels, weights)
    for q, m in itertools.product(range(3), range(2)):
        x, y = logits[q][weights > 0], labels[m][weights > 0]
        expected = torch.nn.functional.binary_cross_entropy_with_logits(x, y)
        torch.testing.assert_close(bce[q, m], expected)
        p = x.sigmoid()
        torch.testing.assert_close(dice[q, m], 1 - (2 * p @ y + 1) / (p.sum() + y.sum() + 1))


@pytest.mark.parametrize("by_class", [True, False])
def test_matching_finds_the_planted_queries(by_class: bool):
    targets = planted.two_targets()
    output = planted.saying(targets, ORDER, num_outputs=planted.K + 1)
    if not by_class:
        targets = [t._replace(labels=torch.full_like(t.labels, NO_CLASS)) for t in targets]
    matcher = Matcher(num_points=POINTS)
    pairs = matcher(output.mask_logits, output.class_logits, truth_of(targets))
    found = set(zip(*(side.tolist() for side in pairs), strict=True))
    assert found == {(0, 4, 0), (0, 0, 1), (0, 2, 2), (1, 5, 3), (1, 1, 4)}


def test_classes_have_no_say_for_a_mask_without_class():
    mask, smaller = planted.boxes((0, 0, 4, 4), (0, 0, 4, 3)).split(1)
    # The second query's mask is worse, but it is sure that there is no object.
    shown = torch.cat([mask, smaller])[None]
    mask_logits = torch.where(shown, planted.SURE, -planted.SURE)
    class_logits = torch.zeros(1, 2, planted.K + 1)
    class_logits[0, 0, 1] = class_logits[0, 1, -1] = planted.SURE
    truth = truth_of([planted.target_of(mask, [NO_CLASS])])
    pairs = Matcher(class_cost=100.0, num_points=POINTS)(mask_logits, class_logits, truth)
    assert pairs.query.tolist() == [0]


def test_matching_survives_infinite_and_broken_logits():
    output = planted.random_output()
    output.mask_logits.data[0, 1] = float("nan")
    output.mask_logits.data[1, 2] = float("inf")
    truth = truth_of(planted.two_targets())
    pairs = Matcher(num_points=POINTS)(output.mask_logits, output.class_logits, truth)
    assert sorted(pairs.mask.tolist()) == [0, 1, 2, 3, 4]


def test_all_outputs_matched_at_once_have_the_pairs_of_one_after_the_other():
    every = planted.random_output(num_aux=2)
    outputs = (*every.aux, every)
    truth = truth_of(planted.two_targets())
    matcher = Matcher(num_points=POINTS)
    torch.manual_seed(0)
    points = [matcher.draw(truth) for _ in outputs]
    masks, classes = [o.mask_logits for o in outputs], [o.class_logits for o in outputs]
    together = matcher.match(masks, classes, points, truth)
    torch.manual_seed(0)
    for output, pairs in zip(outputs, together.pairs, strict=True):
        alone = matcher(output.mask_logits, output.class_logits, truth)
        assert all(map(torch.equal, alone, pairs))
    assert (together.largest_label, together.any_ignored) == (3, False)


def test_the_host_learns_what_only_the_device_knew():
    targets = planted.two_targets(label_outlier=True)
    targets[1].ignore[0, 31] = True  # one pixel of one image
    output, truth = planted.random_output(outlier_class=True), truth_of(targets)
    matcher = Matcher(num_points=POINTS)
    found = matcher.match([output.mask_logits], [output.class_logits], [matcher.draw(truth)], truth)
    assert (found.largest_label, found.any_ignored) == (planted.K, True)
