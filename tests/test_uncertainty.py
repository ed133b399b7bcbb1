"""Counts per image, the bootstrap over images and the spread over seeds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from eomt_exp.evaluator.bootstrap import intervals, over_seeds, paired, resampling_weights
from eomt_exp.evaluator.image_counts import ImageCounts
from eomt_exp.evaluator.keys import to_keys
from eomt_exp.evaluator.pixel import PixelCounts
from tests.oracle import ranked, same

Squash = Callable[[np.ndarray], np.ndarray]


class Image(NamedTuple):
    """What ImageCounts.update takes."""

    name: str
    scores: np.ndarray
    labels: np.ndarray


# From a signal of about -4 to 6 to scores as scorers make them.
SHAPES: dict[str, Squash] = {
    "sigmoid": lambda z: 1 / (1 + np.exp(3 - 2.5 * z)),
    "narrow": lambda z: 0.94 + 0.01 * np.tanh(z / 3),
    "heavy_tailed": lambda z: np.sign(z) * np.exp(3 * np.abs(z)),
    "half": lambda z: (1 / (1 + np.exp(-z))).astype(np.float16),
    "levels": lambda z: np.round(z * 4),
}


def images(num: int, pixels: int = 2000, seed: int = 0, shape: str = "sigmoid") -> list[Image]:
    """Images that differ in how hard they are, in their share of anomaly and in their void."""
    rng, made = np.random.default_rng(seed), []
    for index in range(num):
        labels = (rng.random(pixels) < rng.uniform(0.02, 0.2)).astype(np.uint8)
        signal = rng.standard_normal(pixels) + rng.normal(1.5, 0.5) * labels + rng.normal(0, 0.2)
        labels[rng.random(pixels) < 0.1] = 255
        scores = SHAPES[shape](signal).astype(np.float32)
        made.append(Image(f"frame_{index:03}.png", scores, labels))
    return made


def count(some: list[Image], max_bins: int = 8192) -> ImageCounts:
    counts = ImageCounts(max_bins)
    for image in some:
        counts.update(*image)
    return counts


def gathered(some: list[Image]) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = (np.concatenate(parts) for parts in list(zip(*some, strict=True))[1:])
    return scores[labels != 255], labels[labels != 255]


def exact(some: list[Image]) -> dict[str, float]:
    return ranked(*gathered(some))


@pytest.mark.parametrize("shape", SHAPES)
def test_each_image_and_all_together_agree_with_scikit_learn(shape: str) -> None:
    some = images(20, 5_000, shape=shape)
    counts = count(some[::-1])
    found = counts.metrics()
    for index, image in enumerate(some):  # as names, which are sorted
        for key, value in exact([image]).items():
            assert found[key][index] == pytest.approx(value, abs=1e-4), (key, index)
        assert found["positives"][index] == (image.labels == 1).sum()
        assert found["negatives"][index] == (image.labels == 0).sum()
    weights = np.ones(20)
    pooled, expected = counts.pooled(weights), exact(some)
    assert {key: pooled[key] for key in expected} == pytest.approx(expected, abs=2e-3)
    weights[3] = 3
    thrice = exact([*some, some[3], some[3]])["ap"]
    assert counts.pooled(weights)["ap"] == pytest.approx(thrice, abs=2e-3)


def test_scores_of_few_levels_are_counted_exactly() -> None:
    some, reference = images(5, shape="levels"), PixelCounts(19)
    for _, scores, labels in (some[0], some[2], some[2], some[4]):
        reference.update(scores, labels)
    found, expected = count(some).pooled(np.array([1, 0, 2, 0, 1])), reference.results()
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-12)


def test_the_grid_is_the_finest_that_is_small_enough() -> None:
    some = images(10, seed=1)
    counts = count(some, max_bins=500)
    keys, bins = to_keys(gathered(some)[0]), counts.state_dict()["bins"].unique()
    shift = int(counts.state_dict()["max_bins_shift"][1])
    assert bins.tolist() == np.unique(keys >> shift).tolist()
    assert len(bins) <= 500 < len(np.unique(keys >> shift - 1))


@pytest.mark.parametrize("max_bins", [64, 1000, 8192])
def test_neither_order_nor_shards_can_be_seen(max_bins: int) -> None:
    some = images(5, seed=1)
    for shape in ("heavy_tailed", "narrow"):
        some += [image._replace(name=f"{shape}_{image.name}") for image in images(4, shape=shape)]
    whole = count(some, max_bins)
    assert same(whole, count(some[::-1], max_bins))
    for parts in ([some[:5], some[5:]], [some[9:], some[::2][:4] + some[1:9:2], some[8:9]]):
        merged = ImageCounts(max_bins)
        for part in parts:
            merged.merge(count(part, max_bins))
        assert same(merged, whole)
        weights = resampling_weights(13, 50)
        mine, theirs = merged.pooled(weights), whole.pooled(weights)
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
    assert intervals(merged, resamples=50) == intervals(whole, resamples=50)


def test_merging_leaves_the_other_as_it_was() -> None:
    other, before = count(images(3, shape="narrow")), count(images(3, shape="narrow"))
    far = [image._replace(name="far") for image in images(1, shape="heavy_tailed")]
    with pytest.raises(ValueError, match="max_bins=8192 into max_bins=200"):
        count(far, 200).merge(other)
    total = count(far)
    total.merge(other)
    total.update("one more", *images(1, shape="heavy_tailed", seed=3)[0][1:])
    assert same(other, before)


def test_an_image_counts_once_and_a_refused_one_not_at_all() -> None:
    some = images(3)
    counts = count(some)
    with pytest.raises(ValueError, match=r"'frame_001\.png'.*already"):
        counts.update(*some[1])
    with pytest.raises(ValueError, match=r"'frame_001\.png'.*already"):
        counts.merge(count(some[1:2]))
    with pytest.raises(ValueError, match="NaN"):
        counts.update("bad", np.array([np.nan, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="must agree"):
        counts.update("bad", np.zeros(3), np.array([0, 1]))
    assert same(counts, count(some))
    with pytest.raises(ValueError, match="max_bins must be at least 2"):
        ImageCounts(1)


def reloaded(tmp_path: Path, state: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    torch.save(state, tmp_path / "counts.pt")
    yield torch.load(tmp_path / "counts.pt", weights_only=True)
    np.savez(tmp_path / "counts.npz", **{key: value.numpy() for key, value in state.items()})
    with np.load(tmp_path / "counts.npz") as arrays:
        yield {key: torch.from_numpy(arrays[key]) for key in arrays}


def test_state_survives_files_and_goes_on_counting(tmp_path: Path) -> None:
    some = images(5)
    some[1] = some[1]._replace(name='Straße/"0 1".png')
    for state in reloaded(tmp_path, count(some[:3]).state_dict()):
        resumed = ImageCounts(64)  # the file knows better
        resumed.load_state_dict(state)
        assert same(resumed, count(some[:3]))
        for image in some[3:]:
            resumed.update(*image)
        assert same(resumed, count(some))
        assert resumed.names == sorted(image.name for image in some)
    resumed.load_state_dict(ImageCounts().state_dict())
    assert same(resumed, ImageCounts())


def test_images_without_either_kind_are_nan_and_still_count_and_nothing_is_nan_too() -> None:
    counts = count(images(2))
    counts.update("normal", np.array([0.1, 0.2]), np.array([0, 0]))
    counts.update("anomaly", torch.tensor([[0.9]]), torch.tensor([[1]]))
    counts.update("void", np.zeros(3), np.full(3, 255))
    found = counts.metrics()
    defined = [name.startswith("frame") for name in counts.names]
    for key in ("ap", "auroc", "fpr95"):
        assert (~np.isnan(found[key])).tolist() == defined
    assert found["negatives"][counts.names.index("normal")] == 2
    assert found["positives"][counts.names.index("void")] == 0
    only = np.array([[name == kind for name in counts.names] for kind in ("normal", "anomaly")])
    assert np.isnan(counts.pooled(only)["ap"]).tolist() == [True, True]
    assert counts.pooled(only.sum(axis=0))["ap"] == 1  # the normal pixels of the one, and 0.9
    assert np.isnan(counts.pooled(np.zeros(5))["f1_star"])
    empty = ImageCounts()
    assert all(len(column) == 0 for column in empty.metrics().values())
    assert np.isnan(empty.pooled(np.ones((3, 0)))["ap"]).all()
    assert np.isnan(list(intervals(empty).values())).all()


def test_pooled_takes_one_row_of_weights_or_many() -> None:
    counts, weights = count(images(4)), resampling_weights(4, 3)
    many = counts.pooled(weights)
    assert set(many) == {"ap", "auroc", "fpr95", "f1_star"}
    for key, values in many.items():
        assert values.shape == (3,)
        assert [float(counts.pooled(row)[key]) for row in weights] == values.tolist()
    halved = counts.pooled(weights / 8, ["ap"])
    assert halved["ap"] == pytest.approx(many["ap"])
    for wrong in (np.ones(3), np.ones((4, 2)), np.ones((1, 1, 4))):
        with pytest.raises(ValueError, match="N = 4 images"):
            counts.pooled(wrong)


def test_intervals_agree_with_a_literal_bootstrap() -> None:
    some = images(6, 400, seed=2)
    weights = resampling_weights(6, 60, seed=5)
    drawn = [
        exact([image for image, times in zip(some, row, strict=True) for _ in range(times)])
        for row in weights
    ]
    found = intervals(count(some), resamples=60, level=0.8, seed=5)
    for key in ("ap", "auroc", "fpr95"):
        expected = np.quantile([one[key] for one in drawn], [0.1, 0.9])
        assert found[key] == pytest.approx(expected, abs=2e-3), key
        assert expected[1] - expected[0] > 0.01


def test_every_resample_draws_as_many_images_as_there_are() -> None:
    weights = resampling_weights(7, 2000, seed=1)
    assert weights.shape == (2000, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)
    assert weights.var(axis=0) == pytest.approx(np.full(7, 6 / 7), abs=0.15)  # binomial
    assert np.array_equal(weights, resampling_weights(7, 2000, seed=1))
    assert not np.array_equal(weights, resampling_weights(7, 2000, seed=2))


def one_by_one(some: list[Image]) -> list[ImageCounts]:
    return [count([image], max_bins=256) for image in some]


def together(parts: list[ImageCounts]) -> ImageCounts:
    total = ImageCounts(max_bins=256)
    for part in parts:
        total.merge(part)
    return total


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    population = images(600, 300, seed=3)
    truth, alone = exact(population)["ap"], one_by_one(population)
    rng, found = np.random.default_rng(0), []
    for trial in range(60):
        chosen = together([alone[index] for index in rng.choice(600, 25, replace=False)])
        found.append(intervals(chosen, ["ap"], 300, seed=trial)["ap"])
    low, high = np.array(found).T
    # Drawing pixels one by one would cover far fewer; a wider interval is no art.
    assert 0.85 <= ((low <= truth) & (truth <= high)).mean() <= 0.99
    assert (high - low).mean() < 0.2


def test_intervals_are_nan_where_nothing_can_be_said() -> None:
    assert np.isnan(list(intervals(count(images(1)), ["ap", "f1_star"]).values())).all()
    normal = [image._replace(labels=np.zeros_like(image.labels)) for image in images(12, 50)]
    assert np.isnan(intervals(count(normal))["auroc"]).all()
    # A resample of 12 holds the one image with anomalies in 65 of 100 cases; that is enough.
    normal[3] = images(4)[3]
    assert np.isfinite(intervals(count(normal), resamples=200)["auroc"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["ap", "pro"]}, r"\['pro'\]; allowed are ap, fpr95, auroc, f1_star"),
        ({"level": 95}, "between 0 and 1, got 95"),
        ({"resamples": 0}, "at least 1, got 0"),
    ],
)
def test_intervals_refuse_nonsense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intervals(count(images(3)), **options)


def test_memory_of_a_thousand_resamples_is_bounded() -> None:
    counts = count(images(150, 3000, shape="heavy_tailed"))
    assert len(counts.state_dict()["bins"].unique()) > 4096
    tracemalloc.start()
    try:
        intervals(counts, ["ap", "f1_star"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6


def blurred(some: list[Image], noise: float, seed: int) -> list[Image]:
    """The same images under a worse scorer."""
    rng = np.random.default_rng(seed)
    return [
        image._replace(scores=image.scores + noise * rng.standard_normal(image.scores.size))
        for image in some
    ]


def test_a_planted_improvement_is_found_where_separate_intervals_overlap() -> None:
    better = images(15, 1000, shape="levels")
    worse = blurred(better, 2, seed=1)
    a, b = count(better), count(worse)
    difference, low, high, p_value = paired(a, b, resamples=500)
    assert difference == pytest.approx(exact(better)["ap"] - exact(worse)["ap"], abs=1e-3)
    assert 0 < low < difference < high
    assert p_value == pytest.approx(2 / 501)  # as small as 500 draws can say
    mine, theirs = (intervals(x, ["ap"])["ap"] for x in (a, b))
    assert mine[0] < theirs[1]
    back = paired(b, a, resamples=500)
    assert back == pytest.approx((-difference, -high, -low, p_value))


def test_p_values_of_equals_are_spread_out() -> None:
    some = images(400, 200, seed=9, shape="levels")
    a, b = (one_by_one(blurred(some, 2, seed)) for seed in (0, 1))
    tens = [slice(start, start + 10) for start in range(0, 400, 10)]
    pairs = [paired(together(a[ten]), together(b[ten]), resamples=200) for ten in tens]
    p_values = np.array([p_value for *_, p_value in pairs])
    assert (p_values < 0.1).mean() <= 0.25
    assert 0.25 < np.median(p_values) < 0.75
    assert p_values.max() <= 1


def test_a_method_does_not_differ_from_itself_and_one_image_gives_no_interval() -> None:
    counts, some = count(images(5)), images(1)
    assert paired(counts, counts, "fpr95", resamples=50) == (0, 0, 0, 1)
    difference, *rest = paired(count(some), count(blurred(some, 1, 0)))
    assert difference > 0
    assert np.isnan(rest).all()


def test_a_pair_on_different_images_is_refused() -> None:
    some = images(4)
    with pytest.raises(ValueError, match=r"1 are in one only, as 'frame_003.png'"):
        paired(count(some), count(some[:3]))
    other = some[2]._replace(labels=some[2].labels[::-1] // 2 * 2)  # 1 becomes 0, 255 254
    other.labels[other.labels == 254] = 255
    with pytest.raises(ValueError, match=r"'frame_002.png' has \d+ and 0 positives"):
        paired(count(some), count([*some[:2], other, some[3]]))


def test_spread_over_seeds_is_that_of_a_sample() -> None:
    assert over_seeds([0.5, 0.6, 0.7]) == pytest.approx((0.6, 0.1, 3))
    assert over_seeds([0.5]) == pytest.approx((0.5, np.nan, 1), nan_ok=True)
    assert np.isnan(over_seeds([])[:2]).all()
