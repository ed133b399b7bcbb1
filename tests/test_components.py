"""Component metrics against their definitions taken one by one, and against numbers on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import bench_components
from eomt_exp.evaluator.components import ComponentCounts, label_components
from tests import component_metrics_by_hand as by_hand
from tests.oracle import noise

# . normal   p predicted   t true   x true and predicted   v void   w void of high score
SCENES = {
    "one_hit": "........ .xxx.... .xxx.... ........",
    "one_half_hit": "........ .txxp... .txxp... ........",
    "touching_at_corners": "xx...... xx...... ..xx.... ..xx....",
    "prediction_touching_at_a_corner": "ttt..... ttt..... ...ppp.. ...ppp..",
    "split_prediction": "........ xxxttxxx xxxttxxx ........",
    "one_prediction_over_two_truths": "........ xxxpxxxx xxxpxxxx ........",
    "two_predictions_over_two_truths": "xxxpxxx. xtttttt. ........ xxpppppp",
    "chain_of_overlaps": "xxtxxpxx xxtxxpxx ........ ppp..ttt",
    "three_tenths": "xxxttttt ttppp... .....ppp ........",
    "only_false_alarms": "ppp..... ppp..ppp .....ppp ........",
    "only_misses": "ttt..... ttt..ttt .....ttt ........",
    "nothing": "........ ........ ........ ........",
    "tiny_prediction": "pp...xxx .....xxx p....... ........",
    "tiny_truth": "t....xxx .....xxx ........ t.......",
    "prediction_over_tiny_truth": "ppxp.... pppp.... ......x. ........",
    "prediction_only_on_tiny_truths": "x.x.x.x. .p.p.p.p ........ ....ttt.",
    "prediction_on_tiny_truth_first": "xx...... ........ ..xxxpp. ..xxxpp.",
    "prediction_in_void": "wwww.... wwww.... ........ ttt.....",
    "void_parts_a_prediction": "ppvwpp.. ppvwpp.. ppvwpp.. ........",
    "void_parts_a_truth": "xxvxx... xxvxx... xxvxx... ........",
    "void_beside_a_hit": "vxxxw... vxxxw... vvvvv... ........",
    "all_void": "vvvvvvvv wwwwwwww vvvvvvvv wwwwwwww",
    "whole_image": "xxxxxxxx xxxxxxxx xxxxxxxx xxxxxxxx",
    "all_but_one_pixel": "xxxxxxxx xxxxxxxx xxxxxxxx xxxxxxxp",
    "whole_image_predicted": "pppppppp ppxxxppp ppxxxppp pppppppp",
    "ring": "xxxxx... xtttx... xt.tx.pp xxxxx.pp",
}


def scene(text: str) -> by_hand.Image:
    letters = np.array([list(row) for row in text.split()])
    labels = np.isin(letters, ["t", "x"]).astype(np.uint8)
    labels[np.isin(letters, ["v", "w"])] = 255
    return np.isin(letters, ["p", "x", "w"]).astype(np.float32), labels


def count(*images: by_hand.Image, sizes: tuple[int, int] = (1, 1), threshold: float = 0.5):
    counts = ComponentCounts(threshold, *sizes)
    for scores, labels in images:
        counts.update(scores, labels)
    return counts


def assert_by_hand(images: list[by_hand.Image], sizes: tuple[int, int]) -> None:
    expected = by_hand.metrics(images, 0.5, *sizes)
    found = count(*images, sizes=sizes).results()
    assert found == pytest.approx(expected, abs=1e-12, rel=0, nan_ok=True)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (4, 3), (1, 3), (0, 0)])
@pytest.mark.parametrize("name", [*SCENES, "one mean over the components of all"])
def test_scenes_agree_with_the_definitions(name: str, sizes: tuple[int, int]) -> None:
    texts = [SCENES[name]] if name in SCENES else SCENES.values()
    assert_by_hand([scene(text) for text in texts], sizes)


@pytest.mark.parametrize("sizes", [(1, 1), (5, 3), (20, 10)])
def test_noise_agrees_with_the_definitions(sizes: tuple[int, int]) -> None:
    assert_by_hand([noise(seed) for seed in range(4)], sizes)


def test_hand_worked_overlaps() -> None:
    # Left: 8 of 12 true pixels hit, 4 predicted beside them. Right: missed. Below: false alarm.
    found = count(scene("ttxxpp.. ttxxpp.t ..xx...t ..xx..tt .......t pp......")).results()
    assert found["components_true"] == found["components_predicted"] == 2
    assert found["siou"] == pytest.approx((8 / 16 + 0) / 2)
    assert found["ppv"] == pytest.approx((8 / 12 + 0) / 2)
    # tau .25 to .5: TP 1, FN 1, FP 1. tau .55 to .65: siou fails. tau .7, .75: ppv too.
    assert found["component_f1"] == pytest.approx((6 * 2 / 4 + 5 * 0) / 11)
    # A prediction over two truths is not held against either: each truth has 6 pixels, all hit;
    # of the 2 pixels between them both unions hold 2.
    found = count(scene(SCENES["one_prediction_over_two_truths"])).results()
    assert found["siou"] == pytest.approx((6 / 8 + 8 / 10) / 2)
    assert found["ppv"] == pytest.approx(14 / 16)


def test_components_join_at_corners_and_void_parts_predictions_before_they_are_formed() -> None:
    found = count(scene(SCENES["touching_at_corners"])).results()
    assert (found["components_true"], found["components_predicted"]) == (1, 1)
    split = scene(SCENES["void_parts_a_prediction"])  # 2 x 6 pixels, and 3 of high score in void
    assert count(split, sizes=(6, 1)).results()["components_predicted"] == 2
    assert count(split, sizes=(7, 1)).results()["components_predicted"] == 0


@pytest.mark.parametrize("pixels", [1, 5, 100])
def test_sizes_are_kept_at_the_limit_and_dropped_under_it(pixels: int) -> None:
    scores, labels = np.zeros((2, 40, 40), np.float32)
    scores.reshape(-1)[:pixels] = 1
    labels = labels.astype(np.uint8)
    labels[20:, :].reshape(-1)[:pixels] = 1

    def numbers(*sizes: int) -> tuple[float, float]:
        found = count((scores, labels), sizes=sizes).results()
        return found["components_predicted"], found["components_true"]

    assert numbers(pixels, pixels) == (1, 1)
    assert numbers(pixels + 1, pixels) == (0, 1)
    assert numbers(pixels, pixels + 1) == (1, 0)


def test_a_small_truth_becomes_void_and_shortens_the_prediction_over_it_to_nothing() -> None:
    image = scene("pxxp.... ......tt ......tt ........")
    kept = count(image, sizes=(4, 2)).results()
    assert (kept["components_true"], kept["ppv"]) == (2, pytest.approx(2 / 4))
    shortened = count(image, sizes=(4, 3))  # 2 pixels are left of the 4: still a prediction
    assert shortened._predicted[0].tolist() == [[2, 0]]
    assert shortened.results()["components_true"] == 1
    nothing = count(scene(".xxx.... ........"), sizes=(3, 4)).results()  # no false alarm either
    assert (nothing["components_predicted"], nothing["components_true"]) == (0, 0)
    assert math.isnan(nothing["component_f1"])


def test_an_image_with_hardly_a_normal_pixel_loses_it() -> None:
    image = scene("xxxxxxpp xxxxxxpp")
    assert count(image, sizes=(1, 4)).results()["siou"] == pytest.approx(12 / 16)
    assert count(image, sizes=(1, 5)).results()["siou"] == 1


def test_a_score_at_the_threshold_is_not_predicted() -> None:
    labels = np.ones((1, 2), np.uint8)
    scores = np.array([[0.1, np.nextafter(np.float32(0.1), np.float32(1))]], np.float32)
    assert count((scores, labels), threshold=0.1)._predicted[0].tolist() == [[1, 1]]
    assert count((scores.astype(np.float64), labels), threshold=0.1).results()["siou"] == 0.5


@pytest.mark.parametrize(("threshold", "predicted"), [(-math.inf, 1), (math.inf, 0), (1e300, 0)])
def test_infinite_thresholds_take_all_or_nothing(threshold: float, predicted: int) -> None:
    image = np.ones((3, 3), np.float32), np.ones((3, 3), np.uint8)
    assert count(image, threshold=threshold).results()["components_predicted"] == predicted


def test_undefined_metrics_are_nan() -> None:
    def undefined(name: str) -> set[str]:
        found = count(scene(SCENES[name])).results()
        return {key for key, value in found.items() if math.isnan(value)}

    assert undefined("nothing") == undefined("all_void") == {"siou", "ppv", "component_f1"}
    assert undefined("only_false_alarms") == {"siou"}
    assert undefined("only_misses") == {"ppv"}
    for name in ("only_false_alarms", "only_misses"):
        assert count(scene(SCENES[name])).results()["component_f1"] == 0
    assert math.isnan(ComponentCounts(0.5).results()["component_f1"])


def test_true_components_by_area() -> None:
    # areas: 1 missed; 4 with sIoU 2/4 and 1/4 - found at exactly .25; 6 missed
    counts = count(scene("t.xxtt.. ........ xttt.ttt .....ttt"))
    found = counts.by_size([4, 5, 50])
    assert found[0] == (0, 4, 1, 0, 0)
    assert found[1] == (4, 5, 2, 1, pytest.approx(3 / 8))
    assert found[2] == (5, 50, 1, 0, 0)
    assert found[3][:3] == (50, None, 0)
    assert all(math.isnan(value) for value in found[3][3:])
    assert counts.by_size([])[0][:3] == (0, None, 4)
    for edges in ([0], [5, 5], [9, 3], [-1, 4]):
        with pytest.raises(ValueError, match="must rise"):
            counts.by_size(edges)


def test_refuses_rules_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match="threshold is NaN"):
        ComponentCounts(math.nan)
    for sizes in ((-1, 0), (5, -1)):
        with pytest.raises(ValueError, match="0 or more"):
            ComponentCounts(0.5, *sizes)
    for shape in ((2,), (1, 1, 2)):
        with pytest.raises(ValueError, match=r"must both be \(H, W\)"):
            ComponentCounts(0.5).update(np.zeros(shape), np.zeros(shape, int))


def test_noise_on_noise_needs_no_table_of_all_pairs() -> None:
    dots = np.zeros((500, 500), np.uint8)
    dots[::2, ::2] = 1  # 62,500 components on either side: 31 GB of pairs
    found = count((dots.astype(np.float32), dots)).results()
    assert (found["components_true"], found["siou"], found["component_f1"]) == (62_500, 1, 1)


def test_labels_are_numbered_without_gaps() -> None:
    mask, _ = scene("p.pp.... ........ ppp..pp. ......pp")
    expected, _ = scene("..pp.... ........ ppp..pp. ......pp")
    ids = label_components(mask > 0, 2)
    assert sorted(np.unique(ids)) == [0, 1, 2, 3]
    np.testing.assert_array_equal(ids > 0, expected > 0)


def test_both_sides_of_the_benchmark_agree() -> None:
    crowded = bench_components.make_scene((120, 160), rows=6, columns=8, true=10)
    ours, theirs = bench_components.sides(crowded, min_predicted=40, min_true=20)
    assert ours() == pytest.approx(theirs(), abs=1e-12)
    assert ours()["components_true"] == 10
    assert ours()["components_predicted"] > 40
    assert 0 < ours()["component_f1"] < 1
