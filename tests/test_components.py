"""Component metrics against their definitions taken one by one, and against numbers on paper."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import bench_components
from eomt_exp.evaluator.components import ComponentCounts, label_components
from tests import component_metrics_by_hand as by_hand

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
SIZES = [(1, 1), (3, 2), (4, 3), (1, 3), (0, 0)]


def scene(text: str) -> by_hand.Image:
    letters = np.array([list(row) for row in text.split()])
    labels = np.isin(letters, ["t", "x"]).astype(np.uint8)
    labels[np.isin(letters, ["v", "w"])] = 255
    return np.isin(letters, ["p", "x", "w"]).astype(np.float32), labels


def noise(seed: int, shape: tuple[int, int] = (60, 80)) -> by_hand.Image:
    rng = np.random.default_rng(seed)
    labels = (rng.random(shape) < (0.2, 0.45)[seed % 2]).astype(np.uint8)
    scores = rng.random(shape) + 0.3 * labels
    labels[rng.random(shape) < 0.05] = 255
    return scores.astype(np.float32), labels


def count(*images: by_hand.Image, sizes: tuple[int, int] = (1, 1), threshold: float = 0.5):
    counts = ComponentCounts(threshold, *sizes)
    for scores, labels in images:
        counts.update(scores, labels)
    return counts


def same(left: ComponentCounts, right: ComponentCounts) -> bool:
    """Bit for bit, NaN equal to NaN."""
    a, b = left.state_dict(), right.state_dict()
    equal = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    return equal and repr(left.results()) == repr(right.results())


def assert_by_hand(images: list[by_hand.Image], sizes: tuple[int, int]) -> None:
    found = count(*images, sizes=sizes).results()
    expected = by_hand.metrics(images, 0.5, *sizes)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12, rel=0, nan_ok=True), name


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", SCENES)
def test_scenes_agree_with_the_definitions(name: str, sizes: tuple[int, int]) -> None:
    assert_by_hand([scene(SCENES[name])], sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_set_of_images_is_one_mean_over_components(sizes: tuple[int, int]) -> None:
    assert_by_hand([scene(text) for text in SCENES.values()], sizes)


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


def test_a_prediction_over_two_truths_is_not_held_against_either() -> None:
    # Each truth has 6 pixels, all hit; of the 2 pixels between them both unions hold 2.
    found = count(scene(SCENES["one_prediction_over_two_truths"])).results()
    assert found["siou"] == pytest.approx((6 / 8 + 8 / 10) / 2)
    assert found["ppv"] == pytest.approx(14 / 16)


def test_components_join_at_corners() -> None:
    found = count(scene(SCENES["touching_at_corners"])).results()
    assert (found["components_true"], found["components_predicted"]) == (1, 1)


def test_void_parts_predictions_before_components_are_formed() -> None:
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


def test_a_small_truth_becomes_void_and_shortens_the_prediction_over_it() -> None:
    image = scene("pxxp.... ......tt ......tt ........")
    kept = count(image, sizes=(4, 2)).results()
    assert (kept["components_true"], kept["ppv"]) == (2, pytest.approx(2 / 4))
    shortened = count(image, sizes=(4, 3))  # 2 pixels are left of the 4: still a prediction
    assert shortened.state_dict()["predicted"].tolist() == [[2, 0]]
    assert shortened.results()["components_true"] == 1


def test_a_prediction_that_lies_on_small_truths_only_is_no_false_alarm() -> None:
    found = count(scene(".xxx.... ........"), sizes=(3, 4)).results()
    assert (found["components_predicted"], found["components_true"]) == (0, 0)
    assert math.isnan(found["component_f1"])


def test_an_image_with_hardly_a_normal_pixel_loses_it() -> None:
    image = scene("xxxxxxpp xxxxxxpp")
    assert count(image, sizes=(1, 4)).results()["siou"] == pytest.approx(12 / 16)
    assert count(image, sizes=(1, 5)).results()["siou"] == 1


def test_a_score_at_the_threshold_is_not_predicted() -> None:
    labels = np.ones((1, 2), np.uint8)
    scores = np.array([[0.1, np.nextafter(np.float32(0.1), np.float32(1))]], np.float32)
    assert count((scores, labels), threshold=0.1).state_dict()["predicted"].tolist() == [[1, 1]]
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


def test_shards_in_any_order_equal_one_run() -> None:
    images = [noise(seed) for seed in range(7)]
    whole = count(*images)
    parts = [count(*images[:2]), count(), count(images[2]), count(*images[3:])]
    before = parts[3].state_dict()
    for order in itertools.permutations(range(4)):
        total = ComponentCounts(0.5, 1, 1)
        for index in order:
            total.merge(parts[index])
        assert same(total, whole)
        assert total.by_size([2, 5]) == whole.by_size([2, 5])
    assert same(count(*images[::-1]), whole)
    assert torch.equal(before["true"], parts[3].state_dict()["true"])  # merging only reads


def test_merging_with_itself_doubles() -> None:
    counts = count(noise(0))
    counts.merge(counts)
    assert same(counts, count(noise(0), noise(0)))


@pytest.mark.parametrize("other", [(0.25, 1, 1), (0.5, 2, 1), (0.5, 1, 2)])
def test_merge_refuses_components_of_other_rules(other: tuple[float, int, int]) -> None:
    with pytest.raises(ValueError, match=r"min_predicted.*0\.5, 1, 1"):
        ComponentCounts(0.5, 1, 1).merge(ComponentCounts(*other))


def test_state_survives_a_file_and_goes_on_counting(tmp_path: Path) -> None:
    torch.save(count(noise(0), sizes=(5, 3)).state_dict(), tmp_path / "counts.pt")
    resumed = ComponentCounts(9)  # the file knows the rules
    resumed.load_state_dict(torch.load(tmp_path / "counts.pt", weights_only=True))
    resumed.update(*noise(1))
    assert same(resumed, count(noise(0), noise(1), sizes=(5, 3)))
    resumed.load_state_dict(ComponentCounts(0.5).state_dict())
    assert same(resumed, ComponentCounts(0.5))


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


@pytest.mark.parametrize("edges", [[0], [5, 5], [9, 3], [-1, 4]])
def test_edges_must_rise(edges: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise"):
        ComponentCounts(0.5).by_size(edges)


@pytest.mark.parametrize("at_void", [np.nan, np.inf, -np.inf])
def test_scores_at_void_never_count(at_void: float) -> None:
    scores, labels = noise(0)
    changed = np.where(labels == 255, at_void, scores)
    assert same(count((changed, labels)), count((scores, labels)))


def test_tensors_and_arrays_are_alike() -> None:
    scores, labels = noise(0)
    half = torch.from_numpy(scores).bfloat16()
    counts = ComponentCounts(0.5, 1, 1)
    counts.update(half.requires_grad_(), torch.from_numpy(labels).long())
    rounded = half.detach().float().numpy()
    assert same(counts, count((rounded, labels)))
    assert same(counts, count((np.asfortranarray(rounded), np.asfortranarray(labels))))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[np.nan, 1.0, np.nan]], [[0, 1, 255]], "1 of 2 scores are NaN"),
        ([[0.0, 1.0]], [[0, 2]], r"\[2\]"),
        ([[0.0, 1.0]], [[-1, 1]], r"\[-1\]"),
        ([[0.0, 1.0]], [[0.0, 0.5]], "float64"),
        ([[0.0, 1.0, 2.0]], [[0, 1]], r"\(1, 3\).*\(1, 2\)"),
        ([0.0, 1.0], [0, 1], r"must both be \(H, W\)"),
        ([[[0.0, 1.0]]], [[[0, 1]]], r"must both be \(H, W\)"),
    ],
)
def test_refuses_and_counts_nothing(scores: list, labels: list, message: str) -> None:
    counts = count(noise(0))
    with pytest.raises(ValueError, match=message):
        counts.update(np.array(scores), np.array(labels))
    assert same(counts, count(noise(0)))


@pytest.mark.parametrize("wrong", [(math.nan,), (0.5, -1), (0.5, 5, -1)])
def test_refuses_rules_that_mean_nothing(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"threshold is NaN|0 or more"):
        ComponentCounts(*wrong)


def test_another_void_is_possible() -> None:
    scores, labels = noise(0)
    counts = ComponentCounts(0.5, 1, 1, void=7)
    counts.update(scores, np.where(labels == 255, 7, labels))
    assert same(counts, count((scores, labels)))


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
