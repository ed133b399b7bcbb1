"""Cityscapes, ADE20K, COCO and BDD100K in their published layouts: every pixel gets its class."""

import io
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eomt_exp.contracts import NORMAL, VOID, DataError
from eomt_exp.data.ade20k import ADE20K
from eomt_exp.data.bdd100k import BDD100K
from eomt_exp.data.cityscapes import Cityscapes
from eomt_exp.data.coco_panoptic import CocoPanoptic
from eomt_exp.data.loader import image_loader

SIZE = (4, 34)  # rows, columns: a column for each label id of Cityscapes
# What cityscapesScripts calls the 19 classes, by label id.
CITYSCAPES_IDS = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle",
    33: "bicycle",
}  # fmt: skip
SEGMENTS = {  # id -> category, crowd or not
    7: (1, 0),  # person
    300: (149, 0),  # road, an id of two colours
    70000: (200, 0),  # rug-merged, an id of three
    65536: (3, 1),  # a crowd of cars
}


def picture(array: np.ndarray, suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG" if suffix == "png" else "JPEG")
    return buffer.getvalue()


def photograph(seed: int, suffix: str = "jpg", size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    return picture(pixels, suffix)


def columns(*values: int) -> np.ndarray:
    """A label map with one value a column, the last one to the end."""
    row = np.full(SIZE[1], values[-1], np.uint8)
    row[: len(values)] = values
    return np.tile(row, (SIZE[0], 1))


def cityscapes() -> dict[str, bytes]:
    files = {"leftImg8bit/README": b"x", "gtFine/README": b"x"}
    for split, city, frame in (
        ("train", "aachen", "000001_000019"),
        ("train", "zurich", "000000_000019"),
        ("val", "munster", "000002_000019"),
    ):
        scene = f"{split}/{city}/{city}_{frame}"
        files[f"leftImg8bit/{scene}_leftImg8bit.png"] = photograph(len(files), "png")
        files[f"gtFine/{scene}_gtFine_labelIds.png"] = picture(columns(*range(34)), "png")
        files[f"gtFine/{scene}_gtFine_color.png"] = photograph(0, "png")
        files[f"gtFine/{scene}_gtFine_instanceIds.png"] = picture(columns(5), "png")
        files[f"gtFine/{scene}_gtFine_polygons.json"] = b"{}"
    files["leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"] = photograph(9, "png")
    return files


def ade20k() -> dict[str, bytes]:
    files = {}
    for split, folder in (("train", "training"), ("val", "validation")):
        for number in (1, 2):
            stem = f"{folder}/ADE_{split}_{number:08}"
            files[f"ADEChallengeData2016/images/{stem}.jpg"] = photograph(number)
            labels = columns(0, 1, 7, 150, number)
            files[f"ADEChallengeData2016/annotations/{stem}.png"] = picture(labels, "png")
    files["ADEChallengeData2016/objectInfo150.txt"] = b"x"
    return files


def bdd100k() -> dict[str, bytes]:
    files = {}
    for split in ("train", "val", "test"):
        for stem in (f"{split}0-7d06fefd", f"{split}1-7d06fefd"):
            files[f"bdd100k/images/10k/{split}/{stem}.jpg"] = photograph(len(files))
            if split != "test":
                masks = picture(columns(*range(19), 255), "png")
                files[f"bdd100k/labels/sem_seg/masks/{split}/{stem}.png"] = masks
                files[f"bdd100k/labels/sem_seg/colormaps/{split}/{stem}.png"] = photograph(0, "png")
    return files


def colours(*ids: int) -> np.ndarray:
    """Panoptic pictures write R + 256 G + 65536 B."""
    row = np.full(SIZE[1], ids[-1], np.int64)
    row[: len(ids)] = ids
    values = np.tile(row, (SIZE[0], 1))
    return np.stack([values % 256, values // 256 % 256, values // 65536], axis=2).astype(np.uint8)


def coco_json(segments: Mapping[int, tuple[int, int]], *stems: str) -> bytes:
    infos = [
        {"id": id, "category_id": category, "iscrowd": crowd, "bbox": [0, 0, 1, 1], "area": 4}
        for id, (category, crowd) in segments.items()
    ]
    annotations: list[dict[str, Any]] = [
        {"segments_info": infos, "file_name": f"{stem}.png", "image_id": int(stem)}
        for stem in stems[:-1]
    ]
    last = {"segments_info": infos[:1], "file_name": f"{stems[-1]}.png", "image_id": 1}
    return json.dumps(
        {
            "info": {"year": 2018},
            "licenses": [{"id": 1, "name": "x"}],
            "images": [{"id": int(s), "file_name": f"{s}.jpg", "height": 4} for s in stems],
            "annotations": [*annotations, last],
            "categories": [{"id": 1, "name": "person", "isthing": 1, "supercategory": "person"}],
        }
    ).encode()


def coco() -> dict[str, bytes]:
    files = {}
    for split in ("train", "val"):
        stems = [f"{number:012}" for number in (139, 285, 30)]
        for stem in stems:
            files[f"{split}2017/{stem}.jpg"] = photograph(int(stem))
            ids = (0, *SEGMENTS, 7) if stem != stems[-1] else (0, 7)
            label = picture(colours(*ids), "png")
            files[f"annotations/panoptic_{split}2017/{stem}.png"] = label
        files[f"annotations/panoptic_{split}2017.json"] = coco_json(SEGMENTS, *stems)
    return files


# Of each set: its class, its files, and which archive holds which part of them under which name.
Archive = Callable[[str], tuple[str, str] | None]


def cityscapes_archive(name: str) -> tuple[str, str] | None:
    return f"{name.split('/')[0]}_trainvaltest.zip", name


def ade20k_archive(name: str) -> tuple[str, str] | None:
    return "ADEChallengeData2016.zip", name


def bdd100k_archive(name: str) -> tuple[str, str] | None:
    images = "/images/" in name
    return "bdd100k_images_10k.zip" if images else "bdd100k_sem_seg_labels_trainval.zip", name


def coco_archive(name: str) -> tuple[str, str] | None:
    """The pictures of the labels in the inner archive beside the JSON, which is a file."""
    if name.endswith(".json"):
        return None
    inside = name.removeprefix("annotations/")
    folder = inside.split("/")[0]
    return name.replace(inside, f"{folder}.zip"), inside


SETS: dict[str, tuple[Any, Callable[[], dict[str, bytes]], Archive]] = {
    "cityscapes": (Cityscapes, cityscapes, cityscapes_archive),
    "ade20k": (ADE20K, ade20k, ade20k_archive),
    "bdd100k": (BDD100K, bdd100k, bdd100k_archive),
    "coco": (CocoPanoptic, coco, coco_archive),
}
FORMS = ("folder", "zip")
every_set = pytest.mark.parametrize("name", SETS)


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def place(root: Path, name: str, form: str) -> Path:
    """The set's files below `root`: unpacked, or in the archives it is published in."""
    _, files, archive = SETS[name]
    root.mkdir(parents=True, exist_ok=True)
    for file, data in files().items():
        target = archive(file) if form == "zip" else None
        if target is None:
            write(root, {file: data})
            continue
        (root / target[0]).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / target[0], "a") as opened:
            opened.writestr(target[1], data)
            opened.writestr(f"__MACOSX/{target[1]}", b"what macOS leaves")
    return root


@pytest.mark.parametrize("form", FORMS)
def test_cityscapes_label_ids_become_its_19_classes(tmp_path: Path, form: str) -> None:
    images = Cityscapes(place(tmp_path, "cityscapes", form), "train")
    scenes = ["aachen_000001_000019", "zurich_000000_000019"]
    assert [image.name for image in images] == scenes
    for image in images:
        for value in range(34):
            labels = set(image.labels[:, value].tolist())
            if value in CITYSCAPES_IDS:
                assert labels == {Cityscapes.class_names.index(CITYSCAPES_IDS[value])}
            else:
                assert labels == {VOID}
        assert (image.anomaly == np.where(image.labels == VOID, VOID, NORMAL)).all()
    assert [image.name for image in Cityscapes(tmp_path, "val")] == ["munster_000002_000019"]


def test_cityscapes_test_images_have_no_truth(tmp_path: Path) -> None:
    images = Cityscapes(place(tmp_path, "cityscapes", "folder"), "test")
    assert images.places(0)[1] is None
    assert (images[0].labels == VOID).all()
    assert (images[0].anomaly == VOID).all()
    assert images.expected_images == 1525


def test_categories_are_those_of_cityscapes() -> None:
    of_class = dict(zip(Cityscapes.class_names, Cityscapes.class_categories, strict=True))
    groups: dict[str, list[str]] = {}
    for name, category in of_class.items():
        groups.setdefault(category, []).append(name)
    assert groups == {
        "flat": ["road", "sidewalk"],
        "construction": ["building", "wall", "fence"],
        "object": ["pole", "traffic light", "traffic sign"],
        "nature": ["vegetation", "terrain"],
        "sky": ["sky"],
        "human": ["person", "rider"],
        "vehicle": ["car", "truck", "bus", "train", "motorcycle", "bicycle"],
    }


@pytest.mark.parametrize("form", FORMS)
def test_ade20k_counts_its_classes_from_one(tmp_path: Path, form: str) -> None:
    place(tmp_path, "ade20k", form)
    inner = tmp_path / f"ADEChallengeData2016{'.zip' if form == 'zip' else ''}"
    for root in (tmp_path, inner):
        images = ADE20K(root, "train")
        assert [image.name for image in images] == ["ADE_train_00000001", "ADE_train_00000002"]
        assert images[1].labels[0, :5].tolist() == [VOID, 0, 6, 149, 1]
        assert (images[1].labels[:, 4:] == 1).all()
        assert ADE20K(root, "val")[0].name == "ADE_val_00000001"
    assert (ADE20K.class_names[6], ADE20K.class_names[149]) == ("road", "flag")


@pytest.mark.parametrize("form", FORMS)
def test_bdd100k_label_values_are_train_ids(tmp_path: Path, form: str) -> None:
    place(tmp_path, "bdd100k", form)
    for root in (tmp_path, tmp_path / "bdd100k") if form == "folder" else (tmp_path,):
        images = BDD100K(root, "val")
        assert [image.name for image in images] == ["val0-7d06fefd", "val1-7d06fefd"]
        assert images[0].labels[:, :19].tolist() == [list(range(19))] * SIZE[0]
        assert (images[0].labels[:, 19:] == VOID).all()
        assert (BDD100K(root, "test")[1].labels == VOID).all()


@pytest.mark.parametrize("form", FORMS)
def test_coco_segments_become_the_classes_of_their_categories(tmp_path: Path, form: str) -> None:
    images = CocoPanoptic(place(tmp_path, "coco", form), "val")
    assert [image.name for image in images] == ["000000000139", "000000000285", "000000000030"]
    names = ["person", "road", "rug-merged"]
    known = [CocoPanoptic.class_names.index(name) for name in names]
    assert known == [0, 100, 132]
    for image in (images[0], images[1]):
        assert image.labels[0, :5].tolist() == [VOID, *known, VOID]  # no segment, …, a crowd
        assert (image.labels[:, 5:] == 0).all()
        assert (image.anomaly == np.where(image.labels == VOID, VOID, NORMAL)).all()
    assert images[2].labels[0, :2].tolist() == [VOID, 0]


def test_coco_classes_are_its_80_things_and_53_kinds_of_stuff() -> None:
    names = CocoPanoptic.class_names
    assert len(names) == 133
    assert (names[0], names[79], names[80], names[100]) == (
        "person", "toothbrush", "banner", "road",
    )  # fmt: skip


@every_set
@pytest.mark.parametrize("form", FORMS)
def test_images_are_the_files_pixel_by_pixel(tmp_path: Path, name: str, form: str) -> None:
    kind, files, _ = SETS[name]
    photographs = {
        Path(file).stem.removesuffix("_leftImg8bit"): data
        for file, data in files().items()
        if file.startswith(("leftImg8bit/train/", "train2017/")) or "/images/" in file
    }
    images = kind(place(tmp_path, name, form), "train")
    assert len(images) > 1
    for image in images:
        expected = Image.open(io.BytesIO(photographs[image.name]))
        assert np.array_equal(image.image, np.asarray(expected))


@every_set
def test_two_workers_read_from_archives_what_one_process_reads(tmp_path: Path, name: str) -> None:
    kind = SETS[name][0]
    images = kind(place(tmp_path, name, "zip"), "train")
    alone = [kind(tmp_path, "train")[index] for index in range(len(images))]
    images[0]  # the parent's handle is open, and must not be the workers'
    found = list(image_loader(images, num_workers=2))
    assert [image.name for image in found] == [image.name for image in alone]
    for one, other in zip(found, alone, strict=True):
        for mine, theirs in zip(one[:3], other[:3], strict=True):
            assert torch.equal(torch.as_tensor(np.array(mine)), torch.as_tensor(np.array(theirs)))


@every_set
def test_sets_survive_pickling(tmp_path: Path, name: str) -> None:
    """Workers that are spawned and not forked get the set that way."""
    images = SETS[name][0](place(tmp_path, name, "zip"), "val")
    other = pickle.loads(pickle.dumps(images))
    assert np.array_equal(other[0].labels, images[0].labels)
    assert np.array_equal(other[0].image, images[0].image)


@every_set
def test_class_names_are_distinct_and_fit_into_metric_names(name: str) -> None:
    kind = SETS[name][0]
    assert len(set(kind.class_names)) == kind.num_classes == len(kind.class_names)
    assert all(re.fullmatch(r"[a-z][a-z -]*[a-z]", word) for word in kind.class_names)
    assert kind.reads_files


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cityscapes", {"train": 2975, "val": 500}),
        ("ade20k", {"train": 20210, "val": 2000}),
        ("coco", {"train": 118287, "val": 5000}),
        ("bdd100k", {"train": 7000, "val": 1000, "test": 2000}),
    ],
)
def test_sets_say_how_many_images_were_published(
    tmp_path: Path, name: str, counts: dict[str, int]
) -> None:
    place(tmp_path, name, "folder")
    for split, count in counts.items():
        assert SETS[name][0](tmp_path, split).expected_images == count


# --- what can be wrong ---------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("root", [None, "", "/no/such/place"])
def test_a_missing_root_says_where_it_is_set(name: str, root: str | None) -> None:
    key = rf"data={name}.*paths\.{name}=.*EOMT_{name.upper()}"
    with pytest.raises(DataError, match=key):
        SETS[name][0](root, "train")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cityscapes", r"leftImg8bit/train/.*leftImg8bit_trainvaltest\.zip"),
        ("ade20k", r"images/training/.*ADEChallengeData2016\.zip"),
        ("bdd100k", r"images/10k/train/.*bdd100k_images_10k\.zip"),
        ("coco", r"train2017/.*train2017\.zip"),
    ],
)
def test_a_wrong_root_names_the_layout_and_what_is_there(
    tmp_path: Path, name: str, wanted: str
) -> None:
    with pytest.raises(DataError, match=rf"{wanted}.*it is empty.*paths\.{name}="):
        SETS[name][0](tmp_path, "train")
    (tmp_path / "holiday").mkdir()
    with pytest.raises(DataError, match="it holds holiday"):
        SETS[name][0](tmp_path, "train")


def test_an_archive_of_something_else_is_named(tmp_path: Path) -> None:
    root = place(tmp_path, "cityscapes", "zip")
    other = root / "gtFine_trainvaltest.zip"
    with zipfile.ZipFile(other, "w") as opened:
        opened.writestr("images/x.png", photograph(0, "png"))
    with pytest.raises(DataError, match=r"gtFine/val/.*it holds gtFine_trainvaltest\.zip, left"):
        Cityscapes(root, "val")
    with pytest.raises(
        DataError, match=r"leftImg8bit/train/.*gtFine_trainvaltest\.zip has none; it holds images"
    ):
        Cityscapes(other, "train")


def test_labels_without_their_json_say_what_to_unzip(tmp_path: Path) -> None:
    root = place(tmp_path, "coco", "zip")
    (root / "annotations" / "panoptic_val2017.json").unlink()
    with pytest.raises(DataError, match=r"panoptic_val2017\.json.*unzip"):
        CocoPanoptic(root, "val")
    (root / "annotations" / "panoptic_train2017.zip").unlink()
    with pytest.raises(DataError, match=r"panoptic_annotations_trainval2017\.zip, unzip"):
        CocoPanoptic(root, "train")


@every_set
def test_an_unknown_split_lists_the_others(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"train, val.*got 'all'"):
        SETS[name][0](place(tmp_path, name, "folder"), "all")


LABELS = {
    "cityscapes": "gtFine/train/zurich/zurich_000000_000019_gtFine_labelIds.png",
    "ade20k": "ADEChallengeData2016/annotations/training/ADE_train_00000002.png",
    "bdd100k": "bdd100k/labels/sem_seg/masks/train/train1-7d06fefd.png",
    "coco": "annotations/panoptic_train2017/000000000285.png",
}


@every_set
def test_a_missing_label_map_is_named_at_once(tmp_path: Path, name: str) -> None:
    root = place(tmp_path, name, "folder")
    (root / LABELS[name]).unlink()
    missing = rf"{Path(LABELS[name]).name} is missing.*data\.on_broken=skip"
    with pytest.raises(DataError, match=missing):
        SETS[name][0](root, "train")


@every_set
def test_a_label_map_of_another_size_is_named(tmp_path: Path, name: str) -> None:
    root = place(tmp_path, name, "folder")
    small = np.zeros((2, 3, 3) if name == "coco" else (2, 3), np.uint8)
    write(root, {LABELS[name]: picture(small, "png")})
    with pytest.raises(DataError, match=rf"{Path(LABELS[name]).name} is 3x2 .*its image.* 34x4"):
        SETS[name][0](root, "train")[1]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("cityscapes", (7, 34, 255), "label values 34, 255;.*gtFine_labelIds"),
        ("ade20k", (1, 151, 200), "label values 151, 200;.*ADEChallengeData2016"),
        ("bdd100k", (0, 19, 254), "label values 19, 254;.*sem_seg/masks"),
        ("coco", (7, 8, 70000, 70001), "segments 8, 70001, which panoptic_train2017.json lacks"),
    ],
)
def test_unknown_label_values_are_named(
    tmp_path: Path, name: str, values: tuple[int, ...], words: str
) -> None:
    root = place(tmp_path, name, "folder")
    strange = colours(*values) if name == "coco" else columns(*values)
    write(root, {LABELS[name]: picture(strange, "png")})
    with pytest.raises(DataError, match=rf"{Path(LABELS[name]).name} .*{words}"):
        SETS[name][0](root, "train")[1]


@every_set
def test_skip_leaves_out_what_cannot_be_used(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = place(tmp_path, name, "folder")
    whole = SETS[name][0](root, "train")
    before = {image.name: image.labels for image in whole}
    write(root, {LABELS[name]: b"not a picture"})
    with caplog.at_level(logging.WARNING):
        images = SETS[name][0](root, "train", on_broken="skip")
    assert len(images) == len(whole) - 1
    assert len(images.skipped) == 1
    assert f"1 of {len(whole)}" in caplog.text
    for image in images:
        assert np.array_equal(image.labels, before[image.name])


IMAGES = {
    "cityscapes": "leftImg8bit/train/zurich/zurich_000000_000019_leftImg8bit.png",
    "ade20k": "ADEChallengeData2016/images/training/ADE_train_00000002.jpg",
    "bdd100k": "bdd100k/images/10k/train/train1-7d06fefd.jpg",
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_missing_image_is_named_at_once_or_skipped(tmp_path: Path, name: str) -> None:
    root = place(tmp_path, name, "folder")
    (root / IMAGES[name]).unlink()
    labels, image = Path(LABELS[name]).name, Path(IMAGES[name]).name
    message = rf"{labels} has no image: .*{image} is missing\. .*data\.on_broken=skip"
    with pytest.raises(DataError, match=message):
        SETS[name][0](root, "train")
    images = SETS[name][0](root, "train", on_broken="skip")
    assert images.skipped == [image]
    assert len(images) == 1


@pytest.mark.parametrize("layout", ["10k", "seg"])
def test_bdd100k_is_read_from_its_other_folders_too(tmp_path: Path, layout: str) -> None:
    """The images archive without its upper folder, and the set as it was first published."""
    names = {"bdd100k/images/10k/": "10k/", "bdd100k/": ""}
    if layout == "seg":
        names = {"bdd100k/images/10k/": "seg/images/",
                 "bdd100k/labels/sem_seg/masks/": "seg/labels/"}  # fmt: skip
    for file, data in bdd100k().items():
        old = next((old for old in names if file.startswith(old)), "")
        other = file.replace(old, names[old], 1) if old else f"rest/{file}"
        if layout == "seg" and "/labels/" in other:
            other = other.replace(".png", "_train_id.png")
        write(tmp_path, {other: data})
    images = BDD100K(tmp_path, "val")
    assert [image.name for image in images] == ["val0-7d06fefd", "val1-7d06fefd"]
    assert images[0].labels[0, :20].tolist() == [*range(19), VOID]
    assert len(BDD100K(tmp_path, "test")) == 2


def test_a_missing_coco_image_is_named_at_once_or_skipped(tmp_path: Path) -> None:
    root = place(tmp_path, "coco", "folder")
    (root / "val2017" / "000000000139.jpg").unlink()
    with pytest.raises(DataError, match=r"000000000139\.jpg is missing.*data\.on_broken=skip"):
        CocoPanoptic(root, "val")
    assert CocoPanoptic(root, "val", on_broken="skip").skipped == ["000000000139.jpg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read as COCO panoptic"),
        (b'{"images": []}', "cannot be read as COCO panoptic.*KeyError"),
        (b'{"annotations": []}', "has no annotations"),
        (b'{"annotations": [{"id": 1, "category_id": 1, "bbox": []}]}', "cannot be read"),
        (coco_json({5: (12, 0), 6: (201, 0)}, "1", "2"), "has categories 12, 201"),
    ],
)
def test_a_wrong_coco_json_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    root = place(tmp_path, "coco", "folder")
    write(root, {"annotations/panoptic_val2017.json": content})
    with pytest.raises(DataError, match=rf"panoptic_val2017\.json {words}"):
        CocoPanoptic(root, "val")
