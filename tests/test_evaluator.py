"""Pixel and semantic metrics against scikit-learn, hand-worked cases and brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    auc,
    average_precision_score,
    confusion_matrix,
    jaccard_score,
    roc_auc_score,
    roc_curve,
)

from eomt_exp.evaluator.keys import NUM_PAGES, PAGE_BITS, to_keys, to_score
from eomt_exp.evaluator.pixel import METRICS, PixelCounts
from eomt_exp.evaluator.semantic import ConfusionMatrix

SIZE = 30_000
RANKED = ("ap", "auroc", "fpr95")

Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


# Each draws scores for labels y, in several shapes that real scorers produce.
SCORES: dict[str, Draw] = {
    "uniform": lambda r, y: r.random(y.size) + 0.3 * y,
    "gaussian": lambda r, y: r.standard_normal(y.size) + 1.5 * y,
    "no_skill": lambda r, y: r.standard_normal(y.size),
    "inverted": lambda r, y: r.standard_normal(y.size) - y,
    "saturated_sigmoid": lambda r, y: sigmoid(12 * r.standard_normal(y.size) + 15 * y),
    "saturated_confidence": lambda r, y: -sigmoid(12 + 4 * r.standard_normal(y.size) - 4 * y),
    "seven_levels": lambda r, y: np.round(3 * sigmoid(r.standard_normal(y.size) + y) * 2) / 6,
    "two_levels": lambda r, y: (r.random(y.size) + 0.4 * y > 0.7).astype(float),
    "float16": lambda r, y: sigmoid(r.standard_normal(y.size) + 2 * y).astype(np.float16),
    "float32": lambda r, y: sigmoid(3 * r.standard_normal(y.size) + 2 * y).astype(np.float32),
    "tiny_range": lambda r, y: 0.5 + 1e-4 * (r.standard_normal(y.size) + y),
    "tinier_range": lambda r, y: 0.5 + 2e-7 * (r.standard_normal(y.size) + y),
    "tiny_range_and_zeros": lambda r, y: (
        (0.5 + 1e-4 * (r.standard_normal(y.size) + y)) * (r.random(y.size) > 0.1)
    ),
    "rba": lambda r, y: -9 * sigmoid(r.standard_normal(y.size) - 2 * y),
    "large_magnitudes": lambda r, y: np.exp(12 * r.standard_normal(y.size) + 10 * y),
    "denormals": lambda r, y: 1e-42 * (r.standard_normal(y.size) + y),
}


def draw(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(SIZE) < (0.02, 0.4)[seed % 2]).astype(np.uint8)
    return SCORES[name](rng, labels), labels


def count(scores: object, labels: object, bits: int = 19) -> PixelCounts:
    counts = PixelCounts(bits)
    counts.update(np.asarray(scores), np.asarray(labels, np.uint8))
    return counts


def oracle(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    scores = scores.astype(np.float32)
    # Intermediate points matter: the first with TPR >= .95 may lie on a straight piece.
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return {
        "ap": average_precision_score(labels, scores),
        "auroc": roc_auc_score(labels, scores),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
    }


def same(left: PixelCounts, right: PixelCounts) -> bool:
    mine, theirs = left.state_dict(), right.state_dict()
    equal = all(torch.equal(mine[name], theirs[name]) for name in mine)
    return equal and repr(left.results()) == repr(right.results())  # repr, for NaN equals NaN


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SCORES)
def test_agrees_with_scikit_learn(name: str, seed: int) -> None:
    scores, labels = draw(name, seed)
    found, expected = count(scores, labels, bits=22).results(), oracle(scores, labels)
    for key in RANKED:
        assert found[key] == pytest.approx(expected[key], abs=1e-4), key
    assert abs(found["ap"] - expected["ap"]) <= found["ap_bound"] + 1e-12


@pytest.mark.parametrize("name", SCORES)
def test_ap_bound_holds_even_with_few_bins(name: str) -> None:
    scores, labels = draw(name, 1)
    found = count(scores, labels, bits=17).results()
    assert abs(found["ap"] - oracle(scores, labels)["ap"]) <= found["ap_bound"] + 1e-12


def test_ap_bound_is_worth_something() -> None:
    scores, labels = draw("gaussian", 1)
    coarse, fine = (count(scores, labels, bits).results()["ap_bound"] for bits in (17, 22))
    assert 0 < 5 * fine < coarse < 1e-3
    assert fine < 1e-5
    assert (
        count(*draw("tiny_range", 1), bits=22).results()["ap_bound"] == 0
    )  # every float has its bin


def test_memory_is_bounded_and_well_used() -> None:
    for name in ("gaussian", "large_magnitudes", "saturated_sigmoid"):
        bins = count(*draw(name, 0), bits=18).state_dict()["bins"]
        assert 2**17 < bins.shape[0] * bins.shape[1] <= 2**18


def test_keys_sort_as_floats_do() -> None:
    corners = np.float32([0, 1e-45, 1e-38, 2**-24, 0.25, 0.5, 0.75, 1, 2, 1e30, 3.4e38])
    near = [corners]
    for _ in range(40):  # neighbours of the corners on both sides
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
    assert found["ap"] == pytest.approx(1 / 3 * 1 + 2 / 3 * 3 / 5)
    assert found["auroc"] == pytest.approx((3 + 2 * 1.5) / 9)  # 0.7 beats 0.1, and half of its tie
    assert found["fpr95"] == pytest.approx(2 / 3)
    assert found["tie_fraction"] == pytest.approx(2 / 3)
    assert found["f1_star"] == pytest.approx(6 / 8)
    assert found["f1_threshold"] == pytest.approx(0.7)
    assert (found["positives"], found["negatives"]) == (3, 3)
    assert found["ap_bound"] == 0


def test_fpr95_takes_a_recall_of_exactly_95_percent() -> None:
    positives = np.arange(20, 0, -1.0)  # 20 .. 1: the 19th brings recall to .95
    scores, labels = np.append(positives, 1.5), np.append(np.ones(20), 0)
    assert count(scores, labels).results()["fpr95"] == 0
    assert count(scores[1:], labels[1:]).results()["fpr95"] == 1  # 18 of 19 is not enough


def test_perfect_and_worst_rankings() -> None:
    labels = np.repeat([0, 1], 50)
    best, worst = (count(s, labels).results() for s in (np.arange(100.0), -np.arange(100.0)))
    assert (best["ap"], best["auroc"], best["fpr95"], best["f1_star"]) == (1, 1, 0, 1)
    assert best["f1_threshold"] == 50
    assert (worst["auroc"], worst["fpr95"]) == (0, 1)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, np.inf, -np.inf])
def test_constant_scores_are_chance(value: float) -> None:
    found = count(np.full(100, value), np.arange(100) < 10).results()
    assert found["ap"] == pytest.approx(0.1)
    assert (found["auroc"], found["fpr95"], found["tie_fraction"]) == (0.5, 1, 1)
    assert found["f1_threshold"] == np.float32(value)


@pytest.mark.parametrize("bits", [17, 19])
def test_infinities_rank_beyond_every_number(bits: int) -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(5000) * np.exp(10 * rng.standard_normal(5000))  # many pages
    scores = np.concatenate([[np.inf, 3.4e38, -3.4e38, -np.inf], wide])
    labels = np.concatenate([[1, 0, 0, 1], np.zeros(5000)])
    assert count(scores, labels, bits).results()["ap"] == pytest.approx(0.5 + 0.5 * 2 / 5004)
    assert count(scores, np.arange(5004) > 0, bits).results()["f1_threshold"] == -np.inf


def test_minus_zero_ties_with_zero() -> None:
    assert same(count([-0.0, 0.0, -0.0, 0.0], [1, 0, 0, 1]), count([0.0] * 4, [1, 0, 0, 1]))
    assert count([-0.0, 0.0], [1, 0]).results()["auroc"] == 0.5


def test_float64_beyond_float32_is_infinite() -> None:
    assert same(count([1e300, 1.0], [1, 0]), count([np.inf, 1.0], [1, 0]))


@pytest.mark.parametrize("name", ["gaussian", "saturated_sigmoid", "seven_levels", "rba"])
def test_f1_star_against_brute_force(name: str) -> None:
    scores, labels = draw(name, 1)
    scores, labels = scores[:800].astype(np.float32), labels[:800] == 1
    hits = [(scores >= t) & labels for t in np.unique(scores)]
    flagged = [(scores >= t).sum() for t in np.unique(scores)]
    best = max(
        2 * h.sum() / (f + labels.sum()) for h, f in zip(hits, flagged, strict=True)
    )  # 2 TP + FP + FN = flagged + positives
    found = count(scores, labels).results()
    assert found["f1_star"] == pytest.approx(best)
    at_threshold = scores >= np.float32(found["f1_threshold"])
    reached = 2 * (at_threshold & labels).sum() / (at_threshold.sum() + labels.sum())
    assert reached == pytest.approx(best)


@pytest.mark.parametrize("bits", [17, 19])
@pytest.mark.parametrize("name", ["gaussian", "tiny_range_and_zeros", "large_magnitudes"])
def test_shards_in_any_order_equal_one_run(name: str, bits: int) -> None:
    scores, labels = draw(name, 0)
    whole = count(scores, labels, bits)
    order = np.argsort(scores)  # shards of very different ranges, hence of different resolution
    parts = [count(scores[p], labels[p], bits) for p in np.array_split(order, 5)]
    before = parts[1].state_dict()
    for sequence in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]):
        total = PixelCounts(bits)
        for index in sequence:
            total.merge(parts[index])
        assert same(total, whole)
    assert same(parts[0] + (parts[1] + parts[2]) + (parts[4] + parts[3]), whole)
    assert torch.equal(before["bins"], parts[1].state_dict()["bins"])  # merging only reads
    streamed = PixelCounts(bits)
    for part in np.array_split(order[::-1], 7):
        streamed.update(scores[part], labels[part])
    assert same(streamed, whole)


def test_merging_with_itself_doubles_and_with_nothing_changes_nothing() -> None:
    scores, labels = draw("gaussian", 0)
    counts = count(scores, labels)
    assert same(counts + PixelCounts(19), counts)
    assert same(counts + counts, count(np.tile(scores, 2), np.tile(labels, 2)))
    counts.merge(counts)
    assert counts.results()["positives"] == 2 * labels.sum()


def test_merge_refuses_other_bits() -> None:
    with pytest.raises(ValueError, match="bits=17"):
        PixelCounts(19).merge(PixelCounts(17))


def test_state_survives_a_file_and_goes_on_counting(tmp_path) -> None:
    scores, labels = draw("gaussian", 0)
    half = SIZE // 2
    torch.save(count(scores[:half], labels[:half]).state_dict(), tmp_path / "counts.pt")
    resumed = PixelCounts(17)  # the file knows the bits
    resumed.load_state_dict(torch.load(tmp_path / "counts.pt", weights_only=True))
    resumed.update(scores[half:], labels[half:])
    assert same(resumed, count(scores, labels))
    resumed.load_state_dict(PixelCounts(19).state_dict())
    assert resumed.results()["positives"] == 0


def test_state_is_a_snapshot() -> None:
    counts = count([1.0, 0.0], [1, 0])
    before = counts.state_dict()["bins"].sum()
    state = counts.state_dict()
    counts.update(np.ones(5), np.ones(5, np.uint8))
    assert state["bins"].sum() == before


@pytest.mark.parametrize("at_void", [np.nan, np.inf, -1e30])
def test_scores_at_void_never_count(at_void: float) -> None:
    scores, labels = draw("gaussian", 0)
    labels[::3] = 255
    seen = labels != 255
    changed = np.where(seen, scores, at_void)
    assert same(count(changed, labels), count(scores, labels))
    assert same(count(changed, labels), count(scores[seen], labels[seen]))


def test_tensors_arrays_and_shapes_are_alike() -> None:
    scores = torch.rand(2, 1, 20, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = (scores.float() > 0.6).to(torch.uint8)
    counts = PixelCounts(19)
    counts.update(scores.requires_grad_(), labels.long())
    array = scores.detach().float().numpy()
    assert same(counts, count(array[..., ::-1], labels.numpy()[..., ::-1]))
    assert counts.results()["ap"] == 1


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], [255, 255], [255, 0], []])
def test_metrics_without_a_positive_or_a_negative_are_nan(labels: list[int]) -> None:
    counts = count([0.1, 0.2][: len(labels)], labels)
    found = counts.results()
    assert all(np.isnan(found[key]) for key in METRICS)
    assert (found["positives"], found["negatives"]) == (labels.count(1), labels.count(0))
    assert all(len(column) == 0 for column in counts.curves())


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([np.nan, 1.0, np.nan, np.nan], [0, 1, 1, 255], "2 of 3 scores are NaN"),
        ([0.0, 1.0], [0, 2], r"\[2\]"),
        ([0.0, 1.0], [-1, 1], r"\[-1\]"),
        ([0.0, 1.0], [0.0, 0.5], "float64"),
        ([0.0, 1.0, 2.0], [0, 1], r"\(3,\).*\(2,\)"),
    ],
)
def test_refuses_and_counts_nothing(scores: list, labels: list, message: str) -> None:
    counts = count([0.5, 0.6], [0, 1])
    with pytest.raises(ValueError, match=message):
        counts.update(np.array(scores), np.array(labels))
    assert same(counts, count([0.5, 0.6], [0, 1]))


@pytest.mark.parametrize("bits", [16, 29])
def test_refuses_a_size_it_cannot_keep(bits: int) -> None:
    with pytest.raises(ValueError, match="from 17 to 28"):
        PixelCounts(bits)


def test_curves_are_thinned_points_of_the_true_curve() -> None:
    scores, labels = draw("gaussian", 1)
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


def semantic_case(seed: int, num_classes: int = 19) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, (3, 40, 50)).astype(np.uint8)
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 19, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = 255
    return predicted, labels


def test_confusion_matrix_agrees_with_scikit_learn() -> None:
    predicted, labels = semantic_case(0)
    matrix = ConfusionMatrix(19)
    for guess, truth in zip(predicted, labels, strict=True):  # accumulated, not averaged
        matrix.update(torch.from_numpy(guess), truth)
    seen = labels != 255
    truth, guess = labels[seen], predicted[seen]
    np.testing.assert_array_equal(matrix.counts, confusion_matrix(truth, guess))
    found = matrix.results()
    expected = jaccard_score(truth, guess, average=None)
    assert found["miou"] == pytest.approx(expected.mean())
    np.testing.assert_allclose([found[f"iou/{c}"] for c in range(19)], expected)
    recalls = [(guess[truth == c] == c).mean() for c in range(19)]
    assert found["macc"] == pytest.approx(np.mean(recalls))
    assert found["aacc"] == pytest.approx((truth == guess).mean())


def test_hand_worked_confusion() -> None:
    matrix = ConfusionMatrix(4)  # class 2 is only guessed, class 3 never occurs
    matrix.update(np.array([0, 0, 1, 2, 9]), np.array([0, 1, 1, 1, 255], np.uint8))
    found = matrix.results()
    assert [found[f"iou/{c}"] for c in range(3)] == pytest.approx([1 / 2, 1 / 3, 0])
    assert np.isnan(found["iou/3"])
    assert found["miou"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert found["macc"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["aacc"] == 0.5


def test_confusion_shards_add_up() -> None:
    whole, total = ConfusionMatrix(19), ConfusionMatrix(19)
    for seed in range(3):
        part = ConfusionMatrix(19)
        part.update(*semantic_case(seed))
        whole.update(*semantic_case(seed))
        total.merge(part)
    np.testing.assert_array_equal(whole.counts, total.counts)
    with pytest.raises(ValueError, match="3 classes into 19"):
        total.merge(ConfusionMatrix(3))


def test_confusion_of_nothing_is_nan() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([0, 7]), np.array([255, 255], np.uint8))
    assert all(np.isnan(value) for value in matrix.results().values())


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([0, 3], [0, 1], r"predicted holds \[3\]"),
        ([0, -1], [0, 1], r"predicted holds \[-1\]"),
        ([0, 1], [0, 7], r"labels holds \[7\]"),
        ([0, 1, 1], [0, 1], r"\(3,\).*\(2,\)"),
        ([0.2, 1.0], [0, 1], "argmax"),
    ],
)
def test_confusion_refuses_and_counts_nothing(predicted: list, labels: list, message: str) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(predicted), np.array(labels, np.uint8))
    assert not matrix.counts.any()


@pytest.mark.parametrize("num_classes", [0, 256])
def test_confusion_refuses_a_count_of_classes(num_classes: int) -> None:
    with pytest.raises(ValueError, match="num_classes"):
        ConfusionMatrix(num_classes)
