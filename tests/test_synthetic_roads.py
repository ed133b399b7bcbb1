"""Synthetic scenes are exact, the same for everyone, and their anomalies are never trained on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter, defaultdict

import cv2
import numpy as np
import pytest

from eomt_exp.contracts import VOID, LabelledImage
from eomt_exp.data import synthetic_objects, synthetic_roads
from eomt_exp.data.synthetic.anomalies import PAINTERS
from eomt_exp.data.synthetic_objects import SyntheticOutliers
from eomt_exp.data.synthetic_roads import KINDS, SyntheticBenchmark, SyntheticRoads
from tests.data_files import assert_same_images

SCENES = 24


@pytest.fixture(autouse=True)
def _one_thread():
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def scenes() -> list[LabelledImage]:
    return list(SyntheticRoads("train", SCENES))


@pytest.fixture(scope="module")
def benchmarks() -> dict[str, list[LabelledImage]]:
    return {kind: list(SyntheticBenchmark(kind, 20, empty_fraction=0.0)) for kind in KINDS}


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def test_the_arrays_are_what_the_contract_says(scenes):
    for scene in scenes:
        assert scene.image.shape == (128, 256, 3)
        assert scene.labels.shape == scene.anomaly.shape == (128, 256)
        assert scene.image.dtype == scene.labels.dtype == scene.anomaly.dtype == np.uint8
        assert set(np.unique(scene.labels)) <= {*range(9), VOID}
        assert np.array_equal(scene.anomaly, np.where(scene.labels == VOID, VOID, 0))
    assert scenes[12].name == "synthetic_roads/train/000012"


def test_a_scene_does_not_depend_on_order_or_on_the_length_of_the_set(scenes):
    again = SyntheticRoads("train", 500)
    order = (7, 3, 19)
    assert_same_images((again[index] for index in order), (scenes[index] for index in order))


@pytest.mark.slow
def test_another_process_draws_the_same_scene_and_the_same_outlier(scenes):
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_synthetic_roads import *\n"
        "scene = SyntheticRoads('train', 9)[5]\n"
        "print(digest(scene.image, scene.labels, SyntheticOutliers()[3]))\n"
    )
    drawn = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = digest(scenes[5].image, scenes[5].labels, SyntheticOutliers()[3])
    assert drawn.stdout.strip() == here


def test_splits_benchmarks_seeds_and_indices_share_no_scene(scenes):
    others = [
        SyntheticRoads("val", 2)[0],
        SyntheticRoads("test", 2)[0],
        SyntheticRoads("train", 2, seed=1)[0],
        SyntheticBenchmark("anomaly", 2, empty_fraction=1.0)[0],
        SyntheticBenchmark("obstacle", 2, empty_fraction=1.0)[0],
    ]
    # Other noise alone would change the image's digest: the layout must differ as well.
    digests = {digest(array) for scene in [*scenes, *others] for array in scene[:2]}
    assert len(digests) == 2 * (SCENES + len(others))


def test_every_class_is_common_enough_to_be_learnt_and_none_takes_over(scenes):
    labels = np.stack([scene.labels for scene in scenes])
    share = {k: float((labels == k).mean()) for k in range(9)}
    seen_in = {k: int((labels == k).any((1, 2)).sum()) for k in range(9)}
    least = dict(zip(SyntheticRoads.class_names, (0.2, 0.03, 0.08, 0.05, 0.05, 0.02, 0.001, 0.003,
                                                  0.002), strict=True))  # fmt: skip
    for k, name in enumerate(SyntheticRoads.class_names):
        assert least[name] < share[k] < 0.55, f"{name}: {share[k]:.4f}"
        assert seen_in[k] >= SCENES // 3, f"{name} is in {seen_in[k]} of {SCENES} scenes"
    assert (labels == VOID).mean() < 0.02
    ground, air = labels[:, 90:], labels[:, :45]
    assert ((ground == 0).mean((1, 2)) > 0.15).all()
    assert not (ground == 4).any()
    assert not (air == 0).any()
    assert ((air == 4).mean((1, 2)) > 0.03).mean() > 0.8  # most show sky


def test_the_picture_shows_what_the_labels_say(scenes):
    """A classifier that knows nothing but colour and row must beat the most common class."""

    def pixels(some: list[LabelledImage]) -> list[tuple[tuple[int, ...], int]]:
        keys = [np.dstack([cv2.blur(s.image, (5, 5)), np.indices(s.labels.shape)[0]])[::3, ::3]
                for s in some]  # fmt: skip
        labels = np.ravel([s.labels[::3, ::3] for s in some]).tolist()
        coarse = (np.reshape(keys, (-1, 4)) // 32).tolist()
        return list(zip(map(tuple, coarse), labels, strict=True))

    votes: defaultdict[tuple[int, ...], Counter] = defaultdict(Counter)
    for key, label in pixels(scenes[::2]):
        votes[key][label] += 1
    found = pixels(scenes[1::2])
    guesses = [(votes[key] or Counter([0])).most_common(1)[0][0] for key, _ in found]
    right = np.mean([guess == label for guess, (_, label) in zip(guesses, found, strict=True)])
    assert right > Counter(label for _, label in found).most_common(1)[0][1] / len(found) + 0.2


@pytest.mark.parametrize("size", [(64, 128), (96, 208), (256, 512)])
def test_other_sizes_show_the_same_scene(scenes, size):
    roads = SyntheticRoads("train", SCENES, *size)
    for index in (0, 1, 2):
        scene = roads[index]
        assert scene.image.shape == (*size, 3)
        small = cv2.resize(scenes[index].labels, (64, 32), interpolation=cv2.INTER_NEAREST)
        other = cv2.resize(scene.labels, (64, 32), interpolation=cv2.INTER_NEAREST)
        wide = abs(size[1] / size[0] - 2) > 0.01  # another aspect shows more to the sides
        assert wide or (small == other).mean() > 0.88


@pytest.mark.parametrize("kind", KINDS)
def test_an_anomaly_is_void_in_the_labels_and_one_in_the_map(benchmarks, kind):
    for image in benchmarks[kind]:
        anomalous = image.anomaly == 1
        assert anomalous.any()
        assert (image.labels[anomalous] == VOID).all()
        assert set(np.unique(image.anomaly)) <= {0, 1, VOID}
        assert set(np.unique(image.labels)) <= {*range(9), VOID}
        assert (image.labels[image.anomaly == 0] != VOID).all()
    assert benchmarks[kind][3].name == f"synth_{kind}/000003"


def test_only_road_and_obstacles_count_among_obstacles(benchmarks):
    for image in [*benchmarks["obstacle"], SyntheticBenchmark("obstacle", empty_fraction=1.0)[0]]:
        assert np.array_equal(image.anomaly == 0, image.labels == 0)
        count, parts = cv2.connectedComponents((image.anomaly == 1).astype(np.uint8))
        for part in range(1, count):
            mask = (parts == part).astype(np.uint8)
            ring = (cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0) & (mask == 0)
            assert (image.anomaly[ring] == 0).any(), "an obstacle stands on road"


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_anomalies(benchmarks, kind):
    """Large ones stand 25 to 60 % of the image high, small ones 5 to 15 %, but for the frame."""
    low, high = {"anomaly": (0.2, 0.62), "obstacle": (0.04, 0.17)}[kind]
    masks = [(image.anomaly == 1).astype(np.uint8) for image in benchmarks[kind]]
    parts = [cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:] for mask in masks]
    heights = [stats[:, cv2.CC_STAT_HEIGHT].max() / 128 for stats in parts]
    assert np.mean([low <= height <= high for height in heights]) >= 0.9, sorted(heights)
    share = np.mean(masks)
    assert (0.02 < share < 0.2) if kind == "anomaly" else (0.0005 < share < 0.02)


def test_the_share_of_empty_images_is_what_was_asked_for():
    for fraction, count, tolerance in ((0.0, 5, 0), (0.3, 20, 0.2), (1.0, 5, 0)):
        drawn = SyntheticBenchmark("obstacle", count, 32, 64, empty_fraction=fraction)
        empty = np.mean([not (image.anomaly == 1).any() for image in drawn])
        assert abs(empty - fraction) <= tolerance


def test_outliers_and_anomalies_come_from_disjoint_families(monkeypatch):
    drawn: Counter = Counter()

    def counted(draw):
        return lambda rng, size: drawn.update([draw]) or draw(rng, size)

    blob, assembly = synthetic_objects.draw_blob, synthetic_objects.draw_assembly
    monkeypatch.setattr(synthetic_objects, "draw_blob", counted(blob))
    monkeypatch.setattr(synthetic_objects, "draw_assembly", counted(assembly))
    monkeypatch.setattr(synthetic_roads, "PAINTERS", tuple(map(counted, PAINTERS)))
    list(SyntheticOutliers(12))
    assert drawn == {blob: 12}
    list(SyntheticOutliers(12, assemblies=0.25))
    assert drawn == {blob: 12 + 9, assembly: 3}
    drawn.clear()
    for kind in KINDS:
        list(SyntheticBenchmark(kind, 25, 64, 128))
    assert set(drawn) == set(PAINTERS), "every family occurs, and no outlier does"
    drawn.clear()
    _ = SyntheticRoads("train", 4, 64, 128)[2]
    assert not drawn, "training scenes hold neither"


def test_outliers_are_cut_outs_and_no_two_alike():
    pool = SyntheticOutliers(40, seed=3, size=64)
    assert len(pool) == 40
    cutouts = list(pool)
    for cutout in cutouts:
        height, width, channels = cutout.shape
        assert (channels, cutout.dtype) == (4, np.uint8)
        assert 56 <= max(height, width) <= 64
        assert set(np.unique(cutout[..., 3])) == {0, 255}
        assert 0.3 < (cutout[..., 3] > 0).mean() < 0.95
        # Cropped to the object: its outline touches all four sides.
        edges = [cutout[0], cutout[-1], cutout[:, 0], cutout[:, -1]]
        assert all((edge[:, 3] > 0).any() for edge in edges)
    assert len({digest(c) for c in cutouts}) == 40
    assert np.array_equal(SyntheticOutliers(99, seed=3, size=64)[7], cutouts[7])
    assert digest(SyntheticOutliers(9, seed=4, size=64)[7]) != digest(cutouts[7])
    means = np.stack([c[c[..., 3] > 0][:, :3].mean(0) for c in cutouts])
    assert (means.std(0) > 35).all(), "their colours spread over the cube"


def test_assemblies_are_one_piece_each_and_no_two_alike():
    cutouts = list(SyntheticOutliers(60, size=64, assemblies=1.0))
    assert len({digest(cutout) for cutout in cutouts}) == 60
    with_hole = 0
    for cutout in cutouts:
        solid = cutout[..., 3]
        assert set(np.unique(solid)) <= {0, 255}
        assert max(solid.shape) <= 64
        assert not cutout[solid == 0].any(), "or it would get a fringe when it is scaled"
        edges = [solid[0], solid[-1], solid[:, 0], solid[:, -1]]
        assert all(edge.any() for edge in edges), "cropped to the object"
        around = cv2.connectedComponents(np.pad(255 - solid, 1, constant_values=255))[0]
        with_hole += around > 2
    assert 2 <= with_hole <= 30
    shares = np.array([(cutout[..., 3] > 0).mean() for cutout in cutouts])
    assert shares.min() < 0.45 < 0.9 < shares.max(), "thin ones and full ones"


@pytest.mark.parametrize("draw", PAINTERS)
def test_each_anomaly_family_draws_varied_premultiplied_cut_outs(draw):
    drawn = [draw(np.random.default_rng(i), 80) for i in range(5)]
    assert len({digest(sprite) for sprite in drawn}) == 5
    for sprite in drawn:
        assert (sprite.shape[2], sprite.dtype) == (4, np.uint8)
        assert max(sprite.shape[:2]) >= 40
        assert not sprite[sprite[..., 3] == 0].any(), "or it would get a fringe when it is scaled"


def test_what_stands_in_a_benchmark_is_lit_and_noised_with_the_scene(benchmarks):
    """The last pass runs over anomalies too: noise inside them is like the noise around."""
    ratios = []
    for image in benchmarks["anomaly"]:
        grain = np.abs(image.image.astype(int) - cv2.blur(image.image, (3, 3))).mean(-1)
        inner = cv2.erode((image.anomaly == 1).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        ratios.append(np.median(grain[inner]) / np.median(grain[image.labels == 0]))
    assert 0.3 < np.median(ratios) < 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SyntheticRoads("training", 4), "train, val, test"),
        (lambda: SyntheticRoads("train", 4, 8, 16), "32 to 4096"),
        (lambda: SyntheticRoads("train", 4, 256, 128), "not taller than wide"),
        (lambda: SyntheticBenchmark("fishes"), "anomaly, obstacle"),
    ],
)
def test_what_a_user_may_get_wrong_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
