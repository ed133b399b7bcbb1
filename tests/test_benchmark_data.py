"""Every anomaly benchmark is read as published and as the course hands it out, pixel by pixel."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from eomt_exp.build import build, build_all
from eomt_exp.contracts import ANOMALY, NORMAL, VOID, DataError
from eomt_exp.data.anomaly_folder import AnomalyFolder
from eomt_exp.data.files.patterns import FilePattern
from tests.data_files import SHARED, composed, grey_png, noise, save, zipped

HEIGHT, WIDTH = 24, 40
USUAL = {0: NORMAL, 1: ANOMALY, 255: VOID}
TWO = {0: NORMAL, 2: ANOMALY}  # RoadAnomaly
LAF = {0: VOID, 1: NORMAL, 2: ANOMALY, 7: ANOMALY, 42: ANOMALY}
HAZARDS = {0: VOID, 1: NORMAL, 7: NORMAL, 13: NORMAL, 14: ANOMALY}
BDD = {0: NORMAL, 15: NORMAL, 16: ANOMALY, 17: ANOMALY, 18: ANOMALY, 255: VOID}
MUAD = {0: NORMAL, 11: NORMAL, 12: ANOMALY, 13: NORMAL, 15: NORMAL, 16: ANOMALY, 20: ANOMALY,
        21: VOID, 255: VOID}  # fmt: skip
# Key -> component_sizes, expected_images.
SIZES = {
    "road_anomaly": ((500, 100), 60),
    "smiyc_anomaly21": ((500, 100), 10),
    "smiyc_obstacle21": ((50, 10), 30),
    "fishyscapes_laf": ((50, 10), 100),
    "fishyscapes_static": ((500, 100), 30),
    "lost_and_found": ((50, 10), 1203),
    "streethazards": ((500, 100), 1500),
    "bdd_anomaly": ((500, 100), 810),
    "muad": ((500, 100), 1668),
}


def node_of(key: str) -> DictConfig:
    """A benchmark as conf/ has it."""
    return composed(f"benchmark=[of_synthetic_roads,{','.join(SIZES)}]").benchmark[key]


@cache
def arguments(key: str) -> dict[str, Any]:
    """What conf/ says of a benchmark; built from there each time, the tests would take twice."""
    plain: Any = OmegaConf.to_container(node_of(key), resolve=True)
    assert plain.pop("_target_").endswith(".AnomalyFolder")
    return plain | {"layouts": build(plain["layouts"])}


def benchmark(key: str, root: Path | None, laf: Path | str | None = None, **options: Any) -> Any:
    """As `benchmark=KEY paths.KEY=ROOT benchmark.KEY.OPTION=…`; `laf`: paths.lost_and_found."""
    images = {"images_root": laf} if "images_root" in arguments(key) else {}
    return AnomalyFolder(**(arguments(key) | {"root": root} | images | options))


def benchmarks(choice: str, **paths: Path | None) -> dict[str, Any]:
    """As `benchmark=CHOICE paths.NAME=PATH …`."""
    given = {"paths": {name: path and str(path) for name, path in paths.items()}}
    cfg = OmegaConf.masked_copy(composed(f"benchmark={choice}"), ["benchmark", "paths"])
    return build_all(OmegaConf.merge(cfg, given).benchmark, "benchmark")


def save_labels(path: Path, seed: int, values: Mapping[int, int]) -> None:
    """A label map in which every one of the values occurs."""
    stored = np.random.default_rng(seed).choice(list(values), (HEIGHT, WIDTH)).astype(np.uint8)
    assert set(np.unique(stored)) == set(values)
    save(path, stored)


def make(root: Path, files: Mapping[str, str], values: Mapping[int, int]) -> Path:
    """Image -> label map, as files in the folder."""
    for seed, (image, labels) in enumerate(files.items()):
        save(root / image, noise(seed, HEIGHT, WIDTH))
        save_labels(root / labels, seed, values)
    return root


def check(images: Any, root: Path, files: Mapping[str, str], values: Mapping[int, int]) -> None:
    """Every pixel: of the image as it was saved, of the truth as its stored value means."""
    assert len(images) == len(files)
    for image, (file, labels) in zip(images, files.items(), strict=True):
        assert np.array_equal(image.image, np.asarray(Image.open(root / file).convert("RGB")))
        stored = np.asarray(Image.open(root / labels))
        assert np.array_equal(image.anomaly, np.vectorize(values.__getitem__)(stored))
        assert image.anomaly.shape == image.image.shape[:2] == (HEIGHT, WIDTH)
        assert (image.labels == VOID).all()


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
            picture = noise(seed, HEIGHT, WIDTH)
            save(root / folder / "images" / f"{index}.{ending}", picture, format=kind)
            there = {v: m for v, m in values.items() if m != ANOMALY or index != 10}
            save_labels(root / folder / "labels_masks" / f"{index}.png", seed, there)
        (root / folder / "images" / f"._1.{ending}").write_bytes(b"of a Mac")
        (root / folder / "labels_masks" / "1_color.png").write_bytes(b"a coloured copy")
    return root


def check_course(sets: Mapping[str, Any], root: Path) -> None:
    assert list(sets) == [key for key, *_ in COURSE]
    for key, folder, ending, values in COURSE:
        names = [image.name for image in sets[key]]
        assert names == ["1", "2", "10"], "images without anomaly stay"
        assert not (sets[key][2].anomaly == ANOMALY).any()
        files = {f"images/{name}.{ending}": f"labels_masks/{name}.png" for name in names}
        check(sets[key], root / folder, files, values)


def of_course(path: Path | None) -> dict[str, Any]:
    return benchmarks("validation_dataset", validation_dataset=path)


def test_the_course_is_read_from_its_folder_the_one_above_a_zip_or_zips(
    course: Path, tmp_path: Path
) -> None:
    for _, folder, *_ in COURSE:
        zipped(course / folder, tmp_path / "zips" / f"{folder}.zip")
    for path in (course, course.parent, zipped(course, tmp_path / "all.zip"), tmp_path / "zips"):
        check_course(of_course(path), course)


@pytest.mark.parametrize(
    ("key", "folder"),
    [row[:2] for row in COURSE] + [("smiyc_obstacle21", "RoadObstacle21")],  # spelt right
)
def test_each_set_of_the_course_is_found_alone_or_one_above(
    course: Path, key: str, folder: str
) -> None:
    if folder == "RoadObstacle21":
        (course / "RoadObsticle21").rename(course / folder)
    for root in (course / folder, course, course.parent):
        images = benchmark(key, root)
        assert images.locations(0)[0].startswith(str(course / folder / "images"))
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
        of_course(None)


def test_an_image_in_two_formats_is_named(course: Path) -> None:
    save(course / "RoadObsticle21" / "images" / "1.png", noise(99, HEIGHT, WIDTH))
    with pytest.raises(DataError, match=r"both .*1\.png and .*1\.webp; keep one"):
        of_course(course)


def test_a_set_beside_the_course_is_read_where_its_own_path_says(
    course: Path, tmp_path: Path
) -> None:
    own = make(tmp_path / "photographs", {"images/5.jpg": "labels_masks/5.png"}, TWO)
    choice = "[validation_dataset,road_anomaly]"
    sets = benchmarks(choice, validation_dataset=course, road_anomaly=own)
    assert [image.name for image in sets["road_anomaly"]] == ["5"]
    assert sets["fishyscapes_static"].locations(0)[0].startswith(str(course))


def test_a_label_map_without_its_image_is_named_or_left_out(course: Path) -> None:
    root = course / "fs_static"
    (root / "images" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"labels_masks/2\.png has no image: .*images/2 is missing"):
        benchmark("fishyscapes_static", root)
    images = benchmark("fishyscapes_static", root, on_broken="skip")
    assert [image.name for image in images] == ["1", "10"]
    assert images.skipped == ["2"]


TRACK = "images/{0}.{1}", "labels_masks/{0}_labels_semantic.png"


def track(ending: str, *names: str) -> dict[str, str]:
    return {image.format(n, ending): labels.format(n) for image, labels in [TRACK] for n in names}


# Key, the folder's name as published, image -> label map, values, options.
PUBLISHED: dict[str, tuple[str, str, dict[str, str], dict[int, int], dict[str, str]]] = {
    "SMIYC anomalies": ("smiyc_anomaly21", "dataset_AnomalyTrack",
                        track("jpg", "validation0000", "validation0009"), USUAL, {}),
    "SMIYC obstacles": ("smiyc_obstacle21", "dataset_ObstacleTrack",
                        track("webp", "validation_1", "validation_2", "validation_20"), USUAL, {}),
    **{f"RoadAnomaly, folders with {end!r}": ("road_anomaly", "RoadAnomaly_jpg", {
        f"frames/{n}.jpg": f"frames/{n}{end}/labels_semantic.png"
        for n in ("animals01_a", "rocks_02")}, TWO, {}) for end in (".labels", "")},
    "Fishyscapes L&F of RbA": ("fishyscapes_laf", "Fishyscapes", {
        f"laf_images/{s}_leftImg8bit.png": f"fishyscapes_lostandfound/{i:04}_{s}_labels.png"
        for i, s in enumerate(("04_Maurener_Weg_8_000000_000030", "15_Am_Bad_8_000001_000200"))
    }, USUAL, {}),
    **{f"Fishyscapes L&F of synboost, {labels}": ("fishyscapes_laf", "LostAndFound", {
        "original/0000_04_Weg_leftImg8bit.png": f"{labels}/0000_04_Weg_labels.png",
        "original/7.png": f"{labels}/7.png"}, USUAL, options)
       for labels, options in (("labels", {}), ("labels_with_ROI", {"labels": "labels_with_ROI"}))},
    "Fishyscapes Static of RbA": ("fishyscapes_static", "Fishyscapes", {
        f"fs_static_images_v2/{s}_rgb.png": f"fs_val_v2/{s}_labels.png"
        for s in ("0000_frankfurt_000001_046504", "0001_lindau_000001_000019")}, USUAL, {}),
    "Fishyscapes Static of bdlb": ("fishyscapes_static", "fs_val_v2", {
        f"{s}_rgb.jpg": f"{s}_labels.png" for s in ("0000_frankfurt_1", "0001_lindau_2")},
        USUAL, {}),
    "Fishyscapes Static of synboost": ("fishyscapes_static", "Static", {
        "original/0_rgb.png": "labels/0_labels.png"}, USUAL, {}),
    "LostAndFound": ("lost_and_found", "LostAndFound", {
        f"leftImg8bit/test/{s}/{s}_{n}_leftImg8bit.png":
        f"gtCoarse/test/{s}/{s}_{n}_gtCoarse_labelIds.png"
        for s, n in (("01_Hanns_Klemm_Str_45", "000000_000010"),
                     ("01_Hanns_Klemm_Str_45", "000006_000020"),
                     ("15_Rechbergstr_Deckenpfronn", "000001_000030"))}, LAF, {}),
    "StreetHazards": ("streethazards", "test", {
        f"images/test/{town}/300.png": f"annotations/test/{town}/300.png"
        for town in ("t5", "t6")}, HAZARDS, {}),
    "BDD-Anomaly": ("bdd_anomaly", "bdd100k", {
        "images/10k/train/0000f77c-62c2a2.jpg": "labels/sem_seg/masks/train/0000f77c-62c2a2.png",
        "images/10k/val/7d2f7975-e0c1c5a7.jpg": "labels/sem_seg/masks/val/7d2f7975-e0c1c5a7.png",
    }, BDD, {}),
    "BDD-Anomaly, older": ("bdd_anomaly", "bdd100k", {
        "seg/images/train/a-1.jpg": "seg/labels/train/a-1_train_id.png"}, BDD, {}),
    "MUAD": ("muad", "MUAD", {
        f"test_ood/leftImg8bit/00000{n}_leftImg8bit.png":
        f"test_ood/leftLabel/00000{n}_leftLabel.png" for n in (1, 2)}, MUAD, {}),
    "MUAD, adverse": ("muad", "MUAD", {
        f"test_ood_low_adv/leftImg8bit/00000{n}_leftImg8bit_{w}.png":
        f"test_ood_low_adv/leftLabel/00000{n}_leftLabel_{w}.png"
        for n, w in ((1, "rain"), (2, "fog"))}, MUAD, {"split": "test_ood_low_adv"}),
    "miniMUAD": ("muad", "MUAD_small", {"ood/leftImg8bit/1.png": "ood/leftLabel/1.png"}, MUAD,
                 {"split": "ood"}),
}  # fmt: skip


def published(layout: str, tmp_path: Path) -> tuple[str, Path, dict[str, str], dict[int, int]]:
    """Key, root, files and values of a published layout, made below `tmp_path`."""
    key, folder, files, values, _ = PUBLISHED[layout]
    return key, make(tmp_path / folder, files, values), files, values


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_layouts_are_read_from_folder_parent_and_zip(tmp_path: Path, layout: str) -> None:
    key, root, files, values = published(layout, tmp_path)
    options = PUBLISHED[layout][-1]
    for given in (root, tmp_path, zipped(root, tmp_path / "as_published.zip")):
        images = benchmark(key, given, **options)
        check(images, root, files, values)
        assert options or (images.component_sizes, images.expected_images) == SIZES[key]


@pytest.mark.parametrize(
    ("layout", "above", "archives"),
    [
        ("LostAndFound", "LostAndFound", {"leftImg8bit": "leftImg8bit", "gtCoarse": "gtCoarse"}),
        ("MUAD", "MUAD", {"test_ood": "test_ood"}),
        ("BDD-Anomaly", ".", {"bdd100k/images": "bdd100k_images_10k",
                              "bdd100k/labels": "bdd100k_sem_seg_labels_trainval"}),
    ],
)  # fmt: skip
def test_sets_are_read_from_the_zips_they_are_published_in(
    tmp_path: Path, layout: str, above: str, archives: dict[str, str]
) -> None:
    key, root, files, values = published(layout, tmp_path)
    base, zips = tmp_path / above, tmp_path / "zips"
    for folder, name in archives.items():
        zipped(base / folder, zips / f"{name}.zip", base)
    check(benchmark(key, zips), root, files, values)
    first, *others = archives
    if others:  # one unpacked, the other not
        shutil.move(base / first, zips / first)
        mixed = benchmark(key, zips)
        assert mixed.locations(0)[0].startswith(str(zips / first))
        assert len(mixed) == len(files)


def test_every_kind_of_meaning_that_a_benchmark_gives_a_value_is_tested_here() -> None:
    assert {row[0] for row in PUBLISHED.values()} == set(SIZES)
    for key, _, _, values, _ in PUBLISHED.values():
        node = node_of(key)
        meanings = {"normal": NORMAL, "anomaly": ANOMALY, "void": VOID}
        given = {ours for name, ours in meanings.items() if node[f"{name}_values"]}
        assert given == set(values.values())


def test_paths_lead_to_the_benchmarks_of_their_names() -> None:
    for key in SIZES:
        raw: Any = OmegaConf.to_container(node_of(key), resolve=False)
        assert (raw["root"], raw["name"]) == (f"${{paths.{key}}}", key)
        if "images_root" in raw:
            assert (key, raw["images_root"]) == ("fishyscapes_laf", "${paths.lost_and_found}")


def smiyc(root: Path, ending: str, *names: str) -> Path:
    """Images of all splits, label maps of validation: as the archives come."""
    make(root, track(ending, *names), USUAL)
    for path in (root / "labels_masks").iterdir():
        if not path.name.startswith("validation"):
            path.unlink()
    return root


SCENES = ("validation_1", "validation_2", "validation_19", "validation_25", "darkasphalt2_dog_3",
          "curvy-street_clear_1", "snowstorm1_00_1", "driveway_2")  # fmt: skip


@pytest.fixture
def tracks(tmp_path: Path) -> dict[str, Path]:
    anomalies = ("validation0000", "validation0009", "animals0001", "rocks0002")
    return {
        "smiyc_obstacle21": smiyc(tmp_path / "o", "webp", *SCENES),
        "smiyc_anomaly21": smiyc(tmp_path / "a", "jpg", *anomalies),
    }


@pytest.mark.parametrize(
    ("key", "split", "names", "published"),
    [
        ("smiyc_obstacle21", "validation", ["validation_1", "validation_2"], 30),
        ("smiyc_obstacle21", "test", ["curvy-street_clear_1", "darkasphalt2_dog_3"], 327),
        ("smiyc_obstacle21", "all_test", sorted(SCENES[4:]), 412),
        ("smiyc_obstacle21", "all", sorted(SCENES), 452),
        ("smiyc_anomaly21", "validation", ["validation0000", "validation0009"], 10),
        ("smiyc_anomaly21", "test", ["animals0001", "rocks0002"], 100),
    ],
)
def test_splits_of_a_track_and_how_many_images_they_have(
    tracks: dict[str, Path], key: str, split: str, names: list[str], published: int
) -> None:
    images = benchmark(key, tracks[key], split=split)
    assert (sorted(image.name for image in images), images.expected_images) == (names, published)
    for index, image in enumerate(images):
        is_known = image.name.startswith("validation")
        assert (images.locations(index)[1] is not None) == is_known
        assert (images.stored(index)[1] is not None) == is_known
        assert (image.anomaly == VOID).all() != is_known
    with pytest.raises(ValueError, match=rf"{key}\.split must be one of validation, test"):
        benchmark(key, tracks[key], split="val")


@pytest.mark.parametrize("split", ["validation", "test", "all"])
def test_the_two_tracks_are_never_taken_for_each_other(tracks: dict[str, Path], split: str) -> None:
    for (key, own), other in zip(tracks.items(), reversed(tracks.values()), strict=True):
        assert len(benchmark(key, own, split=split))
        with pytest.raises(DataError, match=rf"{key} .*is not found.* images such as .*valid"):
            benchmark(key, other, split=split)


def test_a_track_without_images_of_the_split_or_without_its_published_truth_is_named(
    tmp_path: Path,
) -> None:
    root = smiyc(tmp_path / "one", "jpg", "validation0000", "validation0001")
    with pytest.raises(DataError, match=rf"{root} has this layout, but no image of the split"):
        benchmark("smiyc_anomaly21", root, split="test")
    (root / "labels_masks" / "validation0001_labels_semantic.png").unlink()
    for split in ("validation", "all"):
        with pytest.raises(DataError, match=r"validation0001\.jpg has no label map"):
            benchmark("smiyc_anomaly21", root, split=split)
    root = smiyc(tmp_path / "other", "jpg", "rocks0002", "rocks0003")
    with pytest.raises(DataError, match=r"2 images such as .*rocks0002\.jpg .*, but of none"):
        benchmark("smiyc_anomaly21", root)


def test_the_course_has_no_test_images_and_no_other_labels(course: Path) -> None:
    with pytest.raises(DataError, match=r"split=test\) is not found.*original: .*course: .*only"):
        benchmark("smiyc_anomaly21", course, split="test")
    with pytest.raises(DataError, match=r"labels=labels_with_ROI\) is not found"):
        benchmark("fishyscapes_laf", course, labels="labels_with_ROI")


def test_lost_and_found_without_objects_of_known_classes(tmp_path: Path) -> None:
    key, root, *_ = published("LostAndFound", tmp_path)
    images = benchmark(key, root, known_objects=False)
    assert [image.name for image in images] == ["01_Hanns_Klemm_Str_45_000000_000010"]
    assert images.expected_images is None
    with pytest.raises(DataError, match=r"split=train\) is not found.*leftImg8bit/train/"):
        benchmark(key, root, split="train")


def test_both_splits_of_lost_and_found_are_one_set(tmp_path: Path) -> None:
    key, root, *_ = published("LostAndFound", tmp_path)
    tested = [image.name for image in benchmark(key, root)]
    for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtCoarse", "gtCoarse_labelIds")):
        (example,) = root.rglob(f"{tested[0]}_{ending}.png")
        other = root / kind / "train/01_Town" / f"01_Town_000000_000000_{ending}.png"
        other.parent.mkdir(parents=True)
        shutil.copy(example, other)
    images = benchmark(key, root, split="all")
    assert sorted(image.name for image in images) == sorted([*tested, "01_Town_000000_000000"])
    assert images.expected_images == 2239


@pytest.fixture
def downloads(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Lost and Found, the label maps beside it, and the zips of each and of both."""
    scenes = ("04_Maurener_Weg_8_000000_000030", "04_Maurener_Weg_8_000001_000040")
    image = "leftImg8bit/train/04_Maurener_Weg_8/{}_leftImg8bit.png"
    laf, labels = tmp_path / "data" / "lost_and_found", tmp_path / "fishyscapes_lostandfound"
    files = {
        image.format(s): f"../../{labels.name}/000{i}_{s}_labels.png" for i, s in enumerate(scenes)
    }
    make(laf, files, USUAL)
    not_among_the_hundred = laf / image.format("04_Maurener_Weg_8_000009_000990")
    save(not_among_the_hundred, noise(9, HEIGHT, WIDTH))
    for folder in ("images", "both"):
        zipped(laf / "leftImg8bit", tmp_path / folder / "leftImg8bit.zip")
    for folder in ("labels", "both"):
        zipped(labels, tmp_path / folder / "fishyscapes_lostandfound.zip")
    return laf, files


@pytest.mark.parametrize(
    ("labels", "images"),
    [
        ("labels", "images"),
        ("labels", "images/leftImg8bit.zip"),
        ("labels", "data"),  # one above lost_and_found/
        ("labels/fishyscapes_lostandfound.zip", "data/lost_and_found"),
        ("fishyscapes_lostandfound", "data/lost_and_found"),
        ("both", None),
        ("both", ""),  # as an empty variable gives it
    ],
)
def test_fishyscapes_label_maps_find_their_images_in_lost_and_found(
    tmp_path: Path, downloads: tuple[Path, dict[str, str]], labels: str, images: str | None
) -> None:
    given = tmp_path / images if images else images
    check(benchmark("fishyscapes_laf", tmp_path / labels, given), *downloads, USUAL)


def test_fishyscapes_label_maps_without_an_image_are_named_or_skipped(
    tmp_path: Path, downloads: tuple[Path, dict[str, str]]
) -> None:
    (laf, files), labels = downloads, tmp_path / "labels"
    with pytest.raises(DataError, match=r"leftImg8bit/\*/\*/\{id\}_leftImg8bit with"):
        benchmark("fishyscapes_laf", labels)
    (laf / list(files)[1]).unlink()
    with pytest.raises(DataError, match=r"0001_04.*_labels\.png has no image: .*on_broken=skip"):
        benchmark("fishyscapes_laf", labels, laf)
    assert len(benchmark("fishyscapes_laf", labels, laf, on_broken="skip")) == 1


def test_a_damaged_zip_of_something_else_is_no_hindrance(
    tmp_path: Path, downloads: tuple[Path, dict[str, str]]
) -> None:
    (tmp_path / "both" / "a_film.zip").write_bytes(b"half of it")
    check(benchmark("fishyscapes_laf", tmp_path / "both"), *downloads, USUAL)
    (tmp_path / "both" / "leftImg8bit.zip").write_bytes(b"half of it")
    with pytest.raises(DataError, match=r"not found.*leftImg8bit\.zip cannot be read as a zip"):
        benchmark("fishyscapes_laf", tmp_path / "both")


def test_a_second_folder_that_is_none_is_named_and_an_empty_one_is_not_searched(
    tmp_path: Path, downloads: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(downloads[0])
    with pytest.raises(DataError, match=r"fishyscapes_laf \(labels=labels\) is not found"):
        benchmark("fishyscapes_laf", tmp_path / "labels", "")
    with pytest.raises(
        DataError, match=r"fishyscapes_laf\.images_root needs a folder or a zip.*nowhere, which"
    ):
        benchmark("fishyscapes_laf", tmp_path / "labels", tmp_path / "nowhere")


def test_two_label_maps_of_one_image_are_refused(tmp_path: Path) -> None:
    key, root, *_ = published("Fishyscapes Static of RbA", tmp_path)
    shutil.copytree(root / "fs_val_v2", root / "fs_val_v1")
    with pytest.raises(DataError, match=r"Both .*fs_val_v1.* and .*fs_val_v2.*keep one"):
        benchmark(key, root)


def test_lost_and_found_packed_to_four_bits_has_its_obstacle_and_its_road(tmp_path: Path) -> None:
    labels = np.zeros((64, 128), np.uint8)
    labels[30:] = 1
    labels[40:50, 20:30] = 5
    name = "test/02_X/02_X_000000_000010"
    save(tmp_path / "leftImg8bit" / f"{name}_leftImg8bit.png", noise(0, 64, 128))
    file = tmp_path / "gtCoarse" / f"{name}_gtCoarse_labelIds.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(grey_png(labels, 4))
    anomaly = benchmark("lost_and_found", tmp_path)[0].anomaly
    assert [(anomaly == state).sum() for state in (ANOMALY, NORMAL, VOID)] == [100, 4252, 3840]


def test_bdd_anomaly_is_the_images_that_show_one(tmp_path: Path) -> None:
    key, root, files, values = published("BDD-Anomaly", tmp_path)
    without = {v: m for v, m in values.items() if m != ANOMALY}
    make(root, {"images/10k/val/b.jpg": "labels/sem_seg/masks/val/b.png"}, without)
    published_without_labels = root / "images" / "10k" / "test" / "c.jpg"
    save(published_without_labels, noise(3, HEIGHT, WIDTH))
    check(benchmark(key, root), root, files, values)
    everything = benchmark(key, root, only_with_anomalies=False)
    assert [image.name for image in everything] == [*(Path(file).stem for file in files), "b"]
    assert everything.expected_images is None


@pytest.mark.parametrize("key", SIZES)
def test_a_benchmark_that_is_nowhere_lists_its_layouts_and_what_is_there(
    tmp_path: Path, key: str
) -> None:
    with pytest.raises(DataError, match=rf"Looked for.*\{{id\}}.*no images.*paths\.{key}="):
        benchmark(key, tmp_path)
    save(tmp_path / "pictures" / "1.jpg", noise(0, HEIGHT, WIDTH))
    with pytest.raises(DataError, match=r"Found: images in .*pictures \(1 such as 1\.jpg\)"):
        benchmark(key, tmp_path)
    for nowhere in (None, "", "/no/such/place"):
        with pytest.raises(DataError, match=rf"paths\.{key}=.*EOMT_{key.upper()}"):
            benchmark(key, nowhere)


def test_a_set_of_ones_own_needs_a_layout_and_no_code(tmp_path: Path) -> None:
    files = {"rgb/a.png": "truth/a.mask.png"}
    root = make(tmp_path, files, USUAL)
    layout = {"_target_": "eomt_exp.data.files.layouts.Layout",
              "images": "rgb/{id}", "labels": "truth/{id}.mask.png"}  # fmt: skip
    node = {"_target_": "eomt_exp.data.anomaly_folder.AnomalyFolder", "root": str(root),
            "name": "mine", "layouts": {"mine": layout}, "anomaly_values": ["1-9"],
            "void_values": [255]}  # fmt: skip
    mine = build(node, "benchmark.mine")
    check(mine, root, files, USUAL)
    assert mine.component_sizes is None
    with pytest.raises(ValueError, match=r"layouts\.mine\.image is no key of"):
        build(node | {"layouts": {"mine": layout | {"image": "x"}}}, "benchmark.mine")
    with pytest.raises(ValueError, match=r"anomaly_values takes 7 or '2-200', got 'many'"):
        build(node | {"anomaly_values": ["many"]}, "benchmark.mine")
    with pytest.raises(ValueError, match=r"component_sizes holds two whole numbers"):
        build(node | {"component_sizes": [5]}, "benchmark.mine")
    sizes = [build(node_of(key)).component_sizes for key in ("synth_anomaly", "synth_obstacle")]
    assert sizes == [(20, 10), (8, 4)]


def test_patterns_match_whole_names_only() -> None:
    pattern = FilePattern("a/{folder}/*_{id}[_x|_y].png")
    assert pattern.match("a/t5/000_3_b_x.png") == ("", "t5/3_b")
    assert pattern.match("p/q/a/t5/000_3.png") == ("p/q/", "t5/3")
    for other in ("o/p/q/a/t5/000_3.png", "a/t5/u/000_3.png", "a/t5/000_3.jpg"):
        assert pattern.match(other) is None
    assert FilePattern("{id}").match("3.JPG") == ("", "3")
    assert pattern.file("t5/3") == "a/t5/*_3.png"
    with pytest.raises(ValueError, match=r"names \{id\} once"):
        FilePattern("images/*")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no photographs in {SHARED}")
def test_the_real_photographs_are_the_course_layout() -> None:
    images = benchmark("road_anomaly", SHARED / "roadanomaly_cc")
    assert len(images) == 36
    assert [images[index].name for index in range(3)] == ["0", "1", "2"]
    for index in (0, 17, 35):
        image, stored = images[index], images.stored(index)[1]
        assert image.image.shape == (720, 1280, 3)
        assert np.array_equal(image.anomaly == ANOMALY, stored == 2)
        assert (image.anomaly == ANOMALY).any()
