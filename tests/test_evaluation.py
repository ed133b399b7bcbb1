"""Images to numbers: planted anomalies, two passes, protocols, cells on disk, several models."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from eomt_exp.contracts import VOID, LabelledImage, UserError
from eomt_exp.data.resized import Resized
from eomt_exp.engine.evaluation import Measured, Settings, measure_benchmark, measure_known_classes
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
from tests.bright_anomalies import BrightAnomalies, Negated
from tests.test_engine import SCORERS, detector
from tests.test_tool_curve import tool

DETECTOR = detector(scorers={**SCORERS, "wrong": Negated()}, batch_size=3)


def measured(tmp_path: Path, images=None, **settings) -> Measured:
    images = images or BrightAnomalies()
    chosen = Settings(scratch=tmp_path, bits=20, **settings)
    return measure_benchmark(DETECTOR, lambda order: map(images.__getitem__, order), len(images),
                             chosen)  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The images of BrightAnomalies() under default settings."""
    return measured(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of all pixels that count, gathered by hand."""
    items = [BrightAnomalies()[index] for index in range(8)]
    scores = np.stack([DETECTOR(item.image) for item in items])
    labels = np.stack([item.anomaly for item in items])
    return scores[labels != VOID], labels[labels != VOID]


def results(found: Measured, **changes):
    chosen = {"fpr95": Fpr95.first, "thresholds": {}, "resamples": 50} | changes
    return {r.scorer: r for r in results_of(found, "m-0", "bright", **chosen)}


def test_pooled_numbers_are_scikit_learns(plain: Measured, pixels) -> None:
    scores, labels = pixels
    found = results(plain)
    assert found["s"].metrics["ap"] == pytest.approx(average_precision_score(labels, scores), 1e-4)
    assert found["q"].metrics["ap"] == pytest.approx(found["s"].metrics["ap"], abs=1e-4)
    assert found["wrong"].metrics["ap"] < 0.2 < found["s"].metrics["ap"]
    low, high = found["s"].intervals["ap"]
    assert low < found["s"].metrics["ap"] < high
    assert found["s"].histogram.anomaly.sum() == pytest.approx(1)


def test_the_tnr_table_says_what_recall_costs(plain: Measured, pixels) -> None:
    scores, labels = pixels
    found = results(plain)["s"]
    assert [row.tpr for row in found.tnr] == sorted(row.tpr for row in found.tnr)
    for row in found.tnr:
        ordered = np.sort(scores[labels == 1])[::-1]
        threshold = ordered[int(np.ceil(row.tpr * ordered.size)) - 1]
        assert row.tnr == pytest.approx((scores[labels == 0] < threshold).mean(), abs=1e-3)
    (at95,) = [row.tnr for row in found.tnr if row.tpr == 0.95]
    assert at95 == pytest.approx(found.metrics["tnr_at_tpr95"])


def test_images_without_anomaly_are_left_out_by_choice_and_named(
    tmp_path: Path, plain: Measured
) -> None:
    left = measured(tmp_path, skip_empty=True)
    assert left.left_out == ["bright 3", "bright 7"]
    assert plain.left_out == []
    fewer, all_images = (results(found)["s"].metrics for found in (left, plain))
    assert all_images["negatives"] == fewer["negatives"] + 2 * 16 * 28
    assert fewer["ap"] > all_images["ap"]


def test_components_do_not_depend_on_where_maps_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noiseless = BrightAnomalies(noise=10)
    whole = measured(tmp_path, noiseless, components=(4, 2))  # in memory
    monkeypatch.setattr("eomt_exp.engine.score_store.MEMORY", 8000)  # the rest is on disk
    for room in (0, 15000, 2**20):  # nothing, some and all of the images, kept between the passes
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
    assert [example.kind for example in found.examples] == ["best", "best", "worst", "worst"]
    assert len({example.name for example in found.examples}) == 4
    best = found.examples[0]
    by_name = {row.name: row.metrics["ap"] for row in results(found)["s"].images}
    assert best.ap == max(ap for ap in by_name.values() if ap == ap)
    image, _, anomaly = BrightAnomalies()[int(best.name.split()[1])][:3]
    shown = (best.image, best.anomaly, best.score)
    np.testing.assert_equal(shown, (image, anomaly, DETECTOR(image)))
    assert by_name["bright 3"] != by_name["bright 3"]  # no anomaly: undefined


def test_half_precision_scores_are_what_a_file_of_them_would_hold(tmp_path: Path, pixels) -> None:
    scores, labels = pixels
    rounded = scores.astype(np.float16).astype(np.float32)
    found = results(measured(tmp_path, half=True))["s"].metrics["ap"]
    assert found == pytest.approx(average_precision_score(labels, rounded), 1e-4)


def test_the_tools_curve_is_measured_where_it_is_asked_for(tmp_path: Path) -> None:
    found = measured(tmp_path, half=True, tool_curve=True, components=(4, 2))
    items = [BrightAnomalies()[index] for index in range(8)]
    frames = [(DETECTOR(item.image).astype(np.float16), item.anomaly) for item in items]
    expected, metrics = tool(frames), results(found)["s"].metrics
    assert metrics["ap"] == pytest.approx(expected["ap"], abs=1e-15)
    assert metrics["fpr95"] == expected["fpr95"]
    assert found.components["s"].threshold == expected["f1_threshold"]
    assert results(measured(tmp_path, half=True))["s"].metrics["ap"] != metrics["ap"]


def test_scores_without_a_place_on_the_tools_curve_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^s on bright \d: .*protocol\.curve=exact"):
        measured(tmp_path, tool_curve=True)  # of float32


def test_the_protocol_says_which_fpr95(plain: Measured) -> None:
    first = results(plain)["s"]
    between = results(plain, fpr95=Fpr95.interpolated)["s"]
    assert between.metrics["fpr95"] == first.metrics["fpr95_interpolated"]
    assert between.metrics["fpr95_first"] == first.metrics["fpr95"]
    assert "fpr95" in first.intervals
    assert "fpr95" not in between.intervals  # it would be that of the other definition
    assert between.metrics["tnr_at_tpr95"] == 1 - between.metrics["fpr95"]


def test_counts_travel_light_between_processes_and_arrive_whole(plain: Measured) -> None:
    parcel = pickle.dumps(plain.counts["s"])
    assert len(parcel) < 2**20  # of 16 MiB of bins
    assert pickle.loads(parcel).results() == plain.counts["s"].results()


def test_what_a_killed_run_left_is_removed_and_no_more(tmp_path: Path) -> None:
    for name in (f"{PREFIX}x/0", f"{PREFIX}y", "cells"):
        (tmp_path / name).mkdir(parents=True)
    remove_left_over(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


@pytest.mark.parametrize("half", [False, True])
def test_the_threshold_in_use_comes_from_images_without_anomalies(
    plain: Measured, pixels, half: bool
) -> None:
    calm = BrightAnomalies(6, seed=5)
    images = [calm[i] for i in range(6)]
    metrics, counts = measure_known_classes(DETECTOR, iter(images), 2, bits=20, half=half)
    assert metrics["miou"] == pytest.approx(1)
    thresholds = operating_thresholds(counts, 0.05)
    normal = np.concatenate([DETECTOR(i.image)[i.labels != VOID] for i in images])
    normal = normal.astype(np.float16 if half else np.float32).astype(np.float32)
    assert (normal >= thresholds["s"]).mean() == pytest.approx(0.05, abs=0.005)
    assert np.abs(normal - thresholds["s"]).min() < 1e-6  # at a score that there is
    found = results(plain, thresholds=thresholds)["s"].metrics
    scores, labels = pixels
    above = scores >= thresholds["s"]
    assert found["id_tpr"] == pytest.approx(above[labels == 1].mean(), abs=0.01)
    assert found["id_fpr"] == pytest.approx(above[labels == 0].mean(), abs=0.01)
    assert found["id_f1"] <= found["f1_star"]


def test_nothing_but_normal_pixels_is_undefined(tmp_path: Path) -> None:
    calm = [BrightAnomalies()[3], BrightAnomalies()[7]]
    found = results(measured(tmp_path, calm, components=(4, 2), num_examples=2))["s"]
    assert np.isnan([found.metrics[key] for key in ("ap", "auroc", "fpr95", "f1_star")]).all()
    assert found.intervals == {}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    scratch = tmp_path_factory.mktemp("scratch")
    found = measured(scratch, BrightAnomalies(12), components=(4, 2), num_examples=1)
    rows = list(results(found, thresholds={"s": -0.5}).values())
    return Cell({"images": "abc"}, rows, found.images, found.examples, {"images": 12})


def test_a_cell_comes_back_from_disk_as_it_was(cell: Cell, tmp_path: Path) -> None:
    path = tmp_path / "cells" / "bright.npz"
    save_cell(path, cell)
    again = load_cell(path, {"images": "abc"})
    assert again is not None
    np.testing.assert_equal([*map(vars, again.results)], [*map(vars, cell.results)])
    np.testing.assert_equal(again.examples, cell.examples)
    assert again.images["s"].names == cell.images["s"].names
    assert compared([again], 100) == compared([cell], 100)


def test_a_cell_of_other_settings_or_a_broken_one_is_not_taken(cell: Cell, tmp_path: Path) -> None:
    path = tmp_path / "bright.npz"
    assert load_cell(path, {}) is None
    save_cell(path, cell)
    assert load_cell(path, {"images": "other"}) is None
    whole = path.read_bytes()
    for broken in (whole[:-200], whole[:500] + bytes(40) + whole[540:], b""):
        path.write_bytes(broken)
        assert load_cell(path, {"images": "abc"}) is None


def test_the_better_method_is_known_from_the_worse_on_the_same_images(cell: Cell) -> None:
    found = compared([cell], 200)
    assert found[0].first in ("m-0 s", "m-0 q")
    wrong = next(c for c in found if c.second == "m-0 wrong")
    assert min(wrong.difference, wrong.low) > 0
    assert wrong.p_value < 0.05
    same = next(c for c in found if c.second in ("m-0 s", "m-0 q"))
    assert same.p_value > 0.05
    assert compared([cell], 0) == []


def test_seeds_of_one_experiment_are_gathered_and_nothing_else(cell: Cell) -> None:
    aps = {"m-0": 0.5, "m-1": 0.7, "m-2": 0.8, "other": 0.1}
    rows = [
        replace(row, model=model, metrics=row.metrics | {"ap": ap})
        for model, ap in aps.items()
        for row in cell.results
    ]
    runs = {f"m-{seed}": SeededRun("m", "group", seed, f"weights {seed}") for seed in (0, 1, 2)}
    runs["other"] = SeededRun("m", "another learning rate", 3, "weights 3")
    gathered = gathered_over_seeds(rows, runs)
    (found,) = (one for one in gathered if (one.scorer, one.metric) == ("s", "ap"))
    values = [aps[f"m-{seed}"] for seed in (0, 1, 2)]
    assert (found.experiment, found.seeds) == ("m", (0, 1, 2))
    assert (found.mean, found.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    for second in (SeededRun("n", "n", 1, "b"), SeededRun("m", "group", 0, "weights 0")):
        assert gathered_over_seeds(rows, {"m-0": runs["m-0"], "m-1": second}) == []


def test_a_squeezed_set_keeps_labels_whole() -> None:
    item = BrightAnomalies()[0]
    small = Resized(BrightAnomalies(), (8, 8))[0]
    assert small.image.shape == (8, 8, 3)
    assert set(np.unique(small.anomaly)) <= {0, 1, VOID}
    np.testing.assert_array_equal(small.anomaly, item.anomaly[1::2, 2::4])  # the nearest pixel
    block = item.image[:2, :4].mean()
    assert abs(float(small.image[0, 0, 0]) - block) < 40  # an average, not one of the pixels


def test_large_images_are_shown_small(tmp_path: Path) -> None:
    def larger(item: LabelledImage) -> LabelledImage:
        return LabelledImage(*(part.repeat(25, 0).repeat(25, 1) for part in item[:3]), item.name)

    images = [larger(BrightAnomalies()[i]) for i in range(2)]
    for example in measured(tmp_path, images, num_examples=1).examples:
        assert example.image.shape[1] <= 640
        assert example.image.shape[:2] == example.anomaly.shape == example.score.shape
