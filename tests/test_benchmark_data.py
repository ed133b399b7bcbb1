"""Every anomaly benchmark is read as published and as the course hands it out, pixel by pixel."""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from eomt_exp import cli
from eomt_exp.build import build, build_all
from eomt_exp.contracts import ANOMALY, NORMAL, VOID, DataError, LabelledImage
from eomt_exp.data.files.patterns import FilePattern, Match
from eomt_exp.data.loader import image_loader
from eomt_exp.paths import asset_dir

HEIGHT, WIDTH = 24, 40
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
USUAL = {0: NORMAL, 1: ANOMALY, 255: VOID}
TWO = {0: NORMAL, 2: ANOMALY}  # RoadAnomaly
LAF = {0: VOID, 1: NORMAL, 2: ANOMALY, 7: ANOMALY, 42: ANOMALY}
HAZARDS = {0: VOID, 1: NORMAL, 7: NORMAL, 13: NORMAL, 14: ANOMALY}
BDD = {0: NORMAL, 15: NORMAL, 16: ANOMALY, 17: ANOMALY, 18: ANOMALY, 255: VOID}
MUAD = {0: NORMAL, 11: NORMAL, 12: ANOMALY, 13: NORMAL, 15: NORMAL, 16: ANOMALY, 20: ANOMALY,
        21: VOID, 255: VOID}  # fmt: skip


@pytest.fixture(autouse=True)
def hydra_at_conf() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        yield


def benchmarks(*words: str) -> dict[str, Any]:
    cfg = compose("config", overrides=["hydra.run.dir=unused", *words])
    return build_all(cfg.benchmark, "benchmark")


@cache
def everything() -> DictConfig:
    names = sorted({row[0] for row in PUBLISHED.values()})
    return compose("config", overrides=[f"benchmark=[{','.join(names)}]"])


def benchmark(key: str, root: Path, *words: str) -> Any:
    """The same as benchmarks(f"benchmark={key}", …)[key], but composing takes half a second."""
    given = OmegaConf.from_dotlist([f"paths.{key}={root}", *words])
    node = OmegaConf.merge(everything(), given).benchmark[key]
    return build(node, f"benchmark.{key}")


def save(path: Path, seed: int, kind: str | None = None) -> None:
    """A picture of noise; `kind` is its format where the name says another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format=kind)


def save_labels(path: Path, seed: int, values: Mapping[int, int]) -> None:
    """A label map in which every one of the values occurs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.random.default_rng(seed).choice(list(values), (HEIGHT, WIDTH)).astype(np.uint8)
    assert set(np.unique(stored)) == set(values)
    Image.fromarray(stored).save(path)


def make(root: Path, files: Mapping[str, str], values: Mapping[int, int]) -> Path:
    """Image -> label map, as files in the folder."""
    for seed, (image, labels) in enumerate(files.items()):
        save(root / image, seed)
        save_labels(root / labels, seed, values)
    return root


def zipped(folder: Path, archive: Path) -> Path:
    """The folder's content and its own name above, as archives are usually made."""
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            out.write(path, path.relative_to(folder.parent))
            # As macOS adds them.
            out.writestr(f"__MACOSX/{path.relative_to(folder.parent)}", b"no image")
    return archive


def check(image: LabelledImage, file: Path, labels: Path, values: Mapping[int, int]) -> None:
    """Every pixel: of the image as it was saved, of the truth as its stored value means."""
    assert np.array_equal(image.image, np.asarray(Image.open(file).convert("RGB")))
    stored = np.asarray(Image.open(labels))
    meant = np.vectorize(values.__getitem__)(stored)
    assert np.array_equal(image.anomaly, meant)
    assert image.anomaly.shape == image.image.shape[:2] == (HEIGHT, WIDTH)
    assert (image.labels == VOID).all()


def check_all(images: Any, root: Path, files: Mapping[str, str], values: Mapping[int, int]) -> None:
    assert len(images) == len(files)
    for image, (file, labels) in zip(images, files.items(), strict=True):
        check(image, root / file, root / labels, values)


# --- the course ----------------------------------------------------------------------------------

# Key, folder, ending of the images, meaning of the values.
COURSE = (
    ("smiyc_anomaly21", "RoadAnomaly21", "png", USUAL),
    ("smiyc_obstacle21", "RoadObsticle21", "webp", USUAL),
    ("road_anomaly", "RoadAnomaly", "jpg", TWO),
    ("fishyscapes_laf", "FS_LostFound_full", "png", USUAL),
    ("fishyscapes_static", "fs_static", "jpg", USUAL),
)


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """Three images a set: one is JPEG data whatever it is called, the last has no anomaly."""
    root = tmp_path / "Validation_Dataset"
    for number, (_, folder, ending, values) in enumerate(COURSE):
        for index in (1, 2, 10):
            seed = 10 * number + index
            kind = "JPEG" if index == 1 else None
            save(root / folder / "images" / f"{index}.{ending}", seed, kind)
            there = {v: m for v, m in values.items() if m != ANOMALY or index != 10}
            save_labels(root / folder / "labels_masks" / f"{index}.png", seed, there)
        (root / folder / "images" / f"._1.{ending}").write_bytes(b"of a Mac")
        (root / folder / "labels_masks" / "1_color.png").write_bytes(b"for the eye")
    return root


def check_course(sets: Mapping[str, Any], root: Path) -> None:
    assert list(sets) == [key for key, *_ in COURSE]
    for key, folder, ending, values in COURSE:
        names = [image.name for image in sets[key]]
        assert names == ["1", "2", "10"], "images without anomaly stay"
        assert not (sets[key][2].anomaly == ANOMALY).any()
        for name, image in zip(names, sets[key], strict=True):
            labels = root / folder / "labels_masks" / f"{name}.png"
            check(image, root / folder / "images" / f"{name}.{ending}", labels, values)


def of_course(path: Path) -> dict[str, Any]:
    return benchmarks("benchmark=validation_dataset", f"paths.validation_dataset={path}")


def test_the_course_is_read_from_one_folder(course: Path) -> None:
    check_course(of_course(course), course)
    check_course(of_course(course.parent), course)


def test_the_course_is_read_from_a_zip(course: Path, tmp_path: Path) -> None:
    check_course(of_course(zipped(course, tmp_path / "all.zip")), course)


def test_the_course_is_read_from_a_folder_of_zips(course: Path, tmp_path: Path) -> None:
    (tmp_path / "zips").mkdir()
    for _, folder, *_ in COURSE:
        zipped(course / folder, tmp_path / "zips" / f"{folder}.zip")
    check_course(of_course(tmp_path / "zips"), course)


def test_a_set_of_the_course_spelt_right_is_found_too(course: Path) -> None:
    (course / "RoadObsticle21").rename(course / "RoadObstacle21")
    obstacles = of_course(course)["smiyc_obstacle21"]
    assert "RoadObstacle21" in obstacles.places(0)[0]
    assert len(obstacles) == 3


@pytest.mark.parametrize(("key", "folder"), [row[:2] for row in COURSE])
def test_each_set_of_the_course_is_found_alone_or_one_above(
    course: Path, key: str, folder: str
) -> None:
    for root in (course / folder, course, course.parent):
        images = benchmark(key, root)
        assert images.places(0)[0].startswith(str(course / folder / "images"))
        assert len(images) == 3


def test_a_set_that_the_course_folder_lacks_is_never_another_one(course: Path) -> None:
    shutil.rmtree(course / "RoadAnomaly")
    with pytest.raises(
        DataError,
        match=r"benchmark\.road_anomaly is not found.*called RoadAnomaly or.*Found: images in .*"
        r"fs_static/images \(3 such as 1\.jpg\).*paths\.validation_dataset=",
    ):
        of_course(course)
    with pytest.raises(DataError, match=r"smiyc_anomaly21 \(split=validation\) is not found"):
        of_course(course / "fs_static")
    with pytest.raises(DataError, match=r"paths\.validation_dataset=.*EOMT_VALIDATION_DATASET"):
        benchmarks("benchmark=validation_dataset")


def test_an_unknown_value_names_file_value_and_option(course: Path) -> None:
    path = course / "fs_static" / "labels_masks" / "2.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 7, dtype=np.uint8)).save(path)
    with pytest.raises(
        DataError, match=r"2\.png holds label values 7;.*benchmark\.fishyscapes_static\.anomaly_v"
    ):
        of_course(course)["fishyscapes_static"][1]


def test_sizes_that_differ_are_named(course: Path) -> None:
    path = course / "fs_static" / "labels_masks" / "2.png"
    Image.fromarray(np.zeros((5, 7), dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=r"2\.png is 7x5 .*2\.jpg is 40x24"):
        of_course(course)["fishyscapes_static"][1]


def test_images_converted_beside_the_others_are_not_read_twice(
    course: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(course / "RoadObsticle21" / "images" / "2.png", 99)
    with caplog.at_level(logging.WARNING):
        sets = of_course(course)
    check_course(sets, course)
    assert "twice" in caplog.text
    assert "2.png" in caplog.text
    for name in ("1", "10"):
        save(course / "RoadObsticle21" / "images" / f"{name}.png", 99)
    with pytest.raises(DataError, match=r"both .*1\.png and .*1\.webp; keep one"):
        of_course(course)


def test_a_set_beside_the_course_is_read_where_its_own_path_says(
    course: Path, tmp_path: Path
) -> None:
    own = make(tmp_path / "photographs", {"images/5.jpg": "labels_masks/5.png"}, TWO)
    sets = benchmarks(
        "benchmark=[validation_dataset,road_anomaly]",
        f"paths.validation_dataset={course}",
        f"paths.road_anomaly={own}",
    )
    assert [image.name for image in sets["road_anomaly"]] == ["5"]
    assert sets["fishyscapes_static"].places(0)[0].startswith(str(course))


def test_a_label_map_without_its_image_is_named_or_left_out(course: Path) -> None:
    root = course / "fs_static"
    (root / "images" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"labels_masks/2\.png has no image: .*images/2 is missing"):
        benchmark("fishyscapes_static", root)
    word = "benchmark.fishyscapes_static.on_broken=skip"
    images = benchmark("fishyscapes_static", root, word)
    assert [image.name for image in images] == ["1", "10"]
    assert images.skipped == ["2"]


# --- as published --------------------------------------------------------------------------------

TRACK = "images/{0}.{1}", "labels_masks/{0}_labels_semantic.png"


def track(ending: str, *names: str) -> dict[str, str]:
    return {image.format(n, ending): labels.format(n) for image, labels in [TRACK] for n in names}


# Key, the folder's name as published, image -> label map, values, overrides.
PUBLISHED: dict[str, tuple[str, str, dict[str, str], dict[int, int], tuple[str, ...]]] = {
    "SMIYC anomalies": ("smiyc_anomaly21", "dataset_AnomalyTrack",
                        track("jpg", "validation0000", "validation0009"), USUAL, ()),
    "SMIYC obstacles": ("smiyc_obstacle21", "dataset_ObstacleTrack",
                        track("webp", "validation_1", "validation_2", "validation_20"), USUAL, ()),
    "RoadAnomaly": ("road_anomaly", "RoadAnomaly_jpg", {
        f"frames/{n}.jpg": f"frames/{n}.labels/labels_semantic.png"
        for n in ("animals01_a", "rocks_02")}, TWO, ()),
    "RoadAnomaly, folders without .labels": ("road_anomaly", "RoadAnomaly_jpg", {
        "frames/cow.jpg": "frames/cow/labels_semantic.png"}, TWO, ()),
    "Fishyscapes L&F of RbA": ("fishyscapes_laf", "Fishyscapes", {
        f"laf_images/{s}_leftImg8bit.png": f"fishyscapes_lostandfound/{i:04}_{s}_labels.png"
        for i, s in enumerate(("04_Maurener_Weg_8_000000_000030", "15_Am_Bad_8_000001_000200"))
    }, USUAL, ()),
    "Fishyscapes L&F of synboost": ("fishyscapes_laf", "LostAndFound", {
        "original/0000_04_Weg_leftImg8bit.png": "labels/0000_04_Weg_labels.png",
        "original/7.png": "labels/7.png"}, USUAL, ()),
    "Fishyscapes L&F, road only": ("fishyscapes_laf", "LostAndFound", {
        "original/0000_04_Weg_leftImg8bit.png": "labels_with_ROI/0000_04_Weg_labels.png",
        "original/7.png": "labels_with_ROI/7.png"}, USUAL,
        ("benchmark.fishyscapes_laf.labels=labels_with_ROI",)),
    "Fishyscapes Static of RbA": ("fishyscapes_static", "Fishyscapes", {
        f"fs_static_images_v2/{s}_rgb.png": f"fs_val_v2/{s}_labels.png"
        for s in ("0000_frankfurt_000001_046504", "0001_lindau_000001_000019")}, USUAL, ()),
    "Fishyscapes Static of bdlb": ("fishyscapes_static", "fs_val_v2", {
        f"{s}_rgb.jpg": f"{s}_labels.png" for s in ("0000_frankfurt_1", "0001_lindau_2")},
        USUAL, ()),
    "Fishyscapes Static of synboost": ("fishyscapes_static", "Static", {
        "original/0_rgb.png": "labels/0_labels.png"}, USUAL, ()),
    "LostAndFound": ("lost_and_found", "LostAndFound", {
        f"leftImg8bit/test/{s}/{s}_{n}_leftImg8bit.png":
        f"gtCoarse/test/{s}/{s}_{n}_gtCoarse_labelIds.png"
        for s, n in (("01_Hanns_Klemm_Str_45", "000000_000010"),
                     ("01_Hanns_Klemm_Str_45", "000006_000020"),
                     ("15_Rechbergstr_Deckenpfronn", "000001_000030"))}, LAF, ()),
    "StreetHazards": ("streethazards", "test", {
        f"images/test/{town}/300.png": f"annotations/test/{town}/300.png"
        for town in ("t5", "t6")}, HAZARDS, ()),
    "BDD-Anomaly": ("bdd_anomaly", "bdd100k", {
        "images/10k/train/0000f77c-62c2a2.jpg": "labels/sem_seg/masks/train/0000f77c-62c2a2.png",
        "images/10k/val/7d2f7975-e0c1c5a7.jpg": "labels/sem_seg/masks/val/7d2f7975-e0c1c5a7.png",
    }, BDD, ()),
    "BDD-Anomaly, older": ("bdd_anomaly", "bdd100k", {
        "seg/images/train/a-1.jpg": "seg/labels/train/a-1_train_id.png"}, BDD, ()),
    "MUAD": ("muad", "MUAD", {
        f"test_ood/leftImg8bit/00000{n}_leftImg8bit.png":
        f"test_ood/leftLabel/00000{n}_leftLabel.png" for n in (1, 2)}, MUAD, ()),
    "MUAD, adverse": ("muad", "MUAD", {
        f"test_ood_low_adv/leftImg8bit/00000{n}_leftImg8bit_{w}.png":
        f"test_ood_low_adv/leftLabel/00000{n}_leftLabel_{w}.png"
        for n, w in ((1, "rain"), (2, "fog"))}, MUAD, ("benchmark.muad.split=test_ood_low_adv",)),
    "miniMUAD": ("muad", "MUAD_small", {"ood/leftImg8bit/1.png": "ood/leftLabel/1.png"}, MUAD,
                 ("benchmark.muad.split=ood",)),
}  # fmt: skip


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_layouts_are_read_from_folder_parent_and_zip(tmp_path: Path, layout: str) -> None:
    key, folder, files, values, words = PUBLISHED[layout]
    root = make(tmp_path / folder, files, values)
    for place in (root, tmp_path, zipped(root, tmp_path / "as_published.zip")):
        check_all(benchmark(key, place, *words), root, files, values)


def test_every_value_that_a_benchmark_gives_a_meaning_is_tested_here() -> None:
    """The kinds of meaning at least: a benchmark without void values has none here either."""
    for key, _, _, values, _ in PUBLISHED.values():
        node = everything().benchmark[key]
        meanings = {"normal": NORMAL, "anomaly": ANOMALY, "void": VOID}
        given = {ours for name, ours in meanings.items() if node[f"{name}_values"]}
        assert given == set(values.values())


def test_what_lies_beside_the_label_maps_is_no_label_map(tmp_path: Path) -> None:
    key, folder, files, values, _ = PUBLISHED["SMIYC anomalies"]
    root = make(tmp_path / folder, files, values)
    for name in ("validation0000", "validation0009"):
        save(root / "labels_masks" / f"{name}_labels_semantic_color.png", 5)
    check_all(benchmark(key, root), root, files, values)


def smiyc(tmp_path: Path, ending: str, *names: str) -> Path:
    """Images of all splits, label maps of validation: as the archives come."""
    root = make(tmp_path / "track", track(ending, *names), USUAL)
    for path in (root / "labels_masks").iterdir():
        if not path.name.startswith("validation"):
            path.unlink()
    return root


SCENES = ("validation_1", "validation_2", "validation_19", "validation_25", "darkasphalt2_dog_3",
          "curvy-street_clear_1", "snowstorm1_00_1", "driveway_2")  # fmt: skip


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("validation", {"validation_1", "validation_2"}),
        ("test", {"darkasphalt2_dog_3", "curvy-street_clear_1"}),
        ("all", set(SCENES)),
    ],
)
def test_splits_of_the_obstacle_track(tmp_path: Path, split: str, names: set[str]) -> None:
    root = smiyc(tmp_path, "webp", *SCENES)
    images = benchmark("smiyc_obstacle21", root, f"benchmark.smiyc_obstacle21.split={split}")
    assert {image.name for image in images} == names
    for index, image in enumerate(images):
        is_published = image.name.startswith("validation")
        assert (images.places(index)[1] is not None) == is_published
        assert (images.stored(index)[1] is not None) == is_published
        assert (image.anomaly == VOID).all() != is_published


def test_splits_of_the_anomaly_track_and_how_many_images_they_have(tmp_path: Path) -> None:
    root = smiyc(tmp_path, "jpg", "validation0000", "animals0001", "rocks0002")
    word = "benchmark.smiyc_anomaly21.split"
    sets = {s: benchmark("smiyc_anomaly21", root, f"{word}={s}") for s in ("validation", "test")}
    assert [image.name for image in sets["validation"]] == ["validation0000"]
    assert [image.name for image in sets["test"]] == ["animals0001", "rocks0002"]
    assert [images.expected_images for images in sets.values()] == [10, 100]
    with pytest.raises(ValueError, match=r"smiyc_anomaly21\.split must be one of validation, test"):
        benchmark("smiyc_anomaly21", root, f"{word}=val")


def test_a_validation_image_without_its_published_truth_is_named(tmp_path: Path) -> None:
    root = smiyc(tmp_path, "jpg", "validation0000", "validation0001", "rocks0002")
    (root / "labels_masks" / "validation0001_labels_semantic.png").unlink()
    for split in ("validation", "all"):
        with pytest.raises(DataError, match=r"validation0001\.jpg has no label map"):
            benchmark("smiyc_anomaly21", root, f"benchmark.smiyc_anomaly21.split={split}")


@pytest.mark.parametrize("split", ["validation", "test", "all"])
def test_the_two_tracks_are_never_taken_for_each_other(tmp_path: Path, split: str) -> None:
    obstacles = smiyc(tmp_path / "o", "webp", *SCENES)
    anomalies = smiyc(tmp_path / "a", "jpg", "validation0000", "validation0009", "rocks0002")
    for key, own, other in (
        ("smiyc_anomaly21", anomalies, obstacles),
        ("smiyc_obstacle21", obstacles, anomalies),
    ):
        word = f"benchmark.{key}.split={split}"
        assert len(benchmark(key, own, word))
        with pytest.raises(DataError, match=rf"{key} .*is not found.* images such as .*valid"):
            benchmark(key, other, word)


def test_a_split_without_images_is_said(tmp_path: Path) -> None:
    root = smiyc(tmp_path, "jpg", "validation0000")
    with pytest.raises(DataError, match=rf"{root} has this layout, but no image of the split"):
        benchmark("smiyc_anomaly21", root, "benchmark.smiyc_anomaly21.split=test")


def test_images_without_any_label_map_are_said(tmp_path: Path) -> None:
    root = smiyc(tmp_path, "jpg", "rocks0002", "rocks0003")
    with pytest.raises(
        DataError, match=r"2 images such as .*rocks0002\.jpg are there, but of none"
    ):
        benchmark("smiyc_anomaly21", root)


def test_the_course_has_no_test_images_and_no_other_labels(course: Path) -> None:
    word = "benchmark.smiyc_anomaly21.split=test"
    with pytest.raises(DataError, match=r"split=test\) is not found.*original: .*course: .*only"):
        benchmark("smiyc_anomaly21", course, word)
    word = "benchmark.fishyscapes_laf.labels=labels_with_ROI"
    with pytest.raises(DataError, match=r"labels=labels_with_ROI\) is not found"):
        benchmark("fishyscapes_laf", course, word)


def test_lost_and_found_is_read_from_its_two_zips(tmp_path: Path) -> None:
    key, folder, files, values, _ = PUBLISHED["LostAndFound"]
    root = make(tmp_path / folder, files, values)
    (tmp_path / "zips").mkdir()
    for part in ("leftImg8bit", "gtCoarse"):
        zipped(root / part, tmp_path / "zips" / f"{part}.zip")
    check_all(benchmark(key, tmp_path / "zips"), root, files, values)
    shutil.move(root / "leftImg8bit", tmp_path / "zips" / "leftImg8bit")
    mixed = benchmark(key, tmp_path / "zips")
    assert mixed.places(0)[0].startswith(str(tmp_path / "zips" / "leftImg8bit" / "test"))
    assert len(mixed) == len(files)


def test_lost_and_found_without_objects_of_known_classes(tmp_path: Path) -> None:
    key, folder, files, values, _ = PUBLISHED["LostAndFound"]
    root = make(tmp_path / folder, files, values)
    everything = benchmark(key, root)
    assert everything.expected_images == 1203
    images = benchmark(key, root, f"benchmark.{key}.known_objects=false")
    assert [image.name for image in images] == ["01_Hanns_Klemm_Str_45_000000_000010"]
    assert images.expected_images is None
    with pytest.raises(DataError, match=r"split=train\) is not found.*leftImg8bit/train/"):
        benchmark(key, root, f"benchmark.{key}.split=train")


def test_fishyscapes_label_maps_find_their_images_in_lost_and_found(tmp_path: Path) -> None:
    scenes = ("04_Maurener_Weg_8_000000_000030", "04_Maurener_Weg_8_000001_000040")
    image = "leftImg8bit/train/04_Maurener_Weg_8/{}_leftImg8bit.png"
    laf, labels = tmp_path / "laf", tmp_path / "fishyscapes_lostandfound"
    files = {
        image.format(s): f"../{labels.name}/000{i}_{s}_labels.png" for i, s in enumerate(scenes)
    }
    make(laf, files, USUAL)
    save(laf / image.format("04_Maurener_Weg_8_000009_000990"), 9)  # not among the hundred
    archive = zipped(labels, tmp_path / "fishyscapes_lostandfound.zip")
    for place in (labels, archive):
        check_all(benchmark("fishyscapes_laf", place, f"paths.lost_and_found={laf}"),
                  laf, files, USUAL)  # fmt: skip
    with pytest.raises(DataError, match=r"leftImg8bit/\*/\*/\{id\}_leftImg8bit with"):
        benchmark("fishyscapes_laf", archive)
    (laf / image.format(scenes[1])).unlink()
    words = (f"paths.lost_and_found={laf}", "benchmark.fishyscapes_laf.on_broken=skip")
    with pytest.raises(DataError, match=r"0001_04.*_labels\.png has no image: .*on_broken=skip"):
        benchmark("fishyscapes_laf", archive, words[0])
    assert len(benchmark("fishyscapes_laf", archive, *words)) == 1


def fishyscapes_downloads(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Lost and Found, the label maps beside it, and both in zips/."""
    scene = "04_Maurener_Weg_8_000000_000030"
    laf, labels = tmp_path / "data" / "lost_and_found", tmp_path / "fishyscapes_lostandfound"
    files = {
        f"leftImg8bit/train/04_Maurener_Weg_8/{scene}_leftImg8bit.png":
        f"../../{labels.name}/0000_{scene}_labels.png"
    }  # fmt: skip
    make(laf, files, USUAL)
    for folder in ("images", "labels", "both"):
        (tmp_path / folder).mkdir()
    zipped(laf / "leftImg8bit", tmp_path / "images" / "leftImg8bit.zip")
    zipped(labels, tmp_path / "labels" / "fishyscapes_lostandfound.zip")
    for name in ("images/leftImg8bit.zip", "labels/fishyscapes_lostandfound.zip"):
        shutil.copy(tmp_path / name, tmp_path / "both")
    return laf, files


@pytest.mark.parametrize(
    ("labels", "images"),
    [
        ("labels", "images"),
        ("labels", "images/leftImg8bit.zip"),
        ("labels", "data"),  # one above lost_and_found/
        ("labels/fishyscapes_lostandfound.zip", "data/lost_and_found"),
        ("both", None),
        ("both", ""),  # as an empty variable gives it
    ],
)
def test_fishyscapes_is_read_from_both_zips_as_downloaded(
    tmp_path: Path, labels: str, images: str | None
) -> None:
    laf, files = fishyscapes_downloads(tmp_path)
    path = "null" if images is None else f"{tmp_path / images}" if images else '""'
    word = f"paths.lost_and_found={path}"
    check_all(benchmark("fishyscapes_laf", tmp_path / labels, word), laf, files, USUAL)


def test_an_empty_second_place_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laf, _ = fishyscapes_downloads(tmp_path)
    monkeypatch.chdir(laf)
    with pytest.raises(DataError, match=r"fishyscapes_laf \(labels=labels\) is not found"):
        benchmark("fishyscapes_laf", tmp_path / "labels", 'paths.lost_and_found=""')


def test_a_second_place_that_is_none_is_named_by_its_key(tmp_path: Path) -> None:
    fishyscapes_downloads(tmp_path)
    with pytest.raises(DataError, match=r"fishyscapes_laf\.images_root is .*nowhere, which is ne"):
        benchmark(
            "fishyscapes_laf", tmp_path / "labels", f"paths.lost_and_found={tmp_path}/nowhere"
        )


def test_a_damaged_zip_of_something_else_is_no_hindrance(tmp_path: Path) -> None:
    laf, files = fishyscapes_downloads(tmp_path)
    (tmp_path / "both" / "a_film.zip").write_bytes(b"half of it")
    check_all(benchmark("fishyscapes_laf", tmp_path / "both"), laf, files, USUAL)
    (tmp_path / "both" / "leftImg8bit.zip").write_bytes(b"half of it")
    with pytest.raises(DataError, match=r"not found.*leftImg8bit\.zip cannot be read as a zip"):
        benchmark("fishyscapes_laf", tmp_path / "both")


def test_a_place_is_searched_once_and_named_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "1.jpg", 0)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as out:
        out.write(tmp_path / "1.jpg", "2.jpg")
    walked: list[str] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: walked.append(str(a[0])) or walk(*a, **k))
    word = "benchmark.muad.split=ood"
    found = rf"called MUAD .* or ood:.*in {tmp_path} \(1 such as 1\.jpg\), {tmp_path}/b\.zip \(1 "
    with pytest.raises(DataError, match=found):
        benchmark("muad", tmp_path, word)
    assert walked == [str(tmp_path)]


def test_two_label_maps_of_one_image_are_refused(tmp_path: Path) -> None:
    key, folder, files, values, _ = PUBLISHED["Fishyscapes Static of RbA"]
    root = make(tmp_path / folder, files, values)
    shutil.copytree(root / "fs_val_v2", root / "fs_val_v1")
    with pytest.raises(DataError, match=r"Both .*fs_val_v1.* and .*fs_val_v2.*keep one"):
        benchmark(key, root)


def test_bdd_anomaly_is_the_images_that_show_one(tmp_path: Path) -> None:
    key, folder, files, values, _ = PUBLISHED["BDD-Anomaly"]
    root = make(tmp_path / folder, files, values)
    without = {v: m for v, m in values.items() if m != ANOMALY}
    make(root, {"images/10k/val/b.jpg": "labels/sem_seg/masks/val/b.png"}, without)
    save(root / "images" / "10k" / "test" / "c.jpg", 3)  # published without labels
    check_all(benchmark(key, root), root, files, values)
    names = [
        image.name for image in benchmark(key, root, f"benchmark.{key}.only_with_anomalies=false")
    ]
    assert names == [*(Path(file).stem for file in files), "b"]
    everything = benchmark(key, root, f"benchmark.{key}.only_with_anomalies=false")
    assert everything.expected_images is None


def test_bdd_anomaly_is_read_from_its_two_zips(tmp_path: Path) -> None:
    key, folder, files, values, _ = PUBLISHED["BDD-Anomaly"]
    root = make(tmp_path / folder, files, values)
    (tmp_path / "zips").mkdir()
    for part, name in (
        ("images", "bdd100k_images_10k"),
        ("labels", "bdd100k_sem_seg_labels_trainval"),
    ):
        (tmp_path / part).mkdir()
        shutil.copytree(root / part, tmp_path / part / "bdd100k" / part)
        zipped(tmp_path / part / "bdd100k", tmp_path / "zips" / f"{name}.zip")
    check_all(benchmark(key, tmp_path / "zips"), root, files, values)


def test_muad_is_read_from_the_zips_of_its_splits(tmp_path: Path) -> None:
    key, folder, files, values, _ = PUBLISHED["MUAD"]
    root = make(tmp_path / folder, files, values)
    (tmp_path / "zips").mkdir()
    zipped(root / "test_ood", tmp_path / "zips" / "test_ood.zip")
    images = benchmark(key, tmp_path / "zips")
    check_all(images, root, files, values)
    assert images.expected_images == 1668


def test_towns_of_streethazards_have_images_of_one_name(tmp_path: Path) -> None:
    key, folder, files, values, _ = PUBLISHED["StreetHazards"]
    images = benchmark(key, make(tmp_path / folder, files, values))
    assert [image.name for image in images] == ["t5/300", "t6/300"]


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_a_zip_as_this_process_does(
    course: Path, tmp_path: Path, workers: int
) -> None:
    images = of_course(zipped(course, tmp_path / "all.zip"))["fishyscapes_laf"]
    here = list(images)  # opens the archive before the workers are forked
    for _ in range(2):
        there = list(image_loader(images, workers))
        assert [image.name for image in there] == [image.name for image in here]
        for one, other in zip(here, there, strict=True):
            assert np.array_equal(one.image, other.image)
            assert np.array_equal(one.anomaly, other.anomaly)


@pytest.mark.parametrize(
    ("key", "sizes", "count"),
    [
        ("road_anomaly", (500, 100), 60),
        ("smiyc_anomaly21", (500, 100), 10),
        ("smiyc_obstacle21", (50, 10), 30),
        ("fishyscapes_laf", (50, 10), 100),
        ("fishyscapes_static", (500, 100), 30),
        ("lost_and_found", (50, 10), 1203),
        ("streethazards", (500, 100), 1500),
        ("bdd_anomaly", (500, 100), 810),
        ("muad", (500, 100), 1668),
    ],
)
def test_benchmarks_say_their_size_and_that_of_their_components(
    tmp_path: Path, key: str, sizes: tuple[int, int], count: int
) -> None:
    name = next(name for name, row in PUBLISHED.items() if row[0] == key)
    _, folder, files, values, words = PUBLISHED[name]
    root = make(tmp_path / folder, files, values)
    images = benchmark(key, root, *words)
    assert (images.component_sizes, images.expected_images) == (sizes, count)
    with pytest.raises(ValueError, match=r"component_sizes holds two whole numbers"):
        benchmark(key, root, *words, f"benchmark.{key}.component_sizes=[5]")
    assert (
        benchmark(key, root, *words, f"benchmark.{key}.component_sizes=null").component_sizes
        is None
    )


def test_the_embedded_benchmarks_have_component_sizes_too() -> None:
    sets = benchmarks("benchmark=of_synthetic_roads")
    assert sets["synth_anomaly"].component_sizes == (20, 10)
    assert sets["synth_obstacle"].component_sizes == (8, 4)


@pytest.mark.parametrize("key", sorted({row[0] for row in PUBLISHED.values()}))
def test_a_benchmark_that_is_nowhere_lists_its_layouts_and_what_is_there(
    tmp_path: Path, key: str
) -> None:
    with pytest.raises(DataError, match=rf"Looked for.*\{{id\}}.*no images.*paths\.{key}="):
        benchmark(key, tmp_path)
    save(tmp_path / "pictures" / "1.jpg", 0)
    with pytest.raises(DataError, match=r"Found: images in .*pictures \(1 such as 1\.jpg\)"):
        benchmark(key, tmp_path)
    with pytest.raises(DataError, match=rf"EOMT_{key.upper()}"):
        benchmarks(f"benchmark={key}")


def test_a_set_of_ones_own_needs_a_layout_and_no_code(tmp_path: Path) -> None:
    root = make(tmp_path, {"rgb/a.png": "truth/a.mask.png"}, USUAL)
    layout = {"_target_": "eomt_exp.data.anomaly_layouts.Layout",
              "images": "rgb/{id}", "labels": "truth/{id}.mask.png"}  # fmt: skip
    node = {"_target_": "eomt_exp.data.anomaly_folder.AnomalyFolder", "root": str(root),
            "name": "mine", "layouts": {"mine": layout}, "anomaly_values": ["1-9"],
            "void_values": [255]}  # fmt: skip
    check(build(node, "benchmark.mine")[0], root / "rgb/a.png", root / "truth/a.mask.png", USUAL)
    with pytest.raises(ValueError, match=r"layouts\.mine\.image is no key of"):
        build(node | {"layouts": {"mine": layout | {"image": "x"}}}, "benchmark.mine")
    with pytest.raises(ValueError, match=r"anomaly_values takes 7 or '2-200', got 'many'"):
        build(node | {"anomaly_values": ["many"]}, "benchmark.mine")


def test_patterns_match_whole_names_only() -> None:
    pattern = FilePattern("a/{folder}/*_{id}[_x|_y].png")
    assert pattern.match("a/t5/000_3_b_x.png") == Match("", "t5/3_b")
    assert pattern.match("p/q/a/t5/000_3.png") == Match("p/q/", "t5/3")
    assert pattern.match("o/p/q/a/t5/000_3.png") is None
    assert pattern.match("a/t5/u/000_3.png") is None
    assert pattern.match("a/t5/000_3.jpg") is None
    assert FilePattern("{id}").match("3.JPG") == Match("", "3")
    assert pattern.file("t5/3") == "a/t5/*_3.png"
    with pytest.raises(ValueError, match=r"names \{id\} once"):
        FilePattern("images/*")


def test_the_real_photographs_are_the_course_layout() -> None:
    root = SHARED / "roadanomaly_cc"
    if not root.is_dir():
        pytest.skip(f"no photographs in {root}")
    images = benchmark("road_anomaly", root)
    assert len(images) == 36
    for index in (0, 17, 35):
        stored = images.stored(index)[1]
        assert np.array_equal(images[index].anomaly == ANOMALY, stored == 2)
        assert (images[index].anomaly == ANOMALY).any()
        assert images[index].image.shape == (720, 1280, 3)
