"""Operating points, other code bases' definitions at their corners, and histograms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from eomt_exp.evaluator.keys import first_key, to_keys
from eomt_exp.evaluator.pixel import PixelCounts
from tests.oracle import SIZE, count, draw

SHAPES = (
    *("gaussian", "inverted", "perfect", "saturated_sigmoid"),
    *("float16", "six_levels", "hard_tail", "constant"),
)


def test_nearest_recall_may_fall_short_of_95_percent() -> None:
    scores, labels = np.append(np.arange(16, 0, -1.0), 1.0), np.append(np.ones(16), 0)
    found = count(scores, labels).results()  # 15 of 16 is .9375, nearer to .95 than 1
    assert (found["fpr95_nearest"], found["fpr95"]) == (0, 1)


def test_recall_of_exactly_95_percent_interpolates_to_the_end_of_the_level_run() -> None:
    positives = np.arange(20, 0, -1.0)
    scores, labels = np.append(positives, [1.5, 1.4]), np.append(np.ones(20), [0, 0])
    fpr, tpr, _ = roc_curve(labels, scores)
    expected = np.interp(0.95, tpr, fpr)
    assert count(scores, labels).results()["fpr95_interpolated"] == expected == 1


@pytest.mark.parametrize("name", SHAPES)
def test_tnr_table_stands_at_the_first_threshold_that_reaches_each_tpr(name: str) -> None:
    scores, labels = draw(name)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    for wanted, tnr, threshold in count(scores, labels, 22).tnr_table((0.5, 0.95, 1.0)):
        assert tnr == pytest.approx(1 - fpr[np.argmax(tpr >= wanted)], abs=1e-4)
        positives = scores[labels == 1]
        assert (positives >= threshold).mean() >= wanted
        above = positives[positives > threshold + 1e-3]  # every bin is narrower
        assert len(above) < wanted * len(positives)


def test_tnr_table_has_the_usual_rows() -> None:
    counts = count(*draw("gaussian"))
    table = counts.tnr_table()
    assert [row[0] for row in table] == [0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99]
    assert table[5][1] == counts.results()["tnr_at_tpr95"]
    assert (np.diff([row[1:] for row in table], axis=0) < 0).all()  # both fall


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.3, 0.999])
@pytest.mark.parametrize("name", ["six_levels", "float16", "constant", "hard_tail"])
def test_threshold_at_fpr_is_the_lowest_float_that_holds_it(name: str, fpr: float) -> None:
    scores, _ = draw(name)
    scores = np.round(scores * 256) / 256  # so that each bin is one score
    counts = count(scores, np.zeros(SIZE))  # no anomaly at all
    threshold = counts.threshold_at_fpr(fpr)
    assert (scores >= threshold).mean() <= fpr
    assert (scores >= threshold - 2**-9).mean() > fpr
    assert counts.at_threshold(threshold)["fpr"] == (scores >= threshold).mean()


def test_threshold_at_fpr_is_exact_to_one_float_where_bins_are() -> None:
    counts = count([0.5, 0.6, 0.7, 0.7], [0, 0, 0, 0])
    beyond = {0.0: 0.7, 0.49: 0.7, 0.5: 0.6, 0.75: 0.5}
    for fpr, failing in beyond.items():
        expected = np.nextafter(np.float32(failing), np.float32(1))
        assert counts.threshold_at_fpr(fpr) == expected, fpr
    assert counts.threshold_at_fpr(1.0) == -np.inf


def test_threshold_at_fpr_ignores_anomalies() -> None:
    scores, labels = draw("gaussian")
    alone = count(scores[labels == 0], labels[labels == 0], 19)
    mixed = count(scores, labels, 19)
    for fpr in (0.01, 0.05):
        assert mixed.threshold_at_fpr(fpr) == pytest.approx(alone.threshold_at_fpr(fpr), abs=1e-3)
        reached = mixed.at_threshold(mixed.threshold_at_fpr(fpr))["fpr"]
        assert fpr - 1e-3 < reached <= fpr


def test_no_threshold_stops_infinite_scores() -> None:
    counts = count([np.inf, np.inf, 0.0, 1.0], [0, 0, 0, 0])
    assert np.isnan(counts.threshold_at_fpr(0.4))
    assert counts.threshold_at_fpr(0.5) == np.nextafter(np.float32(1), np.float32(2))
    assert np.isnan(PixelCounts(17).threshold_at_fpr(0.05))
    assert np.isnan(count([0.5], [1], 17).threshold_at_fpr(0.05))


@pytest.mark.parametrize("name", ["gaussian", "float16", "six_levels", "saturated_sigmoid"])
def test_at_threshold_against_brute_force(name: str) -> None:
    scores, labels = draw(name)
    counts = count(scores, labels)
    best = counts.results()
    given_out = [best["f1_threshold"], *(row[2] for row in counts.tnr_table((0.5, 0.95)))]
    for threshold in given_out:
        found, passed = counts.at_threshold(threshold), scores >= threshold
        hits = (passed & (labels == 1)).sum()
        assert found["tpr"] == hits / labels.sum()
        assert found["fpr"] == (passed & (labels == 0)).sum() / (labels == 0).sum()
        assert found["precision"] == hits / passed.sum()
        assert found["f1"] == pytest.approx(2 * hits / (passed.sum() + labels.sum()))
    assert counts.at_threshold(given_out[0])["f1"] == best["f1_star"]


def test_at_threshold_at_the_ends() -> None:
    counts = count([0.2, 0.4, 0.4, 0.6], [0, 0, 1, 1], 17)
    assert counts.at_threshold(-np.inf)["fpr"] == 1
    assert counts.at_threshold(-1e300) == counts.at_threshold(-np.inf)
    nothing = counts.at_threshold(0.7)
    assert (nothing["tpr"], nothing["fpr"], nothing["f1"]) == (0, 0, 0)
    assert np.isnan(nothing["precision"])
    assert counts.at_threshold(1e300)["tpr"] == counts.at_threshold(np.inf)["tpr"] == 0
    assert count([0.1, 0.2], [0, 0], 17).at_threshold(0.15)["fpr"] == 0.5


def test_first_key_rounds_up_to_a_float32() -> None:
    rng = np.random.default_rng(0)
    for score in (*(rng.standard_normal(50) ** 5), 0.1, 0.7, -0.7, 1e-50, 1e300, -1e300):
        key = first_key(float(score))
        with np.errstate(over="ignore"):
            near = np.float32(score)
        floats = np.sort([np.nextafter(near, np.float32(s)) for s in (-np.inf, np.inf)] + [near])
        expected = next(f for f in floats if float(f) >= score)
        assert key == to_keys(np.array([expected]))[0]


def longest_run(scores: np.ndarray, labels: np.ndarray, least: float = 0.7) -> float:
    """MDM-F1 as Maskomaly's code computes it: thresholds i / 1000, one by one."""
    longest = run = 0
    for i in range(1001):
        found = scores >= i / 1000
        hits = (found & (labels == 1)).sum()
        is_good = 2 * hits / (found.sum() + labels.sum()) > least
        run = run + 1 if is_good else 0
        longest = max(longest, run)
    return longest / 1000


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["uniform", "saturated_sigmoid", "float16", "float32", "inverted"])
def test_the_margin_of_f1_is_the_longest_run_of_good_thresholds(name: str, seed: int) -> None:
    scores, labels = draw(name, seed)
    scores = ((scores - scores.min()) / np.ptp(scores)).astype(np.float32)
    wanted = longest_run(scores, labels)
    assert count(scores, labels, 22).results()["f1_margin"] == pytest.approx(wanted, abs=0.0021)


def test_the_margin_of_f1_by_hand() -> None:
    # F1 from above: 2/3 at 9, 4/4 at 7, 4/5 at 4, 2/3 at 0.
    scores, labels = np.array([9.0, 7.0, 4.0, 0.0]), np.array([1, 1, 0, 0])
    assert count(scores, labels).results()["f1_margin"] == 7.0  # thresholds above 0, up to 7
    assert count(scores / 10, labels).results()["f1_margin"] == pytest.approx(0.7)
    # .29 .5 .67 .8 .73 .67 .62 .57 .67 .75 -1: good above 5 up to 7, bad, good above -1 up to 1.
    scores = np.array([10.0, 9, 8, 7, 6, 5, 4, 3, 2, 1, -1])
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0])
    assert count(scores, labels).results()["f1_margin"] == 2.0  # the longest, not their sum
    assert count([0.0, 1.0], [1, 0]).results()["f1_margin"] == 0.0
    assert count([np.inf, np.inf, 0.5, -np.inf], [1, 1, 1, 0]).results()["f1_margin"] == 0.0
    assert np.isnan(count([0.5], [1]).results()["f1_margin"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.threshold_at_fpr(5), "from 0 to 1, got 5"),
        (lambda c: c.threshold_at_fpr(float("nan")), "got nan"),
        (lambda c: c.at_threshold(float("nan")), "NaN"),
        (lambda c: c.tnr_table((0.5, 95)), r"\[95\]"),
        (lambda c: c.tnr_table((0.0,)), r"\[0.0\]"),
        (lambda c: c.histogram(0), "at least 1, got 0"),
    ],
)
def test_nonsense_is_refused(call: Callable[[PixelCounts], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(count([0.1, 0.2], [0, 1], 17))


def test_histogram_agrees_with_numpy() -> None:
    scores, labels = draw("gaussian")
    edges, normal, anomaly = count(scores, labels).histogram(40)
    assert edges.shape == (41,)
    clipped = np.clip(scores, edges[0], edges[-1])
    for shares, label in ((normal, 0), (anomaly, 1)):
        expected = np.histogram(clipped[labels == label], edges)[0] / (labels == label).sum()
        np.testing.assert_allclose(shares, expected, atol=1e-3)
    ends = np.array([np.quantile(scores[labels == k], [0.001, 0.999]) for k in (0, 1)])
    assert (edges[0], edges[-1]) == pytest.approx((ends[:, 0].min(), ends[:, 1].max()), abs=0.05)


def test_histogram_shows_rare_anomalies_where_they_are() -> None:
    scores = np.append(np.random.default_rng(0).random(SIZE), [5.0, 5.0])  # 0.01 % of the pixels
    edges, normal, anomaly = count(scores, np.append(np.zeros(SIZE), [1, 1])).histogram(10)
    assert edges[-1] == 5
    assert anomaly.tolist() == [0] * 9 + [1]
    assert normal[:2].sum() == pytest.approx(1, abs=0.01)


def test_infinite_scores_are_in_the_end_bins_and_a_missing_kind_is_0() -> None:
    edges, normal, anomaly = count([-np.inf, 0.2, 0.4, np.inf], [0, 0, 1, 1]).histogram(4)
    assert np.isfinite(edges).all()
    assert (normal.tolist(), anomaly.tolist()) == ([1, 0, 0, 0], [0, 0, 0, 1])
    _, normal, anomaly = count([0.1, 0.5, 0.9], [0, 0, 0]).histogram(3)
    assert normal == pytest.approx([1 / 3] * 3)
    assert not anomaly.any()
    edges, normal, anomaly = PixelCounts(17).histogram(3)
    assert np.isfinite(edges).all()
    assert not np.any([normal, anomaly])
