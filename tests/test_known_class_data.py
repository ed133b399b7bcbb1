"""The training sets in their published layouts: every pixel gets its class."""

import io
import json
import logging
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from eomt_exp import runs
from eomt_exp.build import build
from eomt_exp.contracts import NORMAL, VOID, DataError, LabelledImage, UserError
from eomt_exp.data.coco_panoptic import CocoPanoptic
from eomt_exp.data.loader import image_loader
from tests.data_files import assert_same_images, composed, known_classes, noise

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


def photograph(seed: int, suffix: str = "jpg") -> bytes:
    return picture(noise(seed, *SIZE), suffix)


def columns(*values: int) -> np.ndarray:
    """A label map with one value a column, the last one to the end."""
    row = np.full(SIZE[1], values[-1], np.int64)
    row[: len(values)] = values
    return np.tile(row, (SIZE[0], 1))


def label_png(*values: int) -> bytes:
    return picture(columns(*values).astype(np.uint8), "png")


def cityscapes() -> dict[str, bytes]:
    files = {"leftImg8bit/README": b"x", "gtFine/README": b"x"}
    for split, city, frame in (
        ("train", "aachen", "000001_000019"),
        ("train", "zurich", "000000_000019"),
        ("val", "munster", "000002_000019"),
    ):
        scene = f"{split}/{city}/{city}_{frame}"
        files[f"leftImg8bit/{scene}_leftImg8bit.png"] = photograph(len(files), "png")
        files[f"gtFine/{scene}_gtFine_labelIds.png"] = label_png(*range(34))
        files[f"gtFine/{scene}_gtFine_color.png"] = photograph(0, "png")
        files[f"gtFine/{scene}_gtFine_instanceIds.png"] = label_png(5)
        files[f"gtFine/{scene}_gtFine_polygons.json"] = b"{}"
    files["leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"] = photograph(9, "png")
    return files


def camvid() -> dict[str, bytes]:
    files = {}
    for stem in ("train/x1", "train/x2", "train/x10", "val/x3", "test/x4"):
        split, name = stem.split("/")
        files[f"{stem}.jpg"] = photograph(len(files))
        files[f"{split}annot/{name}.png"] = label_png(0, 10, 11)
    files["trainannot/x1_color.png"] = b"a coloured copy"
    return files


def ade20k() -> dict[str, bytes]:
    files = {}
    for split, folder in (("train", "training"), ("val", "validation")):
        for number in (1, 2):
            stem = f"{folder}/ADE_{split}_{number:08}"
            files[f"ADEChallengeData2016/images/{stem}.jpg"] = photograph(number)
            files[f"ADEChallengeData2016/annotations/{stem}.png"] = label_png(0, 1, 7, 150, number)
    files["ADEChallengeData2016/objectInfo150.txt"] = b"x"
    return files


def bdd100k() -> dict[str, bytes]:
    files = {}
    for split in ("train", "val", "test"):
        for stem in (f"{split}0-7d06fefd", f"{split}1-7d06fefd"):
            files[f"bdd100k/images/10k/{split}/{stem}.jpg"] = photograph(len(files))
            if split != "test":
                masks = f"bdd100k/labels/sem_seg/masks/{split}/{stem}.png"
                files[masks] = label_png(*range(19), 255)
                files[f"bdd100k/labels/sem_seg/colormaps/{split}/{stem}.png"] = photograph(0, "png")
    return files


def panoptic(*ids: int) -> bytes:
    """Panoptic pictures write R + 256 G + 65536 B."""
    values = columns(*ids)
    colours = np.stack([values % 256, values // 256 % 256, values // 65536], axis=2)
    return picture(colours.astype(np.uint8), "png")


def coco_json(segments: Mapping[int, tuple[int, int]], *stems: str) -> bytes:
    """All segments are in every picture but the last, which has only the first of them."""
    infos = [
        {"id": id, "category_id": category, "iscrowd": crowd, "bbox": [0, 0, 1, 1], "area": 4}
        for id, (category, crowd) in segments.items()
    ]
    annotations: list[dict[str, Any]] = [
        {"segments_info": infos, "file_name": f"{s}.png", "image_id": int(s)} for s in stems
    ]
    annotations[-1]["segments_info"] = infos[:1]
    images = [{"id": int(s), "file_name": f"{s}.jpg", "height": 4} for s in stems]
    kinds = [{"id": 1, "name": "person", "isthing": 1, "supercategory": "person"}]
    content = {"info": {"year": 2018}, "licenses": [{"id": 1, "name": "x"}], "images": images,
               "annotations": annotations, "categories": kinds}  # fmt: skip
    return json.dumps(content).encode()


def coco() -> dict[str, bytes]:
    files = {}
    for split in ("train", "val"):
        stems = [f"{number:012}" for number in (139, 285, 30)]
        for stem in stems:
            files[f"{split}2017/{stem}.jpg"] = photograph(int(stem))
            ids = (0, *SEGMENTS, 7) if stem != stems[-1] else (0, 7)
            files[f"annotations/panoptic_{split}2017/{stem}.png"] = panoptic(*ids)
        files[f"annotations/panoptic_{split}2017.json"] = coco_json(SEGMENTS, *stems)
    return files


# Files, and how the files begin that lie in an archive.
SETS: dict[str, tuple[dict[str, bytes], dict[str, str]]] = {
    "camvid": (camvid(), {"": "camvid.zip"}),
    "cityscapes": (cityscapes(), {
        f"{part}/": f"{part}_trainvaltest.zip" for part in ("leftImg8bit", "gtFine")}),
    "ade20k": (ade20k(), {"": "ADEChallengeData2016.zip"}),
    "bdd100k": (bdd100k(), {
        "bdd100k/images/": "bdd100k_images_10k.zip",
        "bdd100k/labels/": "bdd100k_sem_seg_labels_trainval.zip"}),
    # The pictures of the labels are in the inner archive, beside the JSON, which is a file.
    "coco": (coco(), {
        f"{part}/": f"{part}.zip" for split in ("train2017", "val2017")
        for part in (split, f"annotations/panoptic_{split}")}),
}  # fmt: skip
every_set = pytest.mark.parametrize("name", SETS)


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def laid_out(root: Path, name: str, form: str = "folder") -> Path:
    """The set's files below `root`: unpacked, or in the archive or archives of its publishers."""
    files, archives = SETS[name]
    for file, data in files.items():
        archive = next((root / a for start, a in archives.items() if file.startswith(start)), None)
        if form == "folder" or archive is None:
            write(root, {file: data})
            continue
        archive.parent.mkdir(parents=True, exist_ok=True)
        inside = (root / file).relative_to(archive.parent)
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr(str(inside), data)
            opened.writestr(f"__MACOSX/{inside}", b"what macOS leaves")
    one, *others = root.iterdir()
    return root if others or one.is_dir() else one


# What the images of a split are called, in order, and the labels of each row of theirs; as in
# `columns`, the last stands to the end. VOID alone: a split whose truth is not published.
CITYSCAPES = composed("data=cityscapes").data.train
CITYSCAPES_ROW = [CITYSCAPES.classes.index(CITYSCAPES_IDS[value])
                  if value in CITYSCAPES_IDS else VOID for value in range(34)]  # fmt: skip
COCO_ROW = (VOID, 0, 100, 132, VOID, 0)  # no segment, three known, a crowd
TRUTH: dict[tuple[str, str], dict[str, Sequence[int]]] = {
    ("camvid", "train"): dict.fromkeys(("x1", "x2", "x10"), (0, 10, VOID)),
    ("cityscapes", "train"): dict.fromkeys(
        ("aachen_000001_000019", "zurich_000000_000019"), CITYSCAPES_ROW),
    ("cityscapes", "val"): {"munster_000002_000019": CITYSCAPES_ROW},
    ("cityscapes", "test"): {"berlin_000000_000019": (VOID,)},
    # It counts its classes from one.
    **{("ade20k", split): {f"ADE_{split}_0000000{number}": (VOID, 0, 6, 149, number - 1)
                           for number in (1, 2)} for split in ("train", "val")},
    ("bdd100k", "val"): dict.fromkeys(("val0-7d06fefd", "val1-7d06fefd"), (*range(19), VOID)),
    ("bdd100k", "test"): dict.fromkeys(("test0-7d06fefd", "test1-7d06fefd"), (VOID,)),
    ("coco", "val"): dict.fromkeys(("000000000139", "000000000285"), COCO_ROW)
    | {"000000000030": (VOID, 0)},
}  # fmt: skip


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(("name", "split"), TRUTH)
def test_images_are_the_files_and_every_pixel_gets_its_class(
    tmp_path: Path, name: str, split: str, form: str
) -> None:
    files = SETS[name][0]
    images = known_classes(name, laid_out(tmp_path, name, form), split)
    truth = TRUTH[name, split]
    assert [image.name for image in images] == list(truth)
    assert (images.locations(0)[1] is None) == (split == "test")
    photographs = {Path(file).stem.removesuffix("_leftImg8bit"): data
                   for file, data in files.items() if file.endswith((".jpg", "_leftImg8bit.png"))
                   }  # fmt: skip
    for image in images:
        expected = Image.open(io.BytesIO(photographs[image.name]))
        assert np.array_equal(image.image, np.asarray(expected))
        assert np.array_equal(image.labels, columns(*truth[image.name]))
        assert np.array_equal(image.anomaly, np.where(image.labels == VOID, VOID, NORMAL))


@pytest.mark.parametrize(
    ("name", "form", "inner"),
    [
        ("ade20k", "folder", "ADEChallengeData2016"),
        ("ade20k", "zip", "ADEChallengeData2016.zip"),
        ("bdd100k", "folder", "bdd100k"),
    ],
)
def test_the_folder_above_is_as_good(tmp_path: Path, name: str, form: str, inner: str) -> None:
    laid_out(tmp_path, name, form)
    assert_same_images(known_classes(name, tmp_path), known_classes(name, tmp_path / inner))


def test_class_numbers_are_those_of_the_publishers() -> None:
    ade20k, coco = composed("data=ade20k").data.train.classes, CocoPanoptic.class_names
    assert (ade20k[6], ade20k[149]) == ("road", "flag")
    assert (len(coco), coco[79], coco[80]) == (133, "toothbrush", "banner")  # things, stuff
    assert (coco[0], coco[100], coco[132]) == ("person", "road", "rug-merged")


def test_categories_are_those_of_cityscapes() -> None:
    pairs = zip(CITYSCAPES.class_categories, CITYSCAPES.classes, strict=True)
    groups = {kind: ", ".join(n for _, n in some) for kind, some in groupby(pairs, itemgetter(0))}
    assert groups == {
        "flat": "road, sidewalk",
        "construction": "building, wall, fence",
        "object": "pole, traffic light, traffic sign",
        "nature": "vegetation, terrain",
        "sky": "sky",
        "human": "person, rider",
        "vehicle": "car, truck, bus, train, motorcycle, bicycle",
    }


@every_set
def test_workers_read_from_archives_what_one_process_reads(tmp_path: Path, name: str) -> None:
    images = known_classes(name, laid_out(tmp_path, name, "zip"))
    alone = list(images)  # the parent's handle is open, and must not be the workers'
    for _ in range(2):
        loaded = list(image_loader(images, num_workers=2))
        assert {(type(one), type(one.image)) for one in loaded} == {(LabelledImage, np.ndarray)}
        assert_same_images(loaded, alone)
    spawned = pickle.loads(pickle.dumps(images))  # so a spawned worker gets the set
    assert_same_images(spawned, alone)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("camvid", {"train": 367, "val": 101, "test": 233}),
        ("cityscapes", {"train": 2975, "val": 500, "test": 1525}),
        ("ade20k", {"train": 20210, "val": 2000}),
        ("coco", {"train": 118287, "val": 5000}),
        ("bdd100k", {"train": 7000, "val": 1000, "test": 2000}),
    ],
)
def test_sets_know_their_classes_and_splits_and_how_many_images_were_published(
    tmp_path: Path, name: str, counts: dict[str, int]
) -> None:
    root = laid_out(tmp_path, name)
    images = known_classes(name, root)
    assert len(set(images.class_names)) == images.num_classes == len(images.class_names)
    assert images.num_classes == composed(f"data={name}").data.num_classes
    # They become parts of metric names.
    assert all(re.fullmatch(r"[a-z][a-z -]*[a-z]", word) for word in images.class_names)
    assert {split: known_classes(name, root, split).expected_images for split in counts} == counts
    with pytest.raises(ValueError, match=rf"{', '.join(counts)}, got 'all'"):
        known_classes(name, root, "all")


@every_set
def test_a_missing_root_says_where_it_is_set(name: str) -> None:
    for root in (None, "", "/no/such/place"):
        with pytest.raises(DataError, match=rf"data={name}.*paths\.{name}=.*EOMT_{name.upper()}"):
            known_classes(name, root)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cityscapes", r"leftImg8bit_trainvaltest or .*: leftImg8bit/train/\*/"),
        ("ade20k", r"called ADEChallengeData2016: .*: images/training/"),
        ("bdd100k", r"bdd100k_images_10k or .*: \[images/\]10k/train/"),
        ("coco", r"train2017 or panoptic_train2017: .*train2017/"),
    ],
)
def test_a_wrong_root_names_the_layout_and_what_is_there(
    tmp_path: Path, name: str, wanted: str
) -> None:
    with pytest.raises(DataError, match=rf"{wanted}.*Found: no images.*paths\.{name}="):
        known_classes(name, tmp_path)
    write(tmp_path, {"holiday/1.jpg": photograph(1)})
    with pytest.raises(DataError, match=r"images in .*holiday \(1 such as 1\.jpg\)"):
        known_classes(name, tmp_path)


def test_an_archive_of_something_else_is_named(tmp_path: Path) -> None:
    root = laid_out(tmp_path, "cityscapes", "zip")
    other = root / "gtFine_trainvaltest.zip"
    with zipfile.ZipFile(other, "w") as opened:
        opened.writestr("images/x.png", photograph(0, "png"))
    with pytest.raises(DataError, match=r"1 images such as .*munster.* none the label map gtFine"):
        known_classes("cityscapes", root, "val")
    with pytest.raises(
        DataError, match=r"leftImg8bit/train/.*Found: .*gtFine_trainvaltest\.zip!images \(1 such"
    ):
        known_classes("cityscapes", other)


def test_a_label_map_of_another_size_or_with_colours_is_named_but_a_palette_is_read(
    tmp_path: Path,
) -> None:
    root = laid_out(tmp_path, "camvid")
    path = root / "trainannot" / "x1.png"
    palette = Image.open(path)
    palette.putpalette([200, 100, 50] * 256)
    palette.save(path)
    assert palette.mode == "P"
    assert set(np.unique(known_classes("camvid", root)[0].labels)) == {0, 10, VOID}
    for wrong, message in (((5, 7), "is 7x5 .*x1\\.jpg is 34x4"), ((*SIZE, 3), "3 channels")):
        path.write_bytes(picture(np.zeros(wrong, np.uint8), "png"))
        with pytest.raises(DataError, match=rf"x1\.png .*{message}"):
            known_classes("camvid", root)[0]
    shutil.rmtree(root / "valannot")
    with pytest.raises(DataError, match="valannot"):
        known_classes("camvid", root, "val")


@pytest.mark.parametrize("filling", [b"", b"\0"])  # a download may reserve its space first
def test_a_jpeg_that_breaks_off_is_named_on_access(tmp_path: Path, filling: bytes) -> None:
    root, data = laid_out(tmp_path, "camvid"), picture(noise(1, 48, 64), "jpg")
    half = len(data) // 2
    write(root, {"train/x2.jpg": data[:half] + filling * half})
    images = known_classes("camvid", root)
    assert images[0].name == "x1"
    with pytest.raises(DataError, match=r"x2\.jpg cannot be read.*data\.on_broken=skip"):
        images[1]
    write(root, dict.fromkeys(("train/x1.jpg", "train/x10.jpg"), b"half of it"))
    with pytest.raises(DataError, match="None of the 3 images"):
        known_classes("camvid", root, on_broken="skip")


def test_labels_without_their_json_say_what_to_unzip(tmp_path: Path) -> None:
    root = laid_out(tmp_path, "coco", "zip")
    (root / "annotations" / "panoptic_val2017.json").unlink()
    with pytest.raises(DataError, match=r"panoptic_val2017\.json.*unzip"):
        known_classes("coco", root, "val")
    (root / "annotations" / "panoptic_train2017.zip").unlink()
    with pytest.raises(DataError, match=r"panoptic_annotations_trainval2017\.zip, unzip"):
        known_classes("coco", root)


@every_set
def test_a_missing_file_is_named_at_once_and_an_unusable_one_can_be_skipped(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = laid_out(tmp_path, name)
    images = known_classes(name, root)
    whole, (image, label_map) = list(images), map(Path, images.locations(1))
    data = label_map.read_bytes()
    label_map.unlink()
    with pytest.raises(DataError, match=rf"{label_map.name} is missing.*data\.on_broken=skip"):
        known_classes(name, root)
    label_map.write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        usable = known_classes(name, root, on_broken="skip")
    (record,) = caplog.records
    assert f"1 of {len(whole)}" in record.getMessage()
    assert usable.skipped == [image.name]
    assert f"{label_map.name} cannot be read" in record.getMessage()
    assert_same_images(usable, [whole[0], *whole[2:]])
    label_map.write_bytes(data)
    image.unlink()
    stem = image.stem if name == "camvid" else image.name  # its layout takes any kind of image
    missing = rf"{stem} is missing\. .*data\.on_broken=skip"
    with pytest.raises(DataError, match=rf"{label_map.name} has no image: .*{missing}"):
        known_classes(name, root)
    usable = known_classes(name, root, on_broken="skip")
    assert usable.skipped == [stem]
    assert len(usable) == len(whole) - 1


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("camvid", (0, 12, 200), "label values 12, 200; only 0-11 have a meaning here"),
        ("cityscapes", (7, 34, 255), "label values 34, 255; only 0-33 have"),
        ("ade20k", (1, 151, 200), "label values 151, 200; only 0-150 have"),
        ("bdd100k", (0, 19, 254), "label values 19, 254; only 0-18, 255 have"),
        ("coco", (7, 8, 70000, 70001), "segments 8, 70001, which panoptic_train2017.json lacks"),
    ],
)
def test_unknown_label_values_are_named(
    tmp_path: Path, name: str, values: tuple[int, ...], message: str
) -> None:
    images = known_classes(name, laid_out(tmp_path, name))
    label_map = Path(images.locations(1)[1])
    label_map.write_bytes(panoptic(*values) if name == "coco" else label_png(*values))
    with pytest.raises(DataError, match=rf"{label_map.name} .*{message}"):
        images[1]


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        ({"bdd100k/images/10k/": "10k/", "bdd100k/": ""}, ".png"),
        ({"bdd100k/images/10k/": "seg/images/", "bdd100k/labels/sem_seg/masks/": "seg/labels/",
          "bdd100k/": "rest/"}, "_train_id.png"),
    ],
)  # fmt: skip
def test_bdd100k_is_read_from_its_other_folders_too(
    tmp_path: Path, folders: dict[str, str], labels: str
) -> None:
    """The images archive without its upper folder, and the set as it was first published."""
    for file, data in bdd100k().items():
        old = next(old for old in folders if file.startswith(old))
        write(
            tmp_path / "other", {file.replace(old, folders[old], 1).replace(".png", labels): data}
        )
    usual = laid_out(tmp_path / "usual", "bdd100k")
    for split in ("val", "test"):
        assert_same_images(
            known_classes("bdd100k", tmp_path / "other", split),
            known_classes("bdd100k", usual, split),
        )


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
    root = write(laid_out(tmp_path, "coco"), {"annotations/panoptic_val2017.json": content})
    with pytest.raises(DataError, match=rf"panoptic_val2017\.json {words}"):
        known_classes("coco", root, "val")


OLD = {
    "camvid": "CamVid", "cityscapes": "Cityscapes", "bdd100k": "BDD100K", "ade20k": "ADE20K"
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_a_run_of_a_class_that_is_gone_loads_and_goes_on_as_one_of_today(
    tmp_path: Path, name: str
) -> None:
    root, run_dir = str(laid_out(tmp_path / "data", name)), tmp_path / "run"
    cfg = composed(f"data={name}", "benchmark=road_anomaly", f"paths.{name}={root}")
    today = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    old = runs.plain(today)
    for part in ("train", "val"):
        target = f"eomt_exp.data.{name}.{OLD[name]}"
        old["data"][part] = {"_target_": target, "root": root, "split": part, "on_broken": "error"}
    for layout in old["benchmark"]["road_anomaly"]["layouts"].values():
        layout["_target_"] = "eomt_exp.data.anomaly_layouts.Layout"
    write(run_dir, {"config.yaml": json.dumps(old).encode()})
    loaded = runs.load_config(run_dir)
    assert runs.plain(loaded) == runs.plain(today)
    assert runs.content_key(loaded) == runs.content_key(today)
    assert_same_images(build(loaded.data.val), known_classes(name, root, "val"))
    runs.begin(today, run_dir)  # not refused: nothing that decides the weights has changed


def own(root: Path, **options: Any) -> Any:
    """A set of two classes, numbered otherwise in its files."""
    layout = {"_target_": "eomt_exp.data.files.layouts.Layout", "images": "images/{split}/{id}",
              "labels": "labels/{split}/{id}.png"}  # fmt: skip
    node = {"_target_": "eomt_exp.data.known_class_folder.KnownClassFolder", "root": str(root),
            "name": "mine", "split": "train", "layouts": {"mine": layout},
            "classes": ["road", "car"], "label_values": {"car": ["20-22", 26], "road": 7}
            }  # fmt: skip
    return build(node | options, "data.train")


def test_label_values_of_others_become_known_classes_and_the_rest_is_void(tmp_path: Path) -> None:
    write(tmp_path, {"images/train/a.jpg": photograph(1),
                     "labels/train/a.png": label_png(7, 20, 21, 22, 26, 0, 8, 255)})  # fmt: skip
    images = own(tmp_path)
    assert np.array_equal(images[0].labels, columns(0, 1, 1, 1, 1, VOID, VOID, VOID))
    assert (images.num_classes, images.class_names) == (2, ("road", "car"))
    # What is void because nobody said so is known, for task=doctor.
    assert 8 in images.unmapped
    assert not images.unmapped & {7, 20, 21, 22, 26, 255}
    strict = own(tmp_path, unmapped_values="error", void_values=[0, 255])
    with pytest.raises(DataError, match=r"a\.png holds label values 8; only 0, 7, 20-22, 26, 255"):
        strict[0]
    for options, message in (
        ({"label_values": {"raod": 7}}, "names raod, which is none of the classes: road, car"),
        ({"label_values": {"road": 7, "car": "5-8"}}, r"label_values\.car holds 7, which has a m"),
        ({"classes": ["road"]}, "names car, which is none"),
    ):
        with pytest.raises(UserError, match=message):
            own(tmp_path, **options)
