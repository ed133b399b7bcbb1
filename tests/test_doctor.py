"""task=doctor: each planted fault is found, alone and with its number; a healthy set has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from eomt_exp import cli
from eomt_exp.contracts import ANOMALY, NORMAL, VOID, LabelledImage
from eomt_exp.data.camvid import CamVid
from eomt_exp.data.checkup.survey import DRAWN, Survey, summary, survey, value_lines
from eomt_exp.data.checkup.verdict import TRAPS, findings, verdict
from eomt_exp.data.files.file_set import AnomalySet
from eomt_exp.data.files.pairs import PairedFiles, pairs_by_stem
from eomt_exp.data.files.tree import FileTree
from eomt_exp.data.synthetic_roads import SyntheticBenchmark, SyntheticRoads
from tests.command_line import Outcome, run

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HEIGHT, WIDTH, COUNT = 20, 30, 5
KEY = "benchmark.road_anomaly"


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)


def label_map(anomaly: int = 1, void_rows: int = 5) -> np.ndarray:
    """600 pixels: 150 void, 60 anomaly, the rest normal."""
    values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    values[:void_rows] = 255
    values[10:16, 5:15] = anomaly
    return values


def plant(root: Path, labels: str = "labels_masks", seed: int = 0) -> Path:
    for i in range(COUNT):
        save(root / "images" / f"{i}.png", pixels(seed + i))
        save(root / labels / f"{i}.png", label_map())
    return root


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    return plant(tmp_path / "set")


MEANING = {0: NORMAL, 1: ANOMALY, VOID: VOID}


def opened(
    root: Path, meaning: dict[int, int] | None = None, labels: str = "labels_masks"
) -> AnomalySet:
    tree = FileTree(root)
    pairs = pairs_by_stem(tree, "images", tree, labels)
    return AnomalySet(PairedFiles(tree, tree, pairs, "error", option=KEY), meaning or MEANING)


def seen(root: Path, key: str = KEY, **options: Any) -> Survey:
    return survey(opened(root, **options), key, "benchmark")


def kinds(looked: Survey) -> dict[str, int]:
    return {finding.kind: finding.number for finding in findings(looked)}


def text_of(looked: Survey, kind: str) -> str:
    (text,) = (finding.text for finding in findings(looked) if finding.kind == kind)
    return text


# --- one set -----------------------------------------------------------------------------------


def test_a_healthy_set_has_no_findings(healthy: Path) -> None:
    looked = seen(healthy)
    assert findings(looked) == []
    assert verdict(findings(looked)) == "ok"


def test_the_summary_counts_pixels_as_they_are(healthy: Path) -> None:
    looked = seen(healthy)
    assert value_lines(looked) == [
        ("0", "65 %", "normal"),
        ("1", "10 %", "anomaly"),
        ("255", "25 %", "void"),
    ]
    lines = {what: (number, remark) for what, number, remark in summary(looked)}
    assert lines["images"] == ("5", "")
    assert lines[f"{WIDTH} x {HEIGHT} pixels"] == ("5", "")
    assert lines["anomaly pixels"] == ("13.3 %", "of those that count")  # 60 of 450
    assert lines["label files"] == ("5", ".png")


def test_a_mix_of_suffixes_is_counted(healthy: Path) -> None:
    save(healthy / "images" / "9.webp", pixels(9))
    save(healthy / "labels_masks" / "9.png", label_map())
    assert ("image files", "6", "5 .png, 1 .webp") in summary(seen(healthy))


def _truncate(root: Path) -> None:
    for name in ("images/1.png", "labels_masks/3.png"):
        path = root / name
        path.write_bytes(path.read_bytes()[:-40])


def _resize(root: Path) -> None:
    save(root / "labels_masks" / "2.png", label_map()[:10])


def _relabel(root: Path) -> None:
    for name in ("0", "4"):
        save(root / "labels_masks" / f"{name}.png", label_map(anomaly=7))


def _empty(root: Path) -> None:
    save(root / "labels_masks" / "1.png", label_map(anomaly=0))


def _all_zero(root: Path) -> None:
    for i in range(COUNT):
        save(root / "labels_masks" / f"{i}.png", label_map(anomaly=0, void_rows=0))


def _all_void(root: Path) -> None:
    for name in ("1", "3"):
        save(root / "labels_masks" / f"{name}.png", label_map(void_rows=HEIGHT, anomaly=255))


def _disguise(root: Path) -> None:
    save(root / "images" / "3.png", pixels(3), format="JPEG")


def _lossy_labels(root: Path) -> None:
    flat = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)  # survives JPEG, so that no value is new
    flat[16:] = 0
    save(root / "labels_masks" / "0.png", flat, format="JPEG", quality=100)


def _gamma(root: Path) -> None:
    chunk = PngImagePlugin.PngInfo()
    chunk.add(b"gAMA", (45455).to_bytes(4, "big"))
    for i in (0, 2, 4):
        save(root / "images" / f"{i}.png", pixels(i), pnginfo=chunk)


def _sixteen_bits(root: Path) -> None:
    save(root / "labels_masks" / "0.png", label_map().astype(np.uint16))


def _palette(root: Path) -> None:
    picture = Image.fromarray(label_map())
    picture.putpalette([(7 * i) % 256 for i in range(768)])
    picture.save(root / "labels_masks" / "0.png")


def _duplicate(root: Path) -> None:
    save(root / "images" / "9.bmp", pixels(2))  # other file, equal pixels
    save(root / "labels_masks" / "9.png", label_map())


FAULTS: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "broken_files": (_truncate, 2, "broken"),
    "other_sizes": (_resize, 1, "broken"),
    "unknown_values": (_relabel, 2, "broken"),
    "without_anomaly": (_empty, 1, "ok"),
    "dummy_labels": (_all_zero, COUNT, "broken"),
    "nothing_counts": (_all_void, 2, "ok"),
    "duplicates": (_duplicate, 1, "warnings"),
    "jpeg_named_png": (_disguise, 1, "ok"),
    "gamma_chunk": (_gamma, 3, "ok"),
    "sixteen_bit_labels": (_sixteen_bits, 1, "ok"),
    "palette_labels": (_palette, 1, "ok"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_the_only_finding(healthy: Path, kind: str) -> None:
    fault, number, word = FAULTS[kind]
    fault(healthy)
    looked = seen(healthy)
    assert kinds(looked) == {kind: number}
    assert verdict(findings(looked)) == word


def test_every_broken_file_is_named_with_its_reason(healthy: Path) -> None:
    _truncate(healthy)
    (finding,) = findings(seen(healthy))
    first, second = finding.names
    assert str(healthy / "images" / "1.png") in first
    assert str(healthy / "labels_masks" / "3.png") in second
    assert len(value_lines(seen(healthy))) == 3  # of the other three images


def test_numbered_objects_are_listed_short(healthy: Path) -> None:
    looked = seen(healthy, meaning={0: VOID, **{value: ANOMALY for value in range(2, 201)}})
    assert "known are 0, 2-200." in text_of(looked, "unknown_values")


def test_many_broken_files_are_all_named(healthy: Path) -> None:
    for i in range(10, 22):
        save(healthy / "labels_masks" / f"{i}.png", label_map())
        (healthy / "images" / f"{i}.png").write_bytes(b"no picture")
    (finding,) = findings(seen(healthy))
    assert (finding.number, len(finding.names)) == (12, 12)


def test_a_harmless_finding_names_the_first_few(healthy: Path) -> None:
    for i in range(10, 26):
        save(healthy / "images" / f"{i}.png", pixels(i), format="JPEG")
        save(healthy / "labels_masks" / f"{i}.png", label_map())
    (finding,) = findings(seen(healthy))
    assert finding.number == 16
    assert finding.names == ["10.png", "11.png", "12.png", "13.png", "14.png"]


def test_unknown_values_are_named_with_their_share(healthy: Path) -> None:
    _relabel(healthy)
    looked = seen(healthy)
    # 2 images of 60 pixels each, among 5 of 600.
    assert "7 (4 % of all pixels); known are 0-1, 255." in text_of(looked, "unknown_values")
    assert ("7", "4 %", "UNKNOWN") in value_lines(looked)


def test_jpeg_label_maps_are_an_error(healthy: Path) -> None:
    _lossy_labels(healthy)
    looked = seen(healthy)
    assert kinds(looked)["jpeg_labels"] == 1
    assert verdict(findings(looked)) == "broken"


def test_mostly_empty_sets_are_suspected_of_dummies(healthy: Path) -> None:
    for i in range(3):
        save(healthy / "labels_masks" / f"{i}.png", label_map(anomaly=0, void_rows=0))
    looked = seen(healthy)
    assert kinds(looked) == {"without_anomaly": 3}
    assert verdict(findings(looked)) == "warnings"
    assert "3 hold nothing but the value 0" in text_of(looked, "without_anomaly")


def test_void_images_are_a_warning_where_most_are(healthy: Path) -> None:
    for i in range(3):
        save(healthy / "labels_masks" / f"{i}.png", label_map(255, HEIGHT))
    looked = seen(healthy)
    assert kinds(looked) == {"nothing_counts": 3}
    assert verdict(findings(looked)) == "warnings"


def test_a_set_that_is_void_throughout_is_broken(healthy: Path) -> None:
    for i in range(COUNT):
        save(healthy / "labels_masks" / f"{i}.png", label_map(255, HEIGHT))
    looked = seen(healthy)
    assert kinds(looked) == {"nothing_counts": COUNT}
    assert verdict(findings(looked)) == "broken"


def test_255_as_anomaly_is_doubted(healthy: Path) -> None:
    looked = seen(healthy, meaning=MEANING | {VOID: ANOMALY})
    assert kinds(looked) == {"void_counts_as_anomaly": COUNT}
    assert verdict(findings(looked)) == "warnings"


def test_two_truths_side_by_side_are_told_apart(tmp_path: Path) -> None:
    root = plant(tmp_path, "labels")
    assert findings(seen(root, labels="labels")) == []
    plant(root, "labels_with_ROI")
    looked = seen(root, labels="labels")
    assert kinds(looked) == {"two_label_folders": 1}
    (finding,) = findings(looked)
    assert f"in use, {root / 'labels'}:" in finding.text
    assert finding.names == [str(root / "labels_with_ROI")]


def test_the_course_spelling_is_explained(tmp_path: Path) -> None:
    looked = seen(plant(tmp_path / "RoadObsticle21"))
    assert [finding.kind for finding in findings(looked)] == ["course_spelling"]
    assert verdict(findings(looked)) == "ok"


@pytest.mark.parametrize("place", ["fs_static", "fishyscapes/Static"])
def test_fishyscapes_static_shows_its_fingerprint(tmp_path: Path, place: str) -> None:
    looked = seen(plant(tmp_path / place))
    assert [finding.kind for finding in findings(looked)] == ["static_versions"]
    assert looked.fingerprint() in text_of(looked, "static_versions")


def test_the_fingerprint_is_of_the_truth_and_not_of_its_files(healthy: Path) -> None:
    before = seen(healthy).fingerprint()
    assert len(before) == 8
    for folder in ("images", "labels_masks"):
        (healthy / folder / "0.png").rename(healthy / folder / "x.png")
    save(healthy / "labels_masks" / "1.png", label_map(), compress_level=0)
    assert seen(healthy).fingerprint() == before
    changed = label_map()
    changed[19, 29] = 1
    save(healthy / "labels_masks" / "1.png", changed)
    assert seen(healthy).fingerprint() != before


def test_another_number_of_images_is_a_warning(healthy: Path) -> None:
    images = opened(healthy)
    images.expected_images = 7
    looked = survey(images, KEY, "benchmark")
    assert kinds(looked) == {"wrong_number": COUNT}
    assert "where the published set has 7: 5." in text_of(looked, "wrong_number")
    images.expected_images = COUNT
    assert findings(survey(images, KEY, "benchmark")) == []


class Unpublished(AnomalySet):
    """The first label map is a secret."""

    def stored(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        image, values = super().stored(index)
        return image, values if index else None


def test_images_without_a_published_truth_are_counted(healthy: Path) -> None:
    files = opened(healthy)
    images = Unpublished(files._files, files.meaning)
    looked = survey(images, KEY, "benchmark")
    assert kinds(looked) == {"no_truth": 1}
    assert looked.pixels_of(looked.images[0], 0, 1) == 0


def test_every_trap_has_been_sprung_here() -> None:
    alone = {"void_counts_as_anomaly", "two_label_folders", "course_spelling", "static_versions",
             "wrong_number", "no_truth", "jpeg_labels"}  # fmt: skip
    assert {trap.__name__ for trap in TRAPS} == {*FAULTS, *alone}


# --- known classes, drawn sets, several sets ---------------------------------------------------


@pytest.fixture
def camvid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CamVid:
    values = np.full((HEIGHT, WIDTH), 11, dtype=np.uint8)
    values[:10], values[10:15] = 3, 8
    for i in range(3):
        save(tmp_path / "camvid" / "val" / f"{i}.png", pixels(50 + i))
        save(tmp_path / "camvid" / "valannot" / f"{i}.png", values)
    images = CamVid(tmp_path / "camvid", "val")
    images.expected_images = None
    return images


def test_known_classes_are_called_by_name(camvid: CamVid) -> None:
    looked = survey(camvid, "data.val", "val")
    assert findings(looked) == []  # above all, nobody misses anomalies
    assert value_lines(looked) == [
        ("3", "50 %", "road"), ("8", "25 %", "car"), ("11", "25 %", "void"),
    ]  # fmt: skip


def test_an_all_zero_map_of_classes_is_doubted(camvid: CamVid) -> None:
    save(Path(camvid.places(1)[1] or ""), np.zeros((HEIGHT, WIDTH), dtype=np.uint8))
    looked = survey(camvid, "data.val", "val")
    assert kinds(looked) == {"dummy_labels": 1}
    assert verdict(findings(looked)) == "warnings"


def test_drawn_sets_are_looked_at_here_and_there() -> None:
    calls: list[int] = []
    roads = SyntheticRoads("train", 1000, height=32, width=64)
    looked = survey(roads, "data.train", "train", lambda: calls.append(1))
    assert len(calls) == len(looked.images) == DRAWN
    assert looked.images[-1].name.endswith("000999")
    assert findings(looked) == []
    assert {line[2] for line in value_lines(looked)} <= {*roads.class_names, "void"}
    assert ("images", "1,000", f"drawn, {DRAWN} looked at") in summary(looked)


def test_drawn_benchmarks_are_looked_at_for_anomalies() -> None:
    images = SyntheticBenchmark("obstacle", length=3, height=32, width=64, empty_fraction=1.0)
    looked = survey(images, "benchmark.x", "benchmark")
    assert kinds(looked) == {"without_anomaly": 3}


class Wrong(SyntheticRoads):
    """Labels of a class that is not there, or too few of them."""

    def __getitem__(self, index: int) -> LabelledImage:
        image = super().__getitem__(index)
        if index:
            return image._replace(labels=image.labels[1:])
        return image._replace(labels=np.full_like(image.labels, self.num_classes))


def test_drawn_labels_must_fit_and_exist() -> None:
    looked = survey(Wrong("val", 3, height=32, width=64), "data.val", "val")
    assert kinds(looked) == {"unknown_values": 1, "other_sizes": 2}


def test_a_training_image_in_a_benchmark_is_a_leak(healthy: Path, camvid: CamVid) -> None:
    save(Path(camvid.places(2)[0]), pixels(1))  # the benchmark's 1.png
    train = survey(camvid, "data.train", "train")
    found = findings(seen(healthy), [train])
    assert [(f.kind, f.number, list(f.names)) for f in found] == [("leak", 1, ["1.png = 2.png"])]
    assert verdict(found) == "broken"


def test_two_benchmarks_that_share_images_are_a_warning(healthy: Path, tmp_path: Path) -> None:
    other = seen(plant(tmp_path / "other", seed=2), "benchmark.other")
    found = findings(other, [seen(healthy)])
    assert [(f.kind, f.number) for f in found] == [("shared_images", COUNT - 2)]
    assert verdict(found) == "warnings"
    assert KEY in found[0].text


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EOMT_OUTPUTS", str(tmp_path / "out"))
    for variable in ("EOMT_ROAD_ANOMALY", "EOMT_CAMVID"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "out"


def doctor(capfd: pytest.CaptureFixture[str], root: Path | None, *words: str) -> Outcome:
    path = () if root is None else (f"paths.road_anomaly={root}",)
    lists = ("anomaly_values=[1]", "normal_values=[0]", "void_values=[255]", "expected_images=null")
    values = (f"{KEY}.{word}" for word in lists)
    drawn = ("data.image_size=[32,64]", "data.train.length=1", "data.val.length=1")
    drawn = () if "data=camvid" in words else drawn
    return run(capfd, "task=doctor", "benchmark=road_anomaly", *path, *values, *drawn, *words)


def verdicts(outcome: Outcome) -> dict[str, str]:
    """The last lines of the report."""
    lines = [line for line in outcome.out.splitlines() if line.startswith(("data.", "benchmark."))]
    pairs = [line.split(maxsplit=1) for line in lines if not line.split()[0].endswith(":")]
    return {name: word for name, word in pairs}


def test_a_healthy_set_ends_well_and_leaves_nothing(healthy: Path, outputs: Path, capfd) -> None:
    outcome = doctor(capfd, healthy)
    assert outcome.code == 0, outcome.err
    assert verdicts(outcome) == {"data.train": "ok", "data.val": "ok", KEY: "ok"}
    assert "look at benchmark.road_anomaly 100 % 5/5" in outcome.out
    assert not outputs.exists()


def test_warnings_alone_are_no_failure(healthy: Path, outputs: Path, capfd) -> None:
    _duplicate(healthy)
    outcome = doctor(capfd, healthy)
    assert outcome.code == 0, outcome.err
    assert verdicts(outcome)[KEY] == "warnings"
    assert "2.png = 9.bmp" in outcome.out


def test_broken_files_end_with_1_and_without_traceback(healthy: Path, outputs: Path, capfd) -> None:
    _truncate(healthy)
    outcome = doctor(capfd, healthy)
    assert (outcome.code, verdicts(outcome)[KEY]) == (1, "broken")
    assert "error    images that cannot be used: 2." in outcome.out
    assert "Traceback" not in outcome.out + outcome.err
    assert not outputs.exists()


def test_broken_files_are_a_warning_where_they_are_skipped(
    healthy: Path, outputs: Path, capfd
) -> None:
    _truncate(healthy)
    outcome = doctor(capfd, healthy, f"{KEY}.on_broken=skip")
    assert (outcome.code, verdicts(outcome)[KEY]) == (0, "warnings")
    assert "warning  images that cannot be used: 2." in outcome.out


def test_missing_label_maps_do_not_stop_it(healthy: Path, outputs: Path, capfd) -> None:
    for name in ("0", "4"):
        (healthy / "labels_masks" / f"{name}.png").unlink()
    _truncate(healthy)
    outcome = doctor(capfd, healthy)
    assert (outcome.code, verdicts(outcome)[KEY]) == (1, "broken")
    lines = outcome.out.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("error    images that cannot"))
    assert "cannot be used: 4." in lines[start]
    text = " ".join(" ".join(lines[start + 1 :]).split())
    labels = healthy / "labels_masks"
    for name in ("0", "4"):
        assert f"{healthy}/images/{name}.png has no label map: {labels}/{name}.png is mi" in text
    for path in (healthy / "images" / "1.png", labels / "3.png"):
        assert f"{path} cannot be read" in text
    assert not outputs.exists()


def test_missing_images_are_named_each(healthy: Path, outputs: Path, capfd) -> None:
    for name in ("0", "4"):
        (healthy / "images" / f"{name}.png").unlink()
    (healthy / "labels_masks" / "1_color.png").write_bytes(b"for the eye")
    outcome = doctor(capfd, healthy)
    assert (outcome.code, verdicts(outcome)[KEY]) == (1, "broken")
    assert "images that cannot be used: 2." in outcome.out
    for name in ("0", "4"):
        assert f"{name}.png has no image" in outcome.out
    outcome = doctor(capfd, healthy, f"{KEY}.on_broken=skip")
    assert (outcome.code, verdicts(outcome)[KEY]) == (0, "warnings")


def plant_cityscapes(root: Path) -> Path:
    values = np.full((HEIGHT, WIDTH), 7, dtype=np.uint8)
    for seed, split in enumerate(("train", "val")):
        scene = f"{split}/ulm/ulm_00000{seed}_000019"
        save(root / "leftImg8bit" / f"{scene}_leftImg8bit.png", pixels(seed))
        save(root / "gtFine" / f"{scene}_gtFine_labelIds.png", values)
    return root


def test_benchmarks_that_came_with_the_data_are_checked_where_they_are_given(
    tmp_path: Path, outputs: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("SMIYC_ANOMALY21", "SMIYC_OBSTACLE21", "FISHYSCAPES_LAF", "FISHYSCAPES_STATIC"):
        monkeypatch.delenv(f"EOMT_{key}", raising=False)
    root = plant_cityscapes(tmp_path / "cityscapes")
    words = ("task=doctor", "data=cityscapes", f"paths.cityscapes={root}")
    outcome = run(capfd, *words)
    assert outcome.code == 0, outcome.out
    found = verdicts(outcome)
    not_given = [key for key, word in found.items() if word == "not given, not checked"]
    assert (found["data.train"], len(not_given), len(found)) == ("warnings", 5, 7)
    # Its labels are given, if not what it takes images from.
    outcome = run(capfd, *words, f"paths.fishyscapes_laf={tmp_path}")
    assert (outcome.code, verdicts(outcome)["benchmark.fishyscapes_laf"]) == (1, "broken")
    assert verdicts(outcome)[KEY] == "not given, not checked"


def test_a_missing_path_breaks_a_benchmark_but_not_the_rest(outputs: Path, capfd) -> None:
    outcome = doctor(capfd, None)
    assert outcome.code == 1
    assert verdicts(outcome) == {"data.train": "ok", "data.val": "ok", KEY: "broken"}
    assert "Type paths.road_anomaly=" in outcome.out
    assert not outputs.exists()


def test_data_whose_path_is_not_given_are_not_checked(healthy: Path, outputs: Path, capfd) -> None:
    outcome = doctor(capfd, healthy, "data=camvid")
    assert outcome.code == 0, outcome.err
    assert verdicts(outcome)["data.train"] == "not given, not checked"


def test_data_whose_path_is_wrong_are_broken(healthy: Path, outputs: Path, capfd) -> None:
    outcome = doctor(capfd, healthy, "data=camvid", f"paths.camvid={healthy / 'nowhere'}")
    assert outcome.code == 1
    assert verdicts(outcome)["data.train"] == "broken"


def test_a_leak_is_found_by_the_command(
    healthy: Path, outputs: Path, camvid: CamVid, capfd
) -> None:
    root = Path(camvid.places(0)[0]).parents[1]
    for end in ("", "annot"):
        shutil.copytree(root / f"val{end}", root / f"train{end}")
    save(root / "train" / "0.png", pixels(3))
    outcome = doctor(capfd, healthy, "data=camvid", f"paths.camvid={root}")
    assert outcome.code == 1
    assert verdicts(outcome)["data.val"] == "broken"  # the other two of the copied images
    assert "images that are also in data.train: 2. A leak" in outcome.out
    assert "3.png = 0.png" in outcome.out


def test_a_wrong_value_is_one_line_and_leaves_nothing(healthy: Path, outputs: Path, capfd) -> None:
    outcome = doctor(capfd, healthy, f"{KEY}.anomaly_values=[300]")
    assert outcome.code == cli.USER_ERROR
    assert "must lie in 0..255, got 300" in outcome.err
    assert not outputs.exists()


# --- real sets, where they are -----------------------------------------------------------------

PHOTOGRAPHS = SHARED / "roadanomaly_cc" / "RoadAnomaly"


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no real photographs here")
def test_36_of_60_real_photographs_are_a_warning() -> None:
    images = opened(PHOTOGRAPHS, {0: NORMAL, 2: ANOMALY})
    images.expected_images = 60
    looked = survey(images, KEY, "benchmark")
    assert kinds(looked) == {"wrong_number": 36}
    assert ("1280 x 720 pixels", "36", "") in summary(looked)
    assert [line[2] for line in value_lines(looked)] == ["normal", "anomaly"]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="no CamVid here")
def test_camvid_shares_no_image_between_its_splits() -> None:
    train, val = (survey(CamVid(SHARED / "camvid", s), f"data.{s}", s) for s in ("train", "val"))
    assert findings(train) == []
    assert findings(val, [train]) == []
    assert (train.length, val.length) == (367, 101)
