"""Images to numbers: planted anomalies, two passes, protocols, cells on disk, several models."""

from __future__ import annotations

import json
import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from eomt_exp.contracts import VOID, LabelledImage
from eomt_exp.data.resized import Resized
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.evaluation import (
    Measured,
    Settings,
    measure_benchmark,
    measure_known_classes,
)
from eomt_exp.engine.score_store import PREFIX, remove_left_over
from eomt_exp.report.cells import Cell, load_cell, save_cell
from eomt_exp.report.results import (
    SeededRun,
    compared,
    gathered_over_seeds,
    operating_thresholds,
    results_of,
)
from eomt_exp.schema import Fpr95
from tests.bright_anomalies import (
    BrightAnomalies,
    BrightnessNet,
    Negated,
    NegatedEvidence,
    NegatedMask,
)

SCORERS = {"s": NegatedEvidence(), "q": NegatedMask(), "wrong": Negated()}


def detector(scorers=SCORERS, batch_size: int = 3) -> Detector:
    return Detector(model=BrightnessNet(False), scorers=scorers, score="s", image_size=(16, 32),
                    batch_size=batch_size)  # fmt: skip


def reader(images):
    return lambda positions: (images[position] for position in positions)


def measured(tmp_path: Path, images=None, **settings) -> Measured:
    images = images or BrightAnomalies()
    chosen = Settings(scratch=tmp_path, bits=20, **settings)
    return measure_benchmark(detector(), reader(images), len(images), chosen)


def pooled(images) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of all pixels that count, gathered by hand."""
    scores, labels = [], []
    for index in range(len(images)):
        item = images[index]
        keep = item.anomaly != VOID
        scores.append(detector()(item.image)[keep])
        labels.append(item.anomaly[keep])
    return np.concatenate(scores), np.concatenate(labels)


def results(found: Measured, **changes):
    chosen = {"fpr95": Fpr95.first, "thresholds": {}, "resamples": 50} | changes
    return {r.scorer: r for r in results_of(found, "m-0", "bright", **chosen)}


def test_pooled_numbers_are_scikit_learns(tmp_path: Path) -> None:
    scores, labels = pooled(BrightAnomalies())
    found = results(measured(tmp_path))
    assert found["s"].metrics["ap"] == pytest.approx(average_precision_score(labels, scores), 1e-4)
    assert found["q"].metrics["ap"] == pytest.approx(found["s"].metrics["ap"], abs=1e-4)
    assert found["wrong"].metrics["ap"] < 0.2 < found["s"].metrics["ap"]
    low, high = found["s"].intervals["ap"]
    assert low < found["s"].metrics["ap"] < high
    assert found["s"].histogram.anomaly.sum() == pytest.approx(1)


def test_the_tnr_table_says_what_recall_costs(tmp_path: Path) -> None:
    scores, labels = pooled(BrightAnomalies())
    found = results(measured(tmp_path))["s"]
    assert [row.tpr for row in found.tnr] == sorted(row.tpr for row in found.tnr)
    for row in found.tnr:
        ordered = np.sort(scores[labels == 1])[::-1]
        threshold = ordered[int(np.ceil(row.tpr * ordered.size)) - 1]
        assert row.tnr == pytest.approx((scores[labels == 0] < threshold).mean(), abs=1e-3)
    (at95,) = [row.tnr for row in found.tnr if row.tpr == 0.95]
    assert at95 == pytest.approx(found.metrics["tnr_at_tpr95"])


def test_images_without_anomaly_are_left_out_by_choice_and_named(tmp_path: Path) -> None:
    kept, left = measured(tmp_path), measured(tmp_path, skip_empty=True)
    assert left.left_out == ["bright 3", "bright 7"]
    assert kept.left_out == []
    negatives = [results(f)["s"].metrics["negatives"] for f in (kept, left)]
    assert negatives[0] == negatives[1] + 2 * 16 * 28
    assert results(left)["s"].metrics["ap"] > results(kept)["s"].metrics["ap"]


def test_components_do_not_depend_on_what_fitted_on_the_disk(tmp_path: Path) -> None:
    noiseless = BrightAnomalies(noise=10)
    whole = measured(tmp_path, noiseless, components=(4, 2))
    for room in (0, 8000):  # nothing, and some of the images, are kept between the passes
        again = measured(tmp_path, noiseless, components=(4, 2), scratch_bytes=room)
        assert again.components["s"].results() == whole.components["s"].results()
    assert whole.components["s"].results()["siou"] > 0.9
    assert whole.components["wrong"].results()["siou"] < 0.5
    assert not list(tmp_path.iterdir())  # the store is gone
    rows = results(whole)["s"].sizes
    assert sum(row.components for row in rows) == 6
    assert rows[0].found == 1


def test_the_best_and_worst_images_are_shown_once_each(tmp_path: Path) -> None:
    found = measured(tmp_path, num_examples=2)
    kinds = [(e.kind, e.name) for e in found.examples]
    assert [kind for kind, _ in kinds] == ["best", "best", "worst", "worst"]
    assert len({name for _, name in kinds}) == 4
    best = found.examples[0]
    by_name = {row.name: row.ap for row in results(found)["s"].images}
    assert best.ap == max(ap for ap in by_name.values() if ap == ap)
    truth = BrightAnomalies()[int(best.name.split()[1])]
    np.testing.assert_array_equal(best.anomaly, truth.anomaly)
    np.testing.assert_array_equal(best.image, truth.image)
    np.testing.assert_array_equal(best.score, detector()(truth.image))
    assert by_name["bright 3"] != by_name["bright 3"]  # no anomaly: undefined


def test_half_precision_scores_are_what_a_file_of_them_would_hold(tmp_path: Path) -> None:
    scores, labels = pooled(BrightAnomalies())
    rounded = scores.astype(np.float16).astype(np.float32)
    found = results(measured(tmp_path, half=True))["s"].metrics["ap"]
    assert found == pytest.approx(average_precision_score(labels, rounded), 1e-4)


def test_the_protocol_says_which_fpr95(tmp_path: Path) -> None:
    found = measured(tmp_path)
    first = results(found)["s"]
    between = results(found, fpr95=Fpr95.interpolated)["s"]
    assert between.metrics["fpr95"] == first.metrics["fpr95_interpolated"]
    assert between.metrics["fpr95_first"] == first.metrics["fpr95"]
    assert "fpr95" in first.intervals
    assert "fpr95" not in between.intervals  # it would be that of the other definition
    assert between.metrics["tnr_at_tpr95"] == 1 - between.metrics["fpr95"]


def test_a_threshold_for_half_precision_is_set_in_half_precision() -> None:
    calm = [BrightAnomalies(6, seed=5)[i] for i in range(6)]
    _, counts = measure_known_classes(detector(), iter(calm), 2, bits=20, half=True)
    normal = np.concatenate([detector()(i.image)[i.labels != VOID] for i in calm])
    normal = normal.astype(np.float16).astype(np.float32)
    share = (normal >= operating_thresholds(counts, 0.05)["s"]).mean()
    assert share == pytest.approx(0.05, abs=0.005)


def test_a_pool_of_counts_travels_light_and_arrives_whole(tmp_path: Path) -> None:
    counts = measured(tmp_path).counts["s"]
    parcel = pickle.dumps(counts)
    assert len(parcel) < 2**20  # of 16 MiB of bins
    assert pickle.loads(parcel).results() == counts.results()


def test_what_a_killed_process_left_is_removed_and_no_more(tmp_path: Path) -> None:
    alive, dead, elsewhere = (tmp_path / f"{PREFIX}{owner}-x" for owner in (
        f"{socket.gethostname()}-{os.getpid()}", f"{socket.gethostname()}-4194305", "host-4194305",
    ))  # fmt: skip
    for folder in (alive, dead, elsewhere):
        folder.mkdir()
    remove_left_over(tmp_path)
    assert (alive.exists(), dead.exists(), elsewhere.exists()) == (True, False, True)


def test_the_threshold_in_use_comes_from_images_without_anomalies(tmp_path: Path) -> None:
    calm = BrightAnomalies(6, seed=5)
    images = [calm[i] for i in range(6)]
    metrics, counts = measure_known_classes(detector(), iter(images), 2, bits=20)
    assert metrics["miou"] == pytest.approx(1)
    thresholds = operating_thresholds(counts, 0.05)
    normal = np.concatenate([detector()(i.image)[i.labels != VOID] for i in images])
    assert (normal >= thresholds["s"]).mean() == pytest.approx(0.05, abs=0.01)
    found = results(measured(tmp_path), thresholds=thresholds)["s"].metrics
    scores, labels = pooled(BrightAnomalies())
    above = scores >= thresholds["s"]
    assert found["id_tpr"] == pytest.approx(above[labels == 1].mean(), abs=0.01)
    assert found["id_fpr"] == pytest.approx(above[labels == 0].mean(), abs=0.01)
    assert found["id_f1"] <= found["f1_star"]


def test_nothing_but_normal_pixels_is_undefined(tmp_path: Path) -> None:
    calm = [BrightAnomalies()[3], BrightAnomalies()[7]]
    found = results(measured(tmp_path, calm, components=(4, 2), num_examples=2))["s"]
    for metric in ("ap", "auroc", "fpr95", "f1_star"):
        assert np.isnan(found.metrics[metric])
    assert found.intervals == {}


def cell_of(tmp_path: Path, model: str = "m-0", seed: int = 0, noise: float = 60.0) -> Cell:
    images = BrightAnomalies(12, seed, noise)
    found = measured(tmp_path, images, components=(4, 2), num_examples=1)
    rows = results_of(found, model, "bright", fpr95=Fpr95.first, thresholds={"s": -0.5},
                      resamples=50)  # fmt: skip
    facts = {"images": len(images)}
    return Cell({"images": "abc"}, rows, found.images, found.examples, facts)


def test_a_cell_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    cell, path = cell_of(tmp_path), tmp_path / "cells" / "bright.npz"
    save_cell(path, cell)
    again = load_cell(path, {"images": "abc"})
    assert again is not None
    assert [vars(r).keys() for r in again.results] == [vars(r).keys() for r in cell.results]
    for ours, theirs in zip(cell.results, again.results, strict=True):
        assert json.dumps(ours.metrics) == json.dumps(theirs.metrics)
        assert ours.intervals == theirs.intervals
        assert ours.sizes == theirs.sizes
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.curves.precision, theirs.curves.precision)
        np.testing.assert_array_equal(ours.histogram.normal, theirs.histogram.normal)
    assert again.images["s"].names == cell.images["s"].names
    np.testing.assert_array_equal(again.examples[0].score, cell.examples[0].score)
    assert compared([again], 100) == compared([cell], 100)


def test_a_cell_of_other_settings_or_a_broken_one_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "bright.npz"
    assert load_cell(path, {}) is None
    save_cell(path, cell_of(tmp_path))
    assert load_cell(path, {"images": "other"}) is None
    whole = path.read_bytes()
    for broken in (whole[:-200], whole[:500] + bytes(40) + whole[540:], b""):
        path.write_bytes(broken)
        assert load_cell(path, {"images": "abc"}) is None


def test_the_better_method_is_told_from_the_worse_on_the_same_images(tmp_path: Path) -> None:
    (first, *rest) = compared([cell_of(tmp_path)], 200)
    assert first.first in ("m-0 s", "m-0 q")
    wrong = next(c for c in [first, *rest] if c.second == "m-0 wrong")
    assert wrong.difference > 0
    assert wrong.low > 0
    assert wrong.p_value < 0.05
    same = next(c for c in [first, *rest] if c.second in ("m-0 s", "m-0 q"))
    assert same.p_value > 0.05
    assert compared([cell_of(tmp_path), cell_of(tmp_path, "n-0", seed=3)], 0) == []


def test_seeds_of_one_experiment_are_gathered(tmp_path: Path) -> None:
    rows = [
        r for seed in (0, 1, 2) for r in cell_of(tmp_path, f"m-{seed}", noise=50 + seed).results
    ]
    runs = {f"m-{seed}": SeededRun("m", "group", seed, f"weights {seed}") for seed in (0, 1, 2)}
    runs["other"] = SeededRun("m", "another learning rate", 3, "weights 3")
    found = {(o.scorer, o.metric): o for o in gathered_over_seeds(rows, runs)}
    values = [r.metrics["ap"] for r in rows if r.scorer == "s"]
    assert found["s", "ap"].mean == pytest.approx(np.mean(values))
    assert found["s", "ap"].std == pytest.approx(np.std(values, ddof=1))
    assert found["s", "ap"].seeds == (0, 1, 2)
    assert found["s", "ap"].experiment == "m"
    assert gathered_over_seeds(rows[:3], runs) == []


def test_what_is_no_other_seed_is_not_gathered(tmp_path: Path) -> None:
    rows = [r for name in ("m-0", "n-1") for r in cell_of(tmp_path, name).results]
    first = SeededRun("m", "m", 0, "a")
    for second in (SeededRun("n", "n", 1, "b"), SeededRun("m", "m", 0, "a")):
        assert gathered_over_seeds(rows, {"m-0": first, "n-1": second}) == []


def test_a_squeezed_set_keeps_labels_whole() -> None:
    item = BrightAnomalies()[0]
    small = Resized(BrightAnomalies(), (8, 8))[0]
    assert small.image.shape == (8, 8, 3)
    assert set(np.unique(small.anomaly)) <= {0, 1, VOID}
    np.testing.assert_array_equal(small.anomaly, item.anomaly[1::2, 2::4])  # the nearest pixel
    block = item.image[:2, :4].mean()
    assert abs(float(small.image[0, 0, 0]) - block) < 40  # an average, not one of the pixels


def test_large_images_are_shown_small(tmp_path: Path) -> None:
    class Large(BrightAnomalies):
        component_sizes = None

        def __getitem__(self, index: int) -> LabelledImage:
            item = super().__getitem__(index)
            return LabelledImage(*(np.repeat(np.repeat(a, 50, 0), 50, 1) for a in item[:3]),
                                 item.name)  # fmt: skip

    found = measured(tmp_path, Large(2), num_examples=1)
    for example in found.examples:
        assert example.image.shape[1] <= 640
        assert example.image.shape[:2] == example.anomaly.shape == example.score.shape
