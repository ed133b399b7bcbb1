"""Objects to paste, cut out of COCO and of label maps: which ones, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from eomt_exp.build import build
from eomt_exp.contracts import ANOMALY, DataError, UserError
from eomt_exp.data.augmentation import Augmentation
from eomt_exp.data.loader import training_loader
from eomt_exp.data.outlier_exposure import CutPaste
from eomt_exp.data.synthetic_roads import SyntheticRoads
from eomt_exp.data.training_set import TrainingSet
from tests.data_files import composed, noise, save, zipped

HEIGHT, WIDTH = 60, 80
K = 9  # of the scenes
CLASSES = {1: "person", 3: "car", 7: "train", 18: "dog", 52: "banana"}
ALL = ["bicycle", "motorcycle", "bus", "truck", "traffic light", "stop sign"]


def square(left: int, top: int, side: int) -> dict[str, Any]:
    return {
        "segmentation": [polygon(left, top, side)],
        "bbox": [left, top, side, side],
        "area": side**2,
    }


def polygon(left: int, top: int, side: int) -> list[int]:
    right, bottom = left + side, top + side
    return [left, top, right, top, right, bottom, left, bottom]


# Photograph, class, outline and what else its entry says.
OBJECTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "dog": (1, 18, square(10, 12, 20)),
    "speck": (1, 18, square(60, 40, 5)),
    "cut off": (1, 52, square(60, 40, 20)),
    "bunch": (
        1, 52,
        {"segmentation": {"counts": [60 * 20, 60 * 30, 60 * 30], "size": [HEIGHT, WIDTH]},
         "bbox": [20, 0, 30, 60], "area": 1800, "iscrowd": 1},
    ),
    "dog on a train": (2, 18, square(5, 5, 30)),
    "train": (2, 7, square(40, 10, 30)),
    "banana": (3, 52, {
        "segmentation": [polygon(20, 20, 20), polygon(50, 20, 10)],
        "bbox": [20, 20, 40, 20], "area": 500,
    }),
}  # fmt: skip


def coco(folder: Path) -> Path:
    """Three photographs and their outlines, in the layout of the published archives, unpacked."""
    for number in (1, 2, 3):
        save(folder / "train2017" / f"{number:012d}.png", noise(number, HEIGHT, WIDTH))
        # A PNG's bytes under the published name: its pixels can be compared.
        (folder / "train2017" / f"{number:012d}.png").rename(
            folder / "train2017" / f"{number:012d}.jpg"
        )
    content = {
        "images": [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": HEIGHT, "width": WIDTH}
            for n in (1, 2, 3)
        ],
        "categories": [
            {"id": n, "name": name} for n, name in (CLASSES | dict(enumerate(ALL, 100))).items()
        ],
        "annotations": [
            {"id": n, "image_id": image, "category_id": kind, "iscrowd": 0} | outline
            for n, (image, kind, outline) in enumerate(OBJECTS.values())
        ],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return folder


def source(name: str, root: Path | str | None, **options: Any) -> Any:
    """As `outliers=NAME paths.…=ROOT outliers.OPTION=…`."""
    node: Any = OmegaConf.to_container(composed(f"outliers={name}").outliers, resolve=True)
    return build(node | {"root": root} | options, "outliers")


def names(pool: Any) -> list[str]:
    """The keys of OBJECTS that are in it."""
    keys = list(OBJECTS)
    return [keys[int(pool.name(index).rpartition(" ")[2])] for index in range(len(pool))]


def test_a_cut_out_is_what_its_outline_encloses(tmp_path: Path) -> None:
    pool = source("coco", coco(tmp_path), min_area=100)
    assert names(pool) == ["dog", "banana"]
    rgba = pool[0]
    assert np.array_equal(rgba[..., :3], noise(1, HEIGHT, WIDTH)[12:32, 10:30])
    assert (rgba[..., 3] == 255).all()
    two_parts = pool[1]
    assert two_parts.shape == (20, 40, 4)
    assert (two_parts[..., 3] > 0).sum() == 500
    assert pool.name(1) == "000000000003.jpg banana 6"


def test_which_objects_are_left(tmp_path: Path) -> None:
    root = coco(tmp_path)
    anywhere = {"excluded_images": [], "min_area": 100}
    assert names(source("coco", root, **anywhere)) == ["dog", "dog on a train", "banana"]
    every = source("coco", root, **anywhere | {"excluded_objects": []})
    assert names(every) == ["dog", "dog on a train", "train", "banana"]
    bananas = source("coco", root, **anywhere | {"excluded_objects": ["dog", "train"]})
    assert names(bananas) == ["banana"]
    assert names(source("coco", root, min_area=450)) == ["banana"]
    assert names(source("coco", root, min_area=1, length=2)) == ["dog", "speck"]


def test_the_archives_as_published_hold_the_same_objects(tmp_path: Path) -> None:
    root = coco(tmp_path / "coco")
    pool = source("coco", root, min_area=100)
    unpacked = [pool[index] for index in range(2)]
    zipped(root / "train2017", root / "train2017.zip")
    for file in (root / "train2017").iterdir():
        file.unlink()
    packed = source("coco", root, min_area=100)
    for index in range(2):
        assert np.array_equal(packed[index], unpacked[index])


def test_what_coco_lacks_is_named_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"outliers=coco needs a folder.*paths\.coco="):
        source("coco", None)
    root = coco(tmp_path)
    with pytest.raises(UserError, match=r"outliers\.excluded_images names cat, which is none"):
        source("coco", root, excluded_images=["cat"])
    with pytest.raises(DataError, match=r"None of the 7 objects .*outliers\.min_area=9999"):
        source("coco", root, min_area=9999)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycocotools", None)
        with pytest.raises(UserError, match=r"outliers=coco needs pycocotools.*pip install.*coco"):
            source("coco", root)
    save(root / "train2017" / "small.png", noise(0, 9, 9)).rename(
        root / "train2017" / "000000000003.jpg"
    )
    with pytest.raises(DataError, match=r"3\.jpg is 9x9 pixels .* says 80x60"):
        source("coco", root, min_area=450)[0]
    (root / "train2017" / "000000000003.jpg").unlink()
    with pytest.raises(DataError, match=r"1 images .* the first is 000000000003\.jpg"):
        source("coco", root, min_area=450)
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(DataError, match=r"instances_train2017\.json cannot be read.*annotations_t"):
        source("coco", root)
    file.unlink()
    with pytest.raises(DataError, match=r"outliers=coco needs annotations/instances_train2017"):
        source("coco", root)


TENT, SOFA, CAR = 115, 24, 21


def ade20k(folder: Path) -> Path:
    """Two photographs: one has two tents, a sofa that is cut off and a car; one has only a car."""
    first = np.zeros((HEIGHT, WIDTH), np.uint8)
    first[5:25, 5:25] = first[30:50, 10:40] = TENT
    first[30:50, 60:] = SOFA
    first[5:25, 40:60] = CAR
    second = np.where(first == CAR, CAR, 0).astype(np.uint8)
    for number, labels in enumerate((first, second), 1):
        name = f"ADE_train_{number:08d}"
        photograph = save(folder / "images" / "training" / f"{name}.png", noise(number, 60, 80))
        photograph.rename(photograph.with_suffix(".jpg"))
        save(folder / "annotations" / "training" / f"{name}.png", labels)
    return folder


def test_regions_are_whole_and_of_no_excluded_class(tmp_path: Path) -> None:
    pool = source("ade20k", ade20k(tmp_path / "ADEChallengeData2016"), min_area=300, length=16)
    photograph = noise(1, HEIGHT, WIDTH)
    tents = [photograph[5:25, 5:25], photograph[30:50, 10:40]]
    seen = set()
    for index in range(len(pool)):
        rgba = pool[index]
        (which,) = [n for n, tent in enumerate(tents) if np.array_equal(rgba[..., :3], tent)]
        assert (rgba[..., 3] == 255).all()
        assert pool.name(index) == f"ADE_train_00000001 {TENT}"  # the second has none to offer
        seen.add(which)
    assert seen == {0, 1}
    again = source("ade20k", tmp_path, min_area=300, length=16)
    assert all(np.array_equal(again[index], pool[index]) for index in reversed(range(16)))


def test_label_values_can_be_allowed_and_excluded(tmp_path: Path) -> None:
    root = ade20k(tmp_path)
    cars = {"excluded_values": {}, "allowed_values": {"car": CAR, "sofa": SOFA}, "min_area": 300}
    pool = source("ade20k", root, length=4, **cars)
    found = [pool.name(index) for index in range(4)]
    assert found == [f"ADE_train_0000000{n} {CAR}" for n in (1, 1, 2, 2)]
    with pytest.raises(DataError, match=r"No region .*outliers\.min_area=500"):
        source("ade20k", root, **cars | {"min_area": 500})[0]
    with pytest.raises(UserError, match=r"outliers\.excluded_values\.x must lie in 0\.\.255"):
        source("ade20k", root, excluded_values={"x": 300})
    with pytest.raises(UserError, match=r"outliers\.length must be at least 1, got 0"):
        source("ade20k", root, length=0)
    with pytest.raises(DataError, match=r"outliers=ade20k needs a folder.*paths\.ade20k="):
        source("ade20k", None)


@pytest.fixture(params=["coco", "ade20k"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each source, its photographs in an archive."""
    if request.param == "coco":
        root = coco(tmp_path / "coco")
        zipped(root / "train2017", root / "train2017.zip")
        (root / "train2017").rename(tmp_path / "elsewhere")
    else:
        root = zipped(ade20k(tmp_path / "ADEChallengeData2016"), tmp_path / "ade.zip")
    return source(request.param, root, min_area=100, length=8)


@pytest.mark.parametrize("target", ["ignore", "outlier_class", "no_object"])
def test_what_a_target_makes_of_the_objects(pool: Any, target: Any) -> None:
    truth = training(pool, target=target)[0].target
    is_outlier = truth.anomaly == ANOMALY
    assert is_outlier.any()
    assert torch.equal(truth.ignore, is_outlier & (target == "ignore"))
    assert (K in truth.labels.tolist()) == (target == "outlier_class")
    covered = truth.masks.any(0)
    assert torch.equal(covered & is_outlier, is_outlier & (target == "outlier_class"))


def training(pool: Any, **options: Any) -> TrainingSet:
    paste = CutPaste(pool, num_classes=K, paste_probability=1, **options)
    return TrainingSet(SyntheticRoads("train", 4, 32, 64), Augmentation([32, 64]), paste, K, 0)


def test_workers_read_the_same_objects(pool: Any) -> None:
    alone, shared = (
        list(training_loader(training(pool), batch_size=2, num_workers=workers, seed=0))
        for workers in (0, 2)
    )
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.names == other.names


def test_the_source_of_objects_is_chosen_apart_from_the_data_set(tmp_path: Path) -> None:
    chosen = ("data=camvid", "outlier_exposure=cut_paste", "benchmark@tuning=pasted_validation")
    own = composed(*chosen)
    assert own.outlier_exposure.pool == own.data.outliers == own.data.val_outliers
    drawn = composed(*chosen, "outliers=procedural", "outliers.length=3")
    for pool in (drawn.outlier_exposure.pool, drawn.tuning.pasted_validation.paste.pool):
        assert len(build(pool)) == 3
