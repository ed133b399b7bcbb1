"""Counts of pixels and their metrics against scikit-learn, hand-worked cases and brute force."""

from __future__ import annotations

import itertools
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, roc_auc_score

from eomt_exp.evaluator.components import ComponentCounts
from eomt_exp.evaluator.keys import NUM_PAGES, PAGE_BITS, to_keys, to_score
from eomt_exp.evaluator.metrics import of_pixels
from eomt_exp.evaluator.pixel import PixelCounts
from tests.oracle import SCORES, contents, count, draw, noise, other_definitions, ranked, same

Image = tuple[np.ndarray, np.ndarray]  # scores and labels


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SCORES)
def test_agrees_with_scikit_learn_and_ap_bound_holds_even_with_few_bins(
    name: str, seed: int
) -> None:
    scores, labels = draw(name, seed)
    found = count(scores, labels, bits=22).results()
    expected = ranked(scores, labels) | other_definitions(scores, labels)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4), key
    for bound in (found, count(scores, labels, bits=17).results()):
        assert abs(bound["ap"] - expected["ap"]) <= bound["ap_bound"] + 1e-12


def test_ap_bound_is_worth_something() -> None:
    coarse, fine = (count(*draw("gaussian"), bits).results()["ap_bound"] for bits in (17, 22))
    assert 0 < 5 * fine < coarse < 1e-3
    assert fine < 1e-5
    exact = count(*draw("tiny_range"), bits=22).results()  # every float has its bin
    assert exact["ap_bound"] == 0


@pytest.mark.parametrize("name", ["gaussian", "saturated_sigmoid"])
def test_half_precision_scores_are_counted_exactly_and_the_bound_says_so(name: str) -> None:
    scores, labels = draw(name)
    halves = scores.astype(np.float16).astype(np.float32)
    counts = count(halves, labels, bits=17)
    assert counts.results()["ap_bound"] == 0
    assert counts.results()["ap"] == pytest.approx(ranked(halves, labels)["ap"], abs=1e-14)
    counts.merge(count([np.nextafter(np.float32(0.7), np.float32(1))], [1], bits=17))
    assert counts.results()["ap_bound"] > 0  # that score may share its bin


def test_memory_is_bounded_and_well_used() -> None:
    for name in ("gaussian", "large_magnitudes", "saturated_sigmoid"):
        bins = count(*draw(name, 0), bits=18)._used()
        assert 2**17 < bins.shape[1] <= 2**18
    for bits in (16, 29):
        with pytest.raises(ValueError, match="from 17 to 28"):
            PixelCounts(bits)


def test_keys_sort_as_floats_do() -> None:
    corners = np.float32([0, 1e-45, 1e-38, 2**-24, 0.25, 0.5, 0.75, 1, 2, 1e30, 3.4e38])
    near = [corners]
    for _ in range(40):  # the floats beside the corners, on both sides
        near = [np.nextafter(near[0], np.float32(-1)), *near, np.nextafter(near[-1], np.float32(9))]
    rng = np.random.default_rng(0)
    wide = np.exp(20 * rng.standard_normal(2000)) * rng.choice([-1, 1], 2000)
    floats = np.concatenate([*near, -corners, *(-n for n in near), wide, rng.random(2000)])
    floats = np.unique(np.append(floats, [-np.inf, np.inf]).astype(np.float32))
    keys = to_keys(floats)
    assert (np.diff(keys) > 0).all()
    assert keys.min() >= 0
    assert keys.max() >> PAGE_BITS < NUM_PAGES
    assert [to_score(int(key)) for key in keys] == floats.tolist()
    between = [to_score(int(key) + 1) for key in keys[:-1]]  # the lowest float from there on
    assert (floats[:-1] < between).all()
    assert (between <= floats[1:]).all()


def test_hand_worked_ranking() -> None:
    # 0.9 + | 0.8 - | 0.7 + + - (a tie) | 0.1 -
    found = count([0.9, 0.8, 0.7, 0.7, 0.7, 0.1], [1, 0, 1, 1, 0, 0]).results()
    expected = {
        "ap": 1 / 3 * 1 + 2 / 3 * 3 / 5,
        "auroc": (3 + 2 * 1.5) / 9,  # 0.7 beats 0.1, and half of its tie
        "fpr95": 2 / 3,
        "tie_fraction": 2 / 3,
        "f1_star": 6 / 8,
        "f1_threshold": np.float32(0.7),
        "f1_margin": np.float32(0.7) - np.float32(0.1),
        "ap_trapezoid": 1 / 3 + 2 / 3 * (1 / 2 + 3 / 5) / 2,
        "fpr95_interpolated": 1 / 3 + (0.95 - 1 / 3) / (2 / 3) / 3,
        "fpr95_nearest": 2 / 3,
        **dict.fromkeys(("tpr_at_fpr05", "tpr_at_fpr01", "tnr_at_tpr95"), 1 / 3),
        "positives": 3,
        "negatives": 3,
        "ap_bound": 0,
    }
    assert found == pytest.approx(expected)


def test_fpr95_takes_a_recall_of_exactly_95_percent() -> None:
    positives = np.arange(20, 0, -1.0)  # 20 .. 1: the 19th brings recall to .95
    scores, labels = np.append(positives, 1.5), np.append(np.ones(20), 0)
    assert count(scores, labels).results()["fpr95"] == 0
    assert count(scores[1:], labels[1:]).results()["fpr95"] == 1  # 18 of 19 is not enough


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, np.inf, -np.inf])
def test_constant_scores_are_chance(value: float) -> None:
    found = count(np.full(100, value), np.arange(100) < 10).results()
    assert found["ap"] == pytest.approx(0.1)
    assert (found["auroc"], found["fpr95"], found["tie_fraction"]) == (0.5, 1, 1)
    assert (found["tpr_at_fpr05"], found["tpr_at_fpr01"]) == (0, 0)  # no threshold has a low FPR
    assert found["f1_threshold"] == np.float32(value)


@pytest.mark.parametrize("bits", [17, 19])
def test_infinities_rank_beyond_every_number(bits: int) -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(5000) * np.exp(10 * rng.standard_normal(5000))  # many pages
    scores = np.concatenate([[np.inf, 3.4e38, -3.4e38, -np.inf], wide])
    labels = np.concatenate([[1, 0, 0, 1], np.zeros(5000)])
    assert count(scores, labels, bits).results()["ap"] == pytest.approx(0.5 + 0.5 * 2 / 5004)
    assert count(scores, np.arange(5004) > 0, bits).results()["f1_threshold"] == -np.inf


def test_minus_zero_ties_with_zero_and_float64_beyond_float32_is_infinite() -> None:
    assert same(count([-0.0, 0.0, -0.0, 0.0], [1, 0, 0, 1]), count([0.0] * 4, [1, 0, 0, 1]))
    assert count([-0.0, 0.0], [1, 0]).results()["auroc"] == 0.5
    assert same(count([1e300, 1.0], [1, 0]), count([np.inf, 1.0], [1, 0]))


@pytest.mark.parametrize(
    "name", ["gaussian", "saturated_sigmoid", "six_levels", "rba", "perfect", "inverted"]
)
def test_f1_star_against_brute_force(name: str) -> None:
    scores, labels = draw(name)
    scores, labels = scores[:800], labels[:800] == 1
    hits = [(scores >= t) & labels for t in np.unique(scores)]
    flagged = [(scores >= t).sum() for t in np.unique(scores)]
    # 2 TP + FP + FN = flagged + positives
    best = max(2 * h.sum() / (f + labels.sum()) for h, f in zip(hits, flagged, strict=True))
    found = count(scores, labels).results()
    assert found["f1_star"] == pytest.approx(best)
    at_threshold = scores >= np.float32(found["f1_threshold"])
    reached = 2 * (at_threshold & labels).sum() / (at_threshold.sum() + labels.sum())
    assert reached == pytest.approx(best)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], [255, 255], [255, 0], []])
def test_metrics_without_a_positive_or_a_negative_are_nan(labels: list[int]) -> None:
    counts = count([0.1, 0.2][: len(labels)], labels)
    found = counts.results()
    assert all(np.isnan(found[key]) for key in [*of_pixels(None), "ap_bound", "f1_threshold"])
    assert (found["positives"], found["negatives"]) == (labels.count(1), labels.count(0))
    assert all(len(column) == 0 for column in counts.curves())
    assert np.isnan([row[1:] for row in counts.tnr_table()]).all()
    reached = counts.at_threshold(0.15)
    assert np.isnan([reached["precision"], reached["f1"]]).all()


def test_curves_are_thinned_points_of_the_true_curve() -> None:
    scores, labels = draw("gaussian")
    curves = count(scores, labels).curves(points=100)
    assert 50 <= len(curves.recall) <= 110
    assert (curves.tpr[0], curves.fpr[0], curves.tpr[-1], curves.fpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(curves.recall) >= 0).all()
    assert (np.diff(curves.fpr) >= 0).all()
    assert max(np.diff(curves.recall).max(), np.diff(curves.fpr).max()) < 0.03
    assert auc(curves.fpr, curves.tpr) == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    share = labels.mean()
    precision = curves.recall * share / (curves.recall * share + curves.fpr * (1 - share) + 1e-30)
    np.testing.assert_allclose(curves.precision[1:], precision[1:])


def shards_of(name: str) -> list[Image]:
    """Shards of very different ranges of scores, hence of different resolution."""
    scores, labels = draw(name, 0)
    return [(scores[part], labels[part]) for part in np.array_split(np.argsort(scores), 5)]


KINDS = {  # how to make empty counts, and shards to count
    **{f"{name}, {bits} bits": (partial(PixelCounts, bits), shards_of(name))
       for name in ("gaussian", "tiny_range_and_zeros", "large_magnitudes") for bits in (17, 19)},
    **{f"components from {sizes}": (partial(ComponentCounts, 0.5, *sizes),
                                    [noise(seed) for seed in range(5)])
       for sizes in ((1, 1), (5, 3))},
}  # fmt: skip
each_kind = pytest.mark.parametrize(("new", "shards"), KINDS.values(), ids=KINDS)
CLASSES = [partial(PixelCounts, 17), partial(ComponentCounts, 0.5, 1, 1)]
each_class = pytest.mark.parametrize("new", CLASSES, ids=["pixels", "components"])


def counted(counts: Any, shards: list[Image]) -> Any:
    for shard in shards:
        counts.update(*shard)
    return counts


def details(counts: Any) -> object:
    """What `same` does not look at."""
    if isinstance(counts, ComponentCounts):
        return counts.by_size([2, 5])
    return counts.tnr_table(), [part.tolist() for part in counts.histogram()]


@each_kind
def test_shards_in_any_order_equal_one_run(new: Any, shards: list[Image]) -> None:
    whole = counted(new(), shards)
    parts = [new(), *(counted(new(), [shard]) for shard in shards)]
    before = contents(parts[2])
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 80):
        total = new()
        for index in order:
            total.merge(parts[index])
        assert same(total, whole)
        assert repr(details(total)) == repr(details(whole))
    assert same(counted(new(), shards[::-1]), whole)
    assert repr(contents(parts[2])) == repr(before)  # merging only reads


@each_kind
def test_merging_with_itself_doubles(new: Any, shards: list[Image]) -> None:
    counts = counted(new(), shards)
    counts.merge(counts)
    assert same(counts, counted(new(), shards * 2))


def test_more_pixels_than_32_bits_count_are_counted_in_64() -> None:
    shards = shards_of("gaussian")[:2]
    many = counted(PixelCounts(19), shards[:1])
    many._pixels = 2**31 - 10  # as if the others were in bins of their own
    many.update(*shards[1])
    assert many._bins.dtype == np.int64
    assert same(many, counted(PixelCounts(19), shards))


def test_merging_with_other_rules_is_refused() -> None:
    with pytest.raises(ValueError, match="bits=17"):
        PixelCounts(19).merge(PixelCounts(17))
    for rules in ((0.25, 1, 1), (0.5, 2, 1), (0.5, 1, 2)):
        with pytest.raises(ValueError, match=r"min_predicted.*0\.5, 1, 1"):
            ComponentCounts(0.5, 1, 1).merge(ComponentCounts(*rules))


@each_kind
def test_counts_come_from_another_process_whole_and_go_on_counting(
    new: Any, shards: list[Image]
) -> None:
    counts = counted(new(), shards[:2])
    resumed = pickle.loads(pickle.dumps(counts))
    assert same(resumed, counts)
    assert same(counted(resumed, shards[2:]), counted(new(), shards))
    assert same(counts, counted(new(), shards[:2]))  # they share no memory


@each_class
def test_scores_at_void_never_count_and_void_may_be_another_label(new: Any) -> None:
    scores, labels = noise(0)
    is_void, expected = labels == 255, counted(new(), [(scores, labels)])
    for at_void in (np.nan, np.inf, -np.inf, -1e30):
        assert same(counted(new(), [(np.where(is_void, at_void, scores), labels)]), expected)
    assert same(counted(new(void=7), [(scores, np.where(is_void, 7, labels))]), expected)
    if isinstance(expected, PixelCounts):
        assert same(counted(new(), [(scores[~is_void], labels[~is_void])]), expected)


@each_class
def test_tensors_and_arrays_are_alike(new: Any) -> None:
    scores, labels = noise(0)
    half = torch.from_numpy(scores).bfloat16()
    counts = counted(new(), [(half.requires_grad_(), torch.from_numpy(labels).long())])
    arrays = half.detach().float().numpy(), labels
    assert same(counts, counted(new(), [arrays]))
    assert same(counts, counted(new(), [tuple(map(np.asfortranarray, arrays))]))
    if isinstance(counts, PixelCounts):  # in any shape and order
        assert same(counts, counted(new(), [tuple(a[None, None, :, ::-1] for a in arrays)]))


@each_class
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[np.nan, 1.0, np.nan, np.nan]], [[0, 1, 1, 255]], "2 of 3 scores are NaN"),
        ([[0.0, 1.0]], [[0, 2]], r"\[2\]"),
        ([[0.0, 1.0]], [[-1, 1]], r"\[-1\]"),
        ([[0.0, 1.0]], [[0.0, 0.5]], "float64"),
        ([[0.0, 1.0, 2.0]], [[0, 1]], r"\(1, 3\).*\(1, 2\)"),
    ],
)
def test_refuses_and_counts_nothing(new: Any, scores: list, labels: list, message: str) -> None:
    counts = counted(new(), [noise(0)])
    with pytest.raises(ValueError, match=message):
        counts.update(np.array(scores), np.array(labels))
    assert same(counts, counted(new(), [noise(0)]))
