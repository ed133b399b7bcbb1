"""task=doctor: each planted fault is found, alone and with its number; a healthy set has none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import ExifTags, Image, PngImagePlugin

from eomt_exp.contracts import ANOMALY, NORMAL, VOID, LabelledImage, UserError
from eomt_exp.data.checkup.survey import DRAWN, Survey, summary, survey, value_lines
from eomt_exp.data.checkup.verdict import findings, verdict
from eomt_exp.data.files.file_set import AnomalySet
from eomt_exp.data.files.layout_search import SearchPaths, find_layout
from eomt_exp.data.files.layouts import Layout
from eomt_exp.data.known_class_folder import KnownClassFolder
from eomt_exp.data.synthetic_roads import SyntheticBenchmark, SyntheticRoads
from eomt_exp.tasks import doctor
from tests.command_line import Outcome, run
from tests.data_files import SHARED, composed, grey_png, known_classes, noise, save

HEIGHT, WIDTH, COUNT = 20, 30, 5
KEY = "benchmark.road_anomaly"
MEANING = {0: NORMAL, 1: ANOMALY, VOID: VOID}


def label_map(anomaly: int = 1, void_rows: int = 5) -> np.ndarray:
    """600 pixels: 150 void, 60 anomaly, the rest normal."""
    values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    values[:void_rows] = 255
    values[10:16, 5:15] = anomaly
    return values


ZEROS, ALL_VOID = label_map(anomaly=0, void_rows=0), label_map(anomaly=255, void_rows=HEIGHT)
NO_NORMAL = np.where(label_map() == 0, np.uint8(VOID), label_map())
BLOCKS = np.repeat(np.array([255, 0, 1], np.uint8), 8)[:HEIGHT, None].repeat(WIDTH, axis=1)
"""What JPEG keeps as it is: each of its blocks of 8 x 8 has one value."""


def plant(root: Path, labels: str = "labels_masks", seed: int = 0) -> Path:
    for i in range(COUNT):
        save(root / "images" / f"{i}.png", noise(seed + i, HEIGHT, WIDTH))
        save(root / labels / f"{i}.png", label_map())
    return root


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    return plant(tmp_path / "set")


def seen(
    root: Path,
    key: str = KEY,
    meaning: dict[int, int] = MEANING,
    labels: str = "labels_masks",
    num_published: int | None = None,
    num_without_truth: int = 0,
) -> Survey:
    paths = SearchPaths(root, None, [""], "x", KEY)
    found = find_layout({"x": Layout("images/{id}", f"{labels}/{{id}}.png")}, paths, {})
    for index in range(num_without_truth):
        found.pairs[index] = found.pairs[index]._replace(labels=None)
    images = AnomalySet(found, meaning, "error", KEY)
    images.expected_images = num_published
    return survey(images, key, "benchmark")


def kinds(surveyed: Survey) -> dict[str, int]:
    return {finding.kind: finding.number for finding in findings(surveyed)}


def text_of(surveyed: Survey, kind: str) -> str:
    (text,) = (finding.text for finding in findings(surveyed) if finding.kind == kind)
    return text


def test_a_healthy_set_has_no_findings_and_its_pixels_are_counted(healthy: Path) -> None:
    surveyed = seen(healthy, num_published=COUNT)
    assert findings(surveyed) == []
    assert verdict(findings(surveyed)) == "ok"
    assert value_lines(surveyed) == [
        ("0", "65 %", "normal"),
        ("1", "10 %", "anomaly"),
        ("255", "25 %", "void"),
    ]
    lines = {what: (number, remark) for what, number, remark in summary(surveyed)}
    assert lines["images"] == ("5", "of 5 expected")
    assert lines[f"{WIDTH} x {HEIGHT} pixels"] == ("5", "")
    assert lines["anomaly pixels"] == ("13.3 %", "of those that count")  # 60 of 450


def _label(array: np.ndarray, *numbers: int, **options: Any) -> Callable[[Path], None]:
    """Give the images of these numbers another label map."""

    def fault(root: Path) -> None:
        for i in numbers:
            save(root / "labels_masks" / f"{i}.png", array, **options)

    return fault


def _truncate(root: Path) -> None:
    for name in ("images/1.png", "labels_masks/3.png"):
        path = root / name
        path.write_bytes(path.read_bytes()[:-40])


def _gamma(root: Path) -> None:
    chunk = PngImagePlugin.PngInfo()
    chunk.add(b"gAMA", (45455).to_bytes(4, "big"))
    for i in (0, 2, 4):
        save(root / "images" / f"{i}.png", noise(i, HEIGHT, WIDTH), pnginfo=chunk)


def _palette(root: Path) -> None:
    picture = Image.fromarray(label_map())
    picture.putpalette([(7 * i) % 256 for i in range(768)])
    picture.save(root / "labels_masks" / "0.png")


def _turn(root: Path) -> None:
    """Turn a picture upside down by EXIF alone; its label map, upright, has the same size."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    save(root / "images" / "1.png", noise(1, HEIGHT, WIDTH), exif=exif)


def _pack(root: Path) -> None:
    values = np.where(label_map() == 1, 1, 0)
    (root / "labels_masks" / "0.png").write_bytes(grey_png(values, 2))


def _duplicate(root: Path) -> None:
    save(root / "images" / "9.bmp", noise(2, HEIGHT, WIDTH))  # other file, equal pixels
    save(root / "labels_masks" / "9.png", label_map())


def _none(root: Path) -> None:
    """The fault is in what the set is said to be, see OPTIONS."""


# Fault, how many things it concerns, verdict.
FAULTS: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "wrong_number": (_none, COUNT, "warnings"),
    "no_truth": (_none, 1, "warnings"),
    "void_counts_as_anomaly": (_none, COUNT, "warnings"),
    "broken_files": (_truncate, 2, "broken"),
    "broken_files, another size": (_label(label_map()[:10], 2), 1, "broken"),
    "unknown_values": (_label(label_map(anomaly=7), 0, 4), 2, "broken"),
    "without_anomaly": (_label(label_map(anomaly=0), 1), 1, "ok"),
    "without_anomaly, most": (_label(ZEROS, 0, 1, 2), 3, "warnings"),
    "dummy_labels": (_label(ZEROS, *range(COUNT)), COUNT, "broken"),
    "nothing_counts": (_label(ALL_VOID, 1, 3), 2, "ok"),
    "nothing_counts, most": (_label(ALL_VOID, 0, 1, 2), 3, "warnings"),
    "nothing_counts, all": (_label(ALL_VOID, *range(COUNT)), COUNT, "broken"),
    "duplicates": (_duplicate, 1, "warnings"),
    "without_anomaly, all": (_label(label_map(anomaly=0), *range(COUNT)), COUNT, "broken"),
    "no_normal_pixel": (_label(NO_NORMAL, *range(COUNT)), COUNT, "broken"),
    "broken_files, JPEG": (_label(BLOCKS, 0, format="JPEG", quality=100), 1, "broken"),
    "turned_by_exif": (_turn, 1, "warnings"),
    "packed_labels": (_pack, 1, "ok"),
    "gamma_chunk": (_gamma, 3, "ok"),
    "wide_labels": (_label(label_map().astype(np.uint16), 0), 1, "ok"),
    "palette_labels": (_palette, 1, "ok"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "wrong_number": {"num_published": 7},
    "no_truth": {"num_without_truth": 1},
    "void_counts_as_anomaly": {"meaning": MEANING | {VOID: ANOMALY}},
}
TEXTS = {
    "broken_files, another size": "one of the two was resized",
    "broken_files, JPEG": "sizes differ",
    "no_normal_pixel": "No metric has a value without normal pixels",
    "without_anomaly, all": "No metric has a value without an anomaly",
    "wrong_number": "where the published set has 7: 5.",
    "without_anomaly, most": "3 hold nothing but the value 0",
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_planted_fault_is_the_only_finding(healthy: Path, case: str) -> None:
    fault, number, expected = FAULTS[case]
    fault(healthy)
    surveyed, kind = seen(healthy, **OPTIONS.get(case, {})), case.split(",")[0]
    assert kinds(surveyed) == {kind: number}
    assert verdict(findings(surveyed)) == expected
    assert TEXTS.get(case, "") in text_of(surveyed, kind)
    if case == "no_truth":
        assert surveyed.pixels_of(surveyed.images[0], 0, 1) == 0


def test_every_broken_file_is_named_with_its_reason(healthy: Path) -> None:
    _truncate(healthy)
    (finding,) = findings(seen(healthy))
    first, second = finding.names
    assert str(healthy / "images" / "1.png") in first
    assert str(healthy / "labels_masks" / "3.png") in second
    assert len(value_lines(seen(healthy))) == 3  # of the other three images
    for i in range(10, 22):
        save(healthy / "labels_masks" / f"{i}.png", label_map())
        (healthy / "images" / f"{i}.png").write_bytes(b"no picture")
    (finding,) = findings(seen(healthy))
    assert (finding.number, len(finding.names)) == (14, 14)


def test_unknown_values_are_named_with_their_share_beside_the_known_ones(healthy: Path) -> None:
    numbered = seen(healthy, meaning={0: VOID, **{value: ANOMALY for value in range(2, 201)}})
    assert "known are 0, 2-200." in text_of(numbered, "unknown_values")
    _label(label_map(anomaly=7), 0, 4)(healthy)
    surveyed = seen(healthy)
    # 2 images of 60 pixels each, among 5 of 600.
    assert "7 (4 % of all pixels); known are 0-1, 255." in text_of(surveyed, "unknown_values")
    assert ("7", "4 %", "UNKNOWN") in value_lines(surveyed)


def test_two_truths_side_by_side_are_told_apart(tmp_path: Path) -> None:
    root = plant(tmp_path, "labels")
    assert findings(seen(root, labels="labels")) == []
    plant(root, "labels_with_ROI")
    (finding,) = findings(seen(root, labels="labels"))
    assert (finding.kind, finding.number) == ("two_label_folders", 1)
    assert f"in use, {root / 'labels'}:" in finding.text
    assert finding.names == [str(root / "labels_with_ROI")]


@pytest.mark.parametrize("folder", ["fs_static", "fishyscapes/Static"])
def test_a_set_that_has_several_versions_is_explained(tmp_path: Path, folder: str) -> None:
    surveyed = seen(plant(tmp_path / folder))
    assert [finding.kind for finding in findings(surveyed)] == ["static_versions"]
    assert verdict(findings(surveyed)) == "ok"
    assert surveyed.fingerprint() in text_of(surveyed, "static_versions")


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
    whole = seen(healthy).fingerprint()
    assert whole != before
    first, second = (healthy / "labels_masks" / f"{name}.png" for name in (1, 2))
    content = first.read_bytes()
    shutil.copy(second, first)
    second.write_bytes(content)
    assert seen(healthy).fingerprint() not in (before, whole)  # the same maps, of other images


@pytest.fixture
def camvid(tmp_path: Path) -> KnownClassFolder:
    values = np.full((HEIGHT, WIDTH), 11, dtype=np.uint8)
    values[:10], values[10:15] = 3, 8
    for i in range(3):
        save(tmp_path / "camvid" / "val" / f"{i}.png", noise(50 + i, HEIGHT, WIDTH))
        save(tmp_path / "camvid" / "valannot" / f"{i}.png", values)
    images = known_classes("camvid", tmp_path / "camvid", "val")
    images.expected_images = None
    return images


def test_known_classes_are_called_by_name(camvid: KnownClassFolder, tmp_path: Path) -> None:
    surveyed = survey(camvid, "data.val", "val")
    assert findings(surveyed) == []  # above all, nobody misses anomalies
    assert value_lines(surveyed) == [
        ("3", "50 %", "road"), ("8", "25 %", "car"), ("11", "25 %", "void"),
    ]  # fmt: skip
    save(tmp_path / "camvid" / "valannot" / "1.png", ZEROS)
    surveyed = survey(camvid, "data.val", "val")
    assert kinds(surveyed) == {"dummy_labels": 1}
    assert verdict(findings(surveyed)) == "warnings"


def test_a_few_scenes_of_drawn_sets_are_examined() -> None:
    calls: list[int] = []
    roads = SyntheticRoads("train", 1000, height=32, width=64)
    surveyed = survey(roads, "data.train", "train", lambda: calls.append(1))
    assert len(calls) == len(surveyed.images) == DRAWN
    assert surveyed.images[-1].name.endswith("000999")
    assert findings(surveyed) == []
    assert {line[2] for line in value_lines(surveyed)} <= {*roads.class_names, "void"}
    assert ("images", "1,000", f"drawn, {DRAWN} examined") in summary(surveyed)
    images = SyntheticBenchmark("obstacle", length=3, height=32, width=64, empty_fraction=1.0)
    assert kinds(survey(images, "benchmark.x", "benchmark")) == {"without_anomaly": 3}


class Wrong(SyntheticRoads):
    """Labels of a class that is not there, or too few of them."""

    def __getitem__(self, index: int) -> LabelledImage:
        image = super().__getitem__(index)
        if index:
            return image._replace(labels=image.labels[1:])
        return image._replace(labels=np.full_like(image.labels, self.num_classes))


def test_drawn_labels_must_fit_and_exist() -> None:
    surveyed = survey(Wrong("val", 3, height=32, width=64), "data.val", "val")
    assert kinds(surveyed) == {"unknown_values": 1, "broken_files": 2}


def test_a_training_image_in_a_benchmark_is_a_leak(healthy: Path, camvid: KnownClassFolder) -> None:
    save(Path(camvid.locations(2)[0]), noise(1, HEIGHT, WIDTH))  # the benchmark's 1.png
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


VALUES = ("anomaly_values=[1]", "normal_values=[0]", "void_values=[255]", "expected_images=null")
ROAD_ANOMALY = ("benchmark=road_anomaly", *(f"{KEY}.{value}" for value in VALUES))
DRAWN_AND_FILES = (
    *ROAD_ANOMALY, "data.image_size=[32,64]", "data.train.length=1", "data.val.length=1"
)  # fmt: skip


def at(root: Path) -> str:
    return f"paths.road_anomaly={root}"


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """The verdicts on the sets of a command, without its start and its end."""
    for name in os.environ:
        if name.startswith("EOMT_"):  # paths of this machine
            monkeypatch.delenv(name)

    def verdicts(*paths_and_options: str, overrides: tuple[str, ...] = DRAWN_AND_FILES) -> dict:
        cfg = composed(*overrides)
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: cfg.hydra))
        given = OmegaConf.from_dotlist(list(paths_and_options))
        sets = OmegaConf.masked_copy(cfg, ["data", "benchmark", "paths"])
        return doctor._verdicts(OmegaConf.merge(sets, given))

    return verdicts


def command(capfd: pytest.CaptureFixture[str], root: Path) -> tuple[Outcome, dict[str, str]]:
    """How the whole command ended, and the last lines of its report."""
    outcome = run(capfd, "task=doctor", *DRAWN_AND_FILES, at(root))
    lines = [line for line in outcome.out.splitlines() if line.startswith(("data.", "benchmark."))]
    pairs = [line.split(maxsplit=1) for line in lines if not line.split()[0].endswith(":")]
    return outcome, {name: verdict for name, verdict in pairs}


def test_a_healthy_set_ends_well_and_leaves_nothing(healthy: Path, outputs: Path, capfd) -> None:
    _duplicate(healthy)  # warnings alone are no failure
    outcome, found = command(capfd, healthy)
    assert outcome.code == 0, outcome.err
    assert found == {"data.train": "ok", "data.val": "ok", KEY: "warnings"}
    assert "2.png = 9.bmp" in outcome.out
    assert "examine benchmark.road_anomaly 100 % 6/6" in outcome.out
    assert not outputs.exists()


def test_broken_and_missing_files_end_with_1_and_without_traceback(
    healthy: Path, outputs: Path, capfd
) -> None:
    for name in ("0", "4"):
        (healthy / "labels_masks" / f"{name}.png").unlink()
    _truncate(healthy)
    outcome, found = command(capfd, healthy)
    assert (outcome.code, found[KEY]) == (1, "broken")
    assert "Traceback" not in outcome.out + outcome.err
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


def test_missing_images_are_named_each_and_a_warning_where_they_are_skipped(
    healthy: Path, examine, capfd
) -> None:
    for name in ("0", "4"):
        (healthy / "images" / f"{name}.png").unlink()
    (healthy / "labels_masks" / "1_color.png").write_bytes(b"a coloured copy")
    assert examine(at(healthy))[KEY] == "broken"
    printed = capfd.readouterr().out
    assert "error    images that cannot be used: 2." in printed
    for name in ("0", "4"):
        assert f"{name}.png has no image" in printed
    assert examine(at(healthy), f"{KEY}.on_broken=skip")[KEY] == "warnings"
    assert "warning  images that cannot be used: 2." in capfd.readouterr().out


CAMVID_AND_FILES = (*ROAD_ANOMALY, "data=camvid")
CITYSCAPES = ("data=cityscapes",)  # with five benchmarks that it is the known classes of
NOT_GIVEN = "not given, not checked"


@pytest.mark.parametrize(
    ("overrides", "given", "verdicts", "others"),
    [
        (CITYSCAPES, [], {}, NOT_GIVEN),
        # Its labels are given, if not what it takes images from.
        (CITYSCAPES, ["fishyscapes_laf"], {"benchmark.fishyscapes_laf": "broken"}, NOT_GIVEN),
        (DRAWN_AND_FILES, [], {KEY: "broken"}, "ok"),
        (CAMVID_AND_FILES, [], {KEY: "broken"}, NOT_GIVEN),
        (CAMVID_AND_FILES, ["camvid"], {KEY: "broken"}, "broken"),
    ],
)
def test_what_is_asked_for_or_given_must_be_there_and_the_rest_is_not_checked(
    tmp_path: Path, examine, capfd, overrides, given: list[str], verdicts: dict, others: str
) -> None:
    found = examine(*(f"paths.{name}={tmp_path}" for name in given), overrides=overrides)
    assert found == dict.fromkeys(found, others) | verdicts
    assert len(found) == (7 if overrides == CITYSCAPES else 3)
    assert (KEY in verdicts) == ("Type paths.road_anomaly=" in capfd.readouterr().out)


def test_a_leak_is_found_between_the_sets_of_a_command(
    healthy: Path, camvid: KnownClassFolder, examine, capfd
) -> None:
    root = Path(camvid.locations(0)[0]).parents[1]
    for end in ("", "annot"):
        shutil.copytree(root / f"val{end}", root / f"train{end}")
    save(root / "train" / "0.png", noise(3, HEIGHT, WIDTH))
    found = examine(at(healthy), f"paths.camvid={root}", overrides=CAMVID_AND_FILES)
    assert found["data.val"] == "broken"  # the other two of the copied images
    printed = capfd.readouterr().out
    assert "images that are also in data.train: 2. A leak" in printed
    assert "3.png = 0.png" in printed


def test_a_wrong_value_is_no_finding_but_an_error(healthy: Path, examine) -> None:
    with pytest.raises(UserError, match=r"must lie in 0\.\.255, got 300"):
        examine(at(healthy), f"{KEY}.anomaly_values=[300]")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="no CamVid here")
def test_camvid_shares_no_image_between_its_splits() -> None:
    train, val = (
        survey(known_classes("camvid", SHARED / "camvid", s), f"data.{s}", s)
        for s in ("train", "val")
    )
    assert findings(train) == []
    assert findings(val, [train]) == []
    assert (train.length, val.length) == (367, 101)
