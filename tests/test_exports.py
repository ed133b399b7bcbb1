"""Exported score maps, read back as SegmentMeIfYouCan and OoDIS read them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eomt_exp.build import build
from eomt_exp.contracts import ANOMALY, NORMAL, VOID
from eomt_exp.engine.evaluation import Settings, measure_benchmark
from eomt_exp.engine.exports import OODIS_IMAGES, OODIS_SMALLEST, OodisExport, SmiycExport
from eomt_exp.tasks.benchmark_exports import check_written, exports_of
from tests.bright_anomalies import BrightAnomalies
from tests.command_line import SMALL, metrics_of, only_run, run
from tests.data_files import composed, save
from tests.test_engine import detector

SHAPE = (40, 60)


def planted() -> tuple[np.ndarray, list[np.ndarray]]:
    """Scores with two objects, two boxes that touch at a corner being one; and their masks."""
    score = np.random.default_rng(0).random(SHAPE, np.float32) * 0.4
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[5:10, 5:15] = first[10:14, 15:20] = True
    second[25:35, 30:50] = True
    score[first], score[second] = 0.75, 0.9
    score[26, 31] = 1.0
    score[0, 0] = 0.99  # too small to be an instance
    return score, [first, second]


def oodis(folder: Path, part: str = "roadanomaly", threshold: float = 0.5) -> OodisExport:
    return OodisExport(folder, "ours", part, threshold)


def instances(folder: Path, stem: str) -> list[tuple[np.ndarray, float]]:
    """Masks and confidences, found and refused as verify_submission.py does."""
    lines = (folder / f"{stem}_instanceIds_pred.txt").read_text().strip().split("\n")
    entries = [line.split(" ") for line in lines]
    on_disk = {path.name for path in folder.glob(f"{stem}_instanceIds_*.png")}
    assert on_disk == {mask for mask, _, _ in entries}
    read = []
    for mask, _, confidence in entries:
        assert re.match(r".*_instanceIds_\d+_1.png$", mask)
        with Image.open(folder / mask) as image:
            assert image.mode == "L"
            read.append((np.array(image) != 0, float(confidence)))
    return read


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def test_smiyc_finds_the_values_where_it_looks(tmp_path, h5py) -> None:
    score, _ = planted()
    export = SmiycExport(tmp_path, "ours", "ObstacleTrack-all")
    export.write("snowstorm2_00_01_38.181", score)
    path = tmp_path / "anomaly_p/ours/ObstacleTrack-all" / "snowstorm2_00_01_38.181.hdf5"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    with h5py.File(path) as file:
        assert list(file) == ["value"]
        value = file["value"]
        assert (value.dtype, value.compression, value.compression_opts) == (np.float16, "gzip", 9)
        np.testing.assert_array_equal(value[:], score.astype(np.float16), strict=True)


def test_a_map_is_replaced_as_a_whole(tmp_path: Path, h5py) -> None:
    export = SmiycExport(tmp_path, "ours", "x")

    def read() -> np.ndarray:
        with h5py.File(export.folder / "a.hdf5") as file:
            return file["value"][:]

    export.write("a", np.zeros((2, 3), np.float32))
    for wrong, message in (([0, np.nan], "NaN"), ([0, -1e6, np.inf], r"of a reach 1e\+06.*65504")):
        with pytest.raises(ValueError, match=message):
            export.write("a", np.array([wrong], np.float32))
        assert read().shape == (2, 3)
    export.write("a", np.array([[65504.0, -np.inf, np.inf]]))
    assert read().tolist() == [[65504, -np.inf, np.inf]]
    assert [path.name for path in export.folder.iterdir()] == ["a.hdf5"]


def test_without_h5py_the_export_says_what_to_type(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[smiyc\]"'):
        SmiycExport(tmp_path, "ours", "AnomalyTrack-all")


LAF = "04_Maurener_Weg_8_000000_000030"


@pytest.mark.parametrize(
    ("part", "name", "stem"),
    [
        ("roadanomaly", "cow0012", "cow0012"),
        ("roadobstacle", "snowstorm2_00_01_38.181", "snowstorm2_00_01_38.181"),
        ("fishyscapes", f"{LAF}_leftImg8bit", f"{LAF}_gtCoarse"),
    ],
)
def test_oodis_finds_the_planted_objects_under_its_names(tmp_path, part, name, stem) -> None:
    score, objects = planted()
    export = oodis(tmp_path, part)
    export.write(name, score)
    found = instances(tmp_path / "oodis/ours" / part, stem)
    assert len(found) == len(objects)
    for (mask, confidence), planted_mask in zip(found, objects, strict=True):
        np.testing.assert_array_equal(mask, planted_mask)
        assert confidence == pytest.approx(score[planted_mask].mean(dtype=np.float64), abs=1e-12)


def test_threshold_is_strict_and_small_components_are_dropped(tmp_path: Path) -> None:
    score, objects = planted()

    def sizes(threshold: float = 0.5) -> list[int]:
        export = oodis(tmp_path, threshold=threshold)
        export.write("a", score)
        return [int(mask.sum()) for mask, _ in instances(export.folder, "a")]

    one, two = (int(mask.sum()) for mask in objects)
    assert sizes() == [one, two]
    assert sizes(threshold=float(np.float32(0.75))) == [two]
    score[:] = 0
    score[0, :OODIS_SMALLEST] = score[9, : OODIS_SMALLEST - 1] = 1
    assert sizes() == [OODIS_SMALLEST]


def test_an_image_without_an_instance_gets_one_empty_mask(tmp_path: Path) -> None:
    export = oodis(tmp_path)
    for name, score in (("a", planted()[0]), ("ab", planted()[0]), ("a", np.zeros(SHAPE, "f4"))):
        export.write(name, score)
    ((mask, confidence),) = instances(export.folder, "a")  # and the masks of before are gone
    assert (mask.shape, mask.any(), confidence) == (SHAPE, False, 0)
    assert len(instances(export.folder, "ab")) == 2


def test_confidences_keep_their_order_in_text(tmp_path: Path) -> None:
    score = np.full((5, 9), -20.0, np.float32)
    score[:, 0:2], score[:, 4:6] = -8.0, np.nextafter(np.float32(-8), np.float32(0))
    export = oodis(tmp_path, threshold=-10)
    export.write("a", score)
    first, second = (confidence for _, confidence in instances(export.folder, "a"))
    assert first == -8
    assert second > first


def test_an_image_in_a_folder_is_one_file(tmp_path: Path) -> None:
    export = oodis(tmp_path)
    export.write("town/a", planted()[0])
    assert len(instances(export.folder, "town_a")) == 2


@pytest.mark.parametrize(
    ("name", "score", "message"),
    [
        ("a", np.full((4, 4), np.nan), "16 of 16 scores of a are NaN"),
        ("a b", np.zeros((4, 4), np.float32), "blanks"),
    ],
)
def test_maps_that_cannot_be_exported_leave_no_file(tmp_path, name, score, message) -> None:
    with pytest.raises(ValueError, match=message):
        oodis(tmp_path).write(name, score)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_an_evaluation_writes_every_map_once_below_its_run(tmp_path: Path, h5py) -> None:
    images, scoring = BrightAnomalies(), detector(batch_size=3)
    names, thresholds = [*scoring.scorers], dict.fromkeys(scoring.scorers, 0.5)
    exports = exports_of(["smiyc", "oodis"], tmp_path, "ours", "smiyc_anomaly21", names, thresholds)

    def read(order):
        return (images[index]._replace(name=f"scene/{index}") for index in order)

    measure_benchmark(scoring, read, len(images), Settings(tmp_path / "scratch"), exports=exports)
    for scorer in names:
        maps = tmp_path / "exports" / "anomaly_p" / f"ours-{scorer}" / "AnomalyTrack-all"
        assert len([*maps.iterdir()]) == len(images)
        lists = tmp_path / "exports" / "oodis" / f"ours-{scorer}" / "roadanomaly"
        assert len([*lists.glob("*_pred.txt")]) == len(images)
    with h5py.File(maps / "scene_0.hdf5") as file:
        expected = scoring.scores(images[0].image)[0][scorer]
        assert np.array_equal(file["value"][:], expected.astype(np.float16))


def test_what_the_tools_would_refuse_is_said(tmp_path: Path, h5py, monkeypatch) -> None:
    score, _ = planted()
    typed = (["smiyc", "oodis"], tmp_path, "ours", "smiyc_anomaly21", ["rba"])
    for write in exports_of(*typed, {"rba": 0.5})["rba"]:
        write("a", score)
        write("b", score)
    smiyc, listed = check_written(*typed, ["a", "b"])
    assert smiyc.endswith("AnomalyTrack-all: files of 2 images, as its tool reads them.")
    assert listed.endswith("refused would be a part of 2 images, where OoDIS wants 100.")
    monkeypatch.setitem(OODIS_IMAGES, "roadanomaly", 2)
    assert check_written(*typed, ["a", "b"])[1].endswith("2 images, as its tool reads them.")
    (stray,) = (path.parent / "c_instanceIds_1_1.png" for path in tmp_path.rglob("b_*1_1.png"))
    stray.touch()
    assert "refused would be c_instanceIds_1_1.png" in check_written(*typed, ["a", "b"])[1]
    with h5py.File(next(tmp_path.rglob("a.hdf5")), "a") as file:
        del file["value"]
        file["value"] = np.zeros(SHAPE, np.float32)
    next(tmp_path.rglob("b_instanceIds_1_1.png")).unlink()
    smiyc, listed = check_written(*typed, ["a", "b", "c"])
    assert "refused would be a.hdf5 holds float32" in smiyc
    assert "and 1 more" in smiyc  # c.hdf5 is missing
    assert "refused would be b_instanceIds_pred.txt" in listed


def hidden_track(root: Path, dummies: bool) -> Path:
    """A test set of two images, whose label maps are missing or all zero."""
    rng = np.random.default_rng(0)
    for name in ("validation0000", "airplane0000", "cow0001"):
        image = rng.integers(0, 256, (36, 64, 3), dtype=np.uint8)
        save(root / f"images/{name}.jpg", image)
        if dummies or name.startswith("validation"):
            truth = np.zeros((36, 64), np.uint8)
            truth[10:20, 10:30] = name.startswith("validation")
            save(root / f"labels_masks/{name}_labels_semantic.png", truth)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("dummies", [False, True])
def test_hidden_test_sets_are_exported_and_never_measured(
    outputs: Path, tmp_path: Path, capfd, dummies: bool, h5py
) -> None:
    root = hidden_track(tmp_path / "dataset_AnomalyTrack", dummies)
    assert run(capfd, "+experiment=semantic", *SMALL, "benchmark=none").code == 0
    typed = (
        "task=evaluate", f"checkpoint={only_run(outputs, 'semantic')}", "benchmark=smiyc_anomaly21",
        f"paths.smiyc_anomaly21={root}", "benchmark.smiyc_anomaly21.split=test",
        "trainer.num_workers=0", "evaluator.known_classes=false", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    outcome = run(capfd, *typed)
    assert outcome.code == 2
    assert "evaluator.exports=[smiyc]" in outcome.err
    for _ in range(2):  # typed again, nothing is scored again
        outcome = run(capfd, *typed, "evaluator.exports=[smiyc]")
        assert outcome.code == 0, outcome.err
    assert not [key for key in metrics_of(tmp_path / "run") if key.startswith("smiyc")]
    files = [*(tmp_path / "run/exports/anomaly_p").rglob("AnomalyTrack-all/*.hdf5")]
    assert {path.name for path in files} == {"airplane0000.hdf5", "cow0001.hdf5"}
    with h5py.File(files[0]) as file:
        assert file["value"].shape == (36, 64)


def test_dummy_labels_of_test_images_are_no_normal_pixels(tmp_path: Path) -> None:
    root = hidden_track(tmp_path / "dataset_AnomalyTrack", dummies=True)
    cfg = composed("benchmark=smiyc_anomaly21", f"paths.smiyc_anomaly21={root}",
                   "benchmark.smiyc_anomaly21.split=all")  # fmt: skip
    images = build(cfg.benchmark.smiyc_anomaly21, "benchmark.smiyc_anomaly21")
    found = {item.name: set(np.unique(item.anomaly)) for item in map(images.__getitem__, range(3))}
    assert found["validation0000"] == {NORMAL, ANOMALY}
    assert found["cow0001"] == found["airplane0000"] == {VOID}
