"""The synthetic scenes are exact, the same for everyone, and their anomalies are never trained on.

Run: pytest tests/test_synthetic_roads.py
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest

from eomt_exp.contracts import VOID, LabelledImage
from eomt_exp.data import synthetic_objects, synthetic_roads
from eomt_exp.data.synthetic import anomalies as synthetic_anomalies
from eomt_exp.data.synthetic.anomalies import ANOMALY_FAMILIES, draw_anomaly
from eomt_exp.data.synthetic_objects import OUTLIER_FAMILIES, SyntheticOutliers
from eomt_exp.data.synthetic_roads import SyntheticBenchmark, SyntheticRoads

SCENES = 24


@pytest.fixture(autouse=True)
def _one_thread():
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def scenes() -> list[LabelledImage]:
    roads = SyntheticRoads("train", SCENES)
    return [roads[i] for i in range(SCENES)]


@pytest.fixture(scope="module", params=["anomaly", "obstacle"])
def benchmark(request) -> tuple[str, list[LabelledImage]]:
    drawn = SyntheticBenchmark(request.param, 20, empty_fraction=0.0)
    return request.param, [drawn[i] for i in range(20)]


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
    for index in (7, 3, 19):
        scene = again[index]
        assert np.array_equal(scene.image, scenes[index].image)
        assert np.array_equal(scene.labels, scenes[index].labels)


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
    digests = {digest(scene.image) for scene in [*scenes, *others]}
    assert len(digests) == SCENES + len(others)
    # Other noise alone would change the digest: the layout must differ as well.
    layouts = {digest(scene.labels) for scene in [*scenes, *others]}
    assert len(layouts) == SCENES + len(others)


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


def test_every_scene_has_a_road_below_and_most_have_sky_above(scenes):
    for scene in scenes:
        ground, air = scene.labels[90:], scene.labels[:45]
        assert (ground == 0).mean() > 0.15
        assert not (ground == 4).any()
        assert not (air == 0).any()
    assert sum((scene.labels[:45] == 4).mean() > 0.03 for scene in scenes) > 0.8 * SCENES


def test_the_picture_shows_what_the_labels_say(scenes):
    """A classifier that knows nothing but colour and row must beat the most common class."""
    features = [np.dstack([cv2.blur(s.image, (5, 5)), np.indices(s.labels.shape)[0]])
                for s in scenes]  # fmt: skip
    votes: dict[tuple[int, ...], Counter] = {}
    for scene, feature in zip(scenes[::2], features[::2], strict=True):
        for key, label in zip((feature[::3, ::3] // 32).reshape(-1, 4).tolist(),
                              scene.labels[::3, ::3].ravel().tolist(), strict=True):  # fmt: skip
            votes.setdefault(tuple(key), Counter())[label] += 1
    right = total = 0
    for scene, feature in zip(scenes[1::2], features[1::2], strict=True):
        keys = (feature[::3, ::3] // 32).reshape(-1, 4).tolist()
        for key, label in zip(keys, scene.labels[::3, ::3].ravel().tolist(), strict=True):
            right += votes.get(tuple(key), Counter([0])).most_common(1)[0][0] == label
            total += 1
    most = max(np.bincount(np.stack([s.labels for s in scenes[1::2]]).ravel())) / (12 * 128 * 256)
    assert right / total > most + 0.2


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


def test_an_anomaly_is_void_in_the_labels_and_one_in_the_map(benchmark):
    kind, images = benchmark
    for image in images:
        anomalous = image.anomaly == 1
        assert anomalous.any()
        assert (image.labels[anomalous] == VOID).all()
        assert set(np.unique(image.anomaly)) <= {0, 1, VOID}
        assert set(np.unique(image.labels)) <= {*range(9), VOID}
        assert (image.labels[image.anomaly == 0] != VOID).all()
    assert images[3].name == f"synth_{kind}/000003"


def test_only_road_and_obstacles_count_among_obstacles():
    drawn = SyntheticBenchmark("obstacle", 20)
    for image in (drawn[i] for i in range(20)):
        assert np.array_equal(image.anomaly == 0, image.labels == 0)
        count, parts = cv2.connectedComponents((image.anomaly == 1).astype(np.uint8))
        for part in range(1, count):
            mask = (parts == part).astype(np.uint8)
            ring = (cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0) & (mask == 0)
            assert (image.anomaly[ring] == 0).any(), "an obstacle stands on road"


def test_sizes_of_anomalies(benchmark):
    """Large ones stand 25 to 60 % of the image high, small ones 5 to 15 %, but for the frame."""
    kind, images = benchmark
    low, high = {"anomaly": (0.2, 0.62), "obstacle": (0.04, 0.17)}[kind]
    heights = []
    for image in images:
        mask = (image.anomaly == 1).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        large = [stats[k, cv2.CC_STAT_HEIGHT] for k in range(1, count)]
        heights.append(max(large) / 128)
    inside = [low <= height <= high for height in heights]
    assert np.mean(inside) >= 0.9, sorted(heights)
    share = np.mean([(image.anomaly == 1).mean() for image in images])
    assert (0.02 < share < 0.2) if kind == "anomaly" else (0.0005 < share < 0.02)


def test_the_share_of_empty_images_is_what_was_asked_for():
    for fraction in (0.0, 0.3, 1.0):
        drawn = SyntheticBenchmark("obstacle", 20, 32, 64, empty_fraction=fraction)
        empty = np.mean([not (drawn[i].anomaly == 1).any() for i in range(20)])
        assert abs(empty - fraction) < (0.2 if 0 < fraction < 1 else 1e-9)


def test_outliers_and_anomalies_come_from_disjoint_families(monkeypatch):
    assert not set(OUTLIER_FAMILIES) & set(ANOMALY_FAMILIES)
    assert SyntheticOutliers.families == OUTLIER_FAMILIES
    assert SyntheticBenchmark.families == ANOMALY_FAMILIES
    drawn: Counter = Counter()

    def counted(name, draw):
        def spy(rng, size):
            drawn[name] += 1
            return draw(rng, size)

        return spy

    monkeypatch.setattr(synthetic_objects, "draw_blob",
                        counted("blob", synthetic_objects.draw_blob))  # fmt: skip
    for family, draw in list(synthetic_anomalies.DRAW.items()):
        monkeypatch.setitem(synthetic_anomalies.DRAW, family, counted(family, draw))
    pool = SyntheticOutliers(12)
    _ = [pool[i] for i in range(12)]
    assert drawn == {"blob": 12}
    drawn.clear()
    for kind in synthetic_roads.KINDS:
        benchmark = SyntheticBenchmark(kind, 25, 64, 128)
        _ = [benchmark[i] for i in range(25)]
    assert set(drawn) == set(ANOMALY_FAMILIES), "every family occurs, and the blob does not"
    drawn.clear()
    _ = SyntheticRoads("train", 4, 64, 128)[2]
    assert not drawn, "training scenes hold neither"


def test_outliers_are_cut_outs_and_no_two_alike():
    pool = SyntheticOutliers(40, seed=3, size=64)
    assert len(pool) == 40
    cutouts = [pool[i] for i in range(40)]
    for cutout in cutouts:
        h, w, channels = cutout.shape
        assert channels == 4
        assert cutout.dtype == np.uint8
        assert 56 <= max(h, w) <= 64
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


@pytest.mark.parametrize("family", ANOMALY_FAMILIES)
def test_each_anomaly_family_draws_varied_premultiplied_cut_outs(family):
    drawn = [draw_anomaly(family, np.random.default_rng(i), 80) for i in range(5)]
    assert len({digest(sprite) for sprite in drawn}) == 5
    for sprite in drawn:
        assert sprite.shape[2] == 4
        assert sprite.dtype == np.uint8
        assert max(sprite.shape[:2]) >= 40
        assert not sprite[sprite[..., 3] == 0].any(), "or it would get a fringe when it is scaled"


def test_what_stands_in_a_benchmark_is_lit_and_noised_with_the_scene():
    """The last pass runs over anomalies too: noise inside them is like the noise around."""
    drawn, ratios = SyntheticBenchmark("anomaly", 12, empty_fraction=0.0), []
    for image in (drawn[i] for i in range(12)):
        grain = np.abs(image.image.astype(int) - cv2.blur(image.image, (3, 3))).mean(-1)
        inner = cv2.erode((image.anomaly == 1).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        ratios.append(np.median(grain[inner]) / np.median(grain[image.labels == 0]))
    assert 0.3 < np.median(ratios) < 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SyntheticRoads("training", 4), "train, val, test"),
        (lambda: SyntheticRoads("train", 0), "length >= 1"),
        (lambda: SyntheticRoads("train", 4, 8, 16), "32 to 4096"),
        (lambda: SyntheticRoads("train", 4, 256, 128), "not taller than wide"),
        (lambda: SyntheticRoads("train", 4, seed=-1), "seed >= 0"),
        (lambda: SyntheticBenchmark("fishes"), "anomaly, obstacle"),
        (lambda: SyntheticBenchmark("anomaly", empty_fraction=1.5), "0 to 1"),
        (lambda: SyntheticOutliers(size=2), "size >= 8"),
    ],
)
def test_what_a_user_may_get_wrong_is_told(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    "drawn", [SyntheticRoads("val", 3), SyntheticBenchmark("anomaly", 3), SyntheticOutliers(3)]
)
def test_there_is_nothing_beyond_the_end(drawn):
    assert len(drawn) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match="0 to 2"):
            drawn[index]
