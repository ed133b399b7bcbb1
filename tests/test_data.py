"""What the data room hands out is true to the files, and a function of (seed, epoch, index)."""

import hashlib
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from eomt_exp.contracts import ANOMALY, NORMAL, VOID, DataError, LabelledImage, Sample
from eomt_exp.data.anomaly_folder import AnomalyFolder
from eomt_exp.data.augmentation import Augmentation
from eomt_exp.data.camvid import CamVid
from eomt_exp.data.cutouts import colour_matched, soft_alpha
from eomt_exp.data.files.tree import FileTree
from eomt_exp.data.loader import collate, image_loader, training_loader
from eomt_exp.data.outlier_exposure import CutPaste
from eomt_exp.data.outlier_folder import OutlierFolder
from eomt_exp.data.shared_cache import SharedCache
from eomt_exp.data.training_set import TrainingSet

ROAD, SKY, K = 0, 1, 2
HEIGHT, WIDTH = 48, 64
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


class Scenes:
    """Sky over road; the green channel is the column and blue the row, so places can be read."""

    num_classes = K
    class_names = ("road", "sky")

    def __init__(self, count: int = 6, height: int = HEIGHT, width: int = WIDTH) -> None:
        self.count, self.height, self.width, self.reads = count, height, width, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LabelledImage:
        self.reads += 1
        rows, columns = np.mgrid[: self.height, : self.width].astype(np.uint8)
        image = np.stack([np.full_like(rows, 40 * index), columns, rows], axis=2)
        labels = np.where(rows >= self.height // 2, ROAD, SKY).astype(np.uint8)
        labels[:2] = VOID
        anomaly = np.where(labels == VOID, VOID, NORMAL).astype(np.uint8)
        return LabelledImage(image, labels, anomaly, f"scene {index}")


class Blocks:
    """Opaque rectangles of pure red, (height, width) each."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        self.shapes = shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        rgba = np.zeros((*self.shapes[index], 4), dtype=np.uint8)
        rgba[..., 0] = rgba[..., 3] = 255
        return rgba


PLAIN: dict[str, Any] = {
    "num_classes": K, "paste_probability": 1.0, "min_objects": 1, "max_objects": 1,
    "colour_match": 0.0, "rotation": 0.0, "brightness": 0.0, "feather": 0.0,
}  # fmt: skip


def pasted(seed: int = 0, scene: LabelledImage | None = None, **options: Any) -> LabelledImage:
    pool = options.pop("pool", Blocks((20, 10)))
    paste = CutPaste(pool, **(PLAIN | options))
    return paste(scene or Scenes()[0], np.random.default_rng(seed))


def training_set(images: Any = None, cache: bool = False, **options: Any) -> TrainingSet:
    exposure = CutPaste(Blocks((9, 5), (4, 12)), num_classes=K, **options)
    augmentation = Augmentation([32, 48], blur=0.5, noise=0.5)
    images = images or Scenes()
    images = SharedCache(images) if cache else images
    return TrainingSet(images, augmentation, exposure, K, seed=7)


def fingerprint(sample: Sample) -> tuple[str, str]:
    target = sample.target
    parts = b"".join(part.numpy().tobytes() for part in (sample.image, *target))
    return sample.name, hashlib.sha256(parts).hexdigest()


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Three images, with the label values 0, 10 and 11 (unlabelled)."""
    rng = np.random.default_rng(0)
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[10:], labels[20:] = 10, 11
    for name in ("x1", "x2", "x10"):
        image = rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
        save(tmp_path / "train" / f"{name}.jpg", image)
        save(tmp_path / "trainannot" / f"{name}.png", labels)
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


# --- files -------------------------------------------------------------------------------------


def test_camvid_reads_its_labels_and_sorts_by_number(camvid: Path) -> None:
    images = CamVid(camvid, "train")
    assert [image.name for image in images] == ["x1", "x2", "x10"]
    labels, anomaly = images[0].labels, images[0].anomaly
    assert (labels[:10] == 0).all()
    assert (labels[10:20] == 10).all()
    assert (labels[20:] == VOID).all()
    assert (anomaly[:20] == NORMAL).all()
    assert (anomaly[20:] == VOID).all()


def test_iterating_an_image_set_ends(camvid: Path) -> None:
    with pytest.raises(IndexError):
        CamVid(camvid, "train")[3]


@pytest.mark.parametrize("root", [None, "", "/no/such/place"])
def test_a_missing_folder_says_where_it_is_set(root: str | None) -> None:
    with pytest.raises(DataError, match=r"data=camvid.*paths\.camvid=.*EOMT_CAMVID"):
        CamVid(root, "train")
    with pytest.raises(DataError, match=r"paths\.road_anomaly=.*EOMT_ROAD_ANOMALY"):
        AnomalyFolder(root, "road_anomaly")
    with pytest.raises(DataError, match=r"paths\.outlier_objects=.*EOMT_OUTLIER_OBJECTS"):
        OutlierFolder(root)


def test_a_missing_split_is_named(camvid: Path) -> None:
    with pytest.raises(DataError, match="valannot"):
        CamVid(camvid, "val")
    with pytest.raises(ValueError, match="train, val, test"):
        CamVid(camvid, "all")  # type: ignore[arg-type]


def test_an_image_without_label_is_named_at_construction(camvid: Path) -> None:
    (camvid / "trainannot" / "x2.png").unlink()
    with pytest.raises(DataError, match=r"x2\.jpg has no label map.*data\.on_broken=skip"):
        CamVid(camvid, "train")


def test_a_label_of_another_size_is_named(camvid: Path) -> None:
    save(camvid / "trainannot" / "x2.png", np.zeros((5, 7), dtype=np.uint8))
    with pytest.raises(DataError, match=r"x2\.png is 7x5 .*x2\.jpg is 64x48"):
        CamVid(camvid, "train")[1]


def test_label_values_without_meaning_are_listed(camvid: Path) -> None:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[0, 0], labels[0, 1] = 12, 200
    save(camvid / "trainannot" / "x1.png", labels)
    with pytest.raises(DataError, match=r"x1\.png holds label values 12, 200; only 0, 1,"):
        CamVid(camvid, "train")[0]


def test_coloured_labels_are_refused_and_palette_labels_read_as_indices(camvid: Path) -> None:
    path = camvid / "trainannot" / "x1.png"
    palette = Image.open(path)
    palette.putpalette([200, 100, 50] * 256)
    palette.save(path)
    assert palette.mode == "P"
    assert set(np.unique(CamVid(camvid, "train")[0].labels)) == {0, 10, VOID}
    save(path, np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="3 channels"):
        CamVid(camvid, "train")[0]


def test_a_truncated_image_is_named_on_access(camvid: Path) -> None:
    truncate(camvid / "train" / "x2.jpg")
    images = CamVid(camvid, "train")
    assert images[0].name == "x1"
    with pytest.raises(DataError, match=r"x2\.jpg cannot be read.*data\.on_broken=skip"):
        images[1]


def test_a_jpeg_that_ends_in_zeros_is_broken_too(camvid: Path) -> None:
    path = camvid / "train" / "x1.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    with pytest.raises(DataError, match=r"x1\.jpg cannot be read"):
        CamVid(camvid, "train")[0]


def test_skip_leaves_broken_files_out_and_says_so_once(
    camvid: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truncate(camvid / "train" / "x1.jpg")
    (camvid / "trainannot" / "x10.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        images = CamVid(camvid, "train", on_broken="skip")
    assert images.skipped == ["x1.jpg", "x10.jpg"]
    assert list(images.reasons) == ["x1", "x10"]
    assert "x10.png cannot be read" in images.reasons["x10"]
    assert [image.name for image in images] == ["x2"]
    assert len(caplog.records) == 1
    assert "2 of 3" in caplog.text
    assert "x10.jpg" in caplog.text


def test_skip_does_not_hide_a_folder_that_is_broken_altogether(camvid: Path) -> None:
    for path in (camvid / "train").iterdir():
        truncate(path)
    with pytest.raises(DataError, match="None of the 3 images"):
        CamVid(camvid, "train", on_broken="skip")


def test_a_label_map_without_its_image_is_named_or_left_out(
    camvid: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (camvid / "trainannot" / "x1_color.png").write_bytes(b"for the eye")
    assert len(CamVid(camvid, "train")) == 3
    for name in ("x1", "x10"):
        (camvid / "train" / f"{name}.jpg").unlink()
    missing = r"x10?\.png has no image: .*train/x10?\.jpg is missing \(and 1 more\).*on_broken=skip"
    with pytest.raises(DataError, match=missing):
        CamVid(camvid, "train")
    with caplog.at_level(logging.WARNING):
        images = CamVid(camvid, "train", on_broken="skip")
    assert sorted(images.skipped) == ["x1.jpg", "x10.jpg"]
    assert "2 of 3" in caplog.text
    assert [image.name for image in images] == ["x2"]


def test_two_images_of_one_label_are_refused(tmp_path: Path) -> None:
    for suffix in ("jpg", "png"):
        save(tmp_path / "images" / f"a.{suffix}", np.zeros((4, 4, 3), dtype=np.uint8))
    save(tmp_path / "labels_masks" / "a.png", np.zeros((4, 4), dtype=np.uint8))
    with pytest.raises(DataError, match=r"both .*a\.jpg and .*a\.png"):
        AnomalyFolder(tmp_path, "road_anomaly")


def benchmark(folder: Path, labels: np.ndarray) -> Path:
    save(folder / "images" / "1.webp", np.zeros((*labels.shape, 3), dtype=np.uint8))
    save(folder / "labels_masks" / "1.png", labels)
    return folder


def test_benchmark_values_are_mapped_and_images_without_anomaly_stay(tmp_path: Path) -> None:
    root = benchmark(tmp_path, np.array([[0, 1, 255]], dtype=np.uint8))
    save(root / "images" / "2.jpg", np.zeros((1, 3, 3), dtype=np.uint8))
    save(root / "labels_masks" / "2.png", np.zeros((1, 3), dtype=np.uint8))
    options = {"anomaly_values": [1], "normal_values": [0], "void_values": [255]}
    images = AnomalyFolder(root, "smiyc", **options)
    assert len(images) == 2
    assert images[0].anomaly.tolist() == [[NORMAL, ANOMALY, VOID]]
    assert (images[0].labels == VOID).all()


def test_unknown_benchmark_values_name_file_and_option(tmp_path: Path) -> None:
    root = benchmark(tmp_path, np.array([[0, 1, 2]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"1\.png .*values 1;.*benchmark\.ra\.anomaly_values"):
        AnomalyFolder(root, "ra")[0]
    with pytest.raises(ValueError, match="holds 0, which has a meaning already"):
        AnomalyFolder(root, "ra", anomaly_values=[0], normal_values=[0])


def test_outliers_are_cropped_to_their_alpha(tmp_path: Path) -> None:
    rgba = np.zeros((9, 9, 4), dtype=np.uint8)
    rgba[2:5, 3:7] = 90
    save(tmp_path / "rgba" / "a.png", rgba)
    assert OutlierFolder(tmp_path)[0].shape == (3, 4, 4)
    assert OutlierFolder(tmp_path / "rgba")[0].min() == 90


def test_bad_outlier_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No PNG files"):
        OutlierFolder(tmp_path)
    save(tmp_path / "clear.png", np.zeros((3, 3, 4), dtype=np.uint8))
    with pytest.raises(DataError, match=r"clear\.png is transparent"):
        OutlierFolder(tmp_path)[0]
    save(tmp_path / "flat.png", np.zeros((3, 3, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"flat\.png is RGB, not RGBA"):
        OutlierFolder(tmp_path)


# --- folders and archives ----------------------------------------------------------------------


def archive(path: Path, *names: str, content: bytes = bytes(range(256)) * 40) -> Path:
    """Packed as its members are, which does not shrink noise to nothing."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in names:
            out.writestr(name, content)
    return path


def test_a_damaged_member_of_an_archive_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", "x/1.png")
    data = path.read_bytes()
    start = 30 + len("x/1.png")  # behind the header of the first member
    path.write_bytes(data[:start] + b"\xff" + data[start + 1 :])
    with pytest.raises(DataError, match=r"a\.zip!x/1\.png cannot be read.*invalid block"):
        FileTree(path).read("x/1.png")


def test_an_archive_that_loses_its_end_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", "1.png")
    tree = FileTree(path)
    assert tree.files() == ["1.png"]
    os.truncate(path, 60)
    with pytest.raises(DataError, match=r"a\.zip!1\.png cannot be read"):
        tree.read("1.png")


def test_archives_made_on_windows_have_folders_too(tmp_path: Path) -> None:
    tree = FileTree(archive(tmp_path / "a.zip", "images\\1.png", "./labels/1.png", content=b"x"))
    assert tree.files() == ["images/1.png", "labels/1.png"]
    assert tree.files("images") == ["images/1.png"]
    assert tree.has("images")
    assert [tree.read(name) for name in tree.files()] == [b"x", b"x"]


def test_folders_of_an_archive_are_there_where_a_file_is_in_them(tmp_path: Path) -> None:
    tree = FileTree(archive(tmp_path / "a.zip", "a/b/c/1.png", "2.png"))
    assert all(tree.has(name) for name in ("a", "a/b", "a/b/c", "a/b/c/", "a/b/c/1.png", "2.png"))
    assert not any(tree.has(name) for name in ("b", "a/b/c/1", "a/b/c/2.png", "x"))


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("locked", "lost+found", "open"):
        save(tmp_path / folder / "1.png", np.zeros((2, 2), np.uint8))
    scandir = os.scandir

    def refuse(path: str = ".") -> Any:
        if os.path.basename(path) in refused:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = {"locked"}
    with pytest.raises(DataError, match=r"locked cannot be read.*Permission denied"):
        FileTree(tmp_path).files()
    refused = {"lost+found"}  # every disk has one, which only root may read
    assert FileTree(tmp_path).files() == ["locked/1.png", "open/1.png"]


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    for folder in ("a/x", "b"):
        save(tmp_path / folder / "1.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "a" / "x" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "x" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    names = FileTree(tmp_path).files()
    assert names == ["a/x/1.png", "a/x/other/1.png", "b/1.png", "c/1.png"]


def test_folders_are_not_searched_without_end(tmp_path: Path) -> None:
    for depth in (8, 14):
        save(tmp_path / "/".join("d" * depth) / "1.png", np.zeros((2, 2), np.uint8))
    assert FileTree(tmp_path).files() == ["d/d/d/d/d/d/d/d/1.png"]


# --- outlier exposure --------------------------------------------------------------------------


def test_truth_marks_exactly_the_pasted_pixels() -> None:
    scene = Scenes()[0]
    image = pasted(scene=scene, target="outlier_class")
    is_red = (image.image[..., 0] == 255) & (image.image[..., 1] == 0)
    assert is_red.any()
    assert np.array_equal(image.anomaly == ANOMALY, is_red)
    assert np.array_equal(image.labels == K, is_red)
    assert np.array_equal(image.image[~is_red], scene.image[~is_red])
    assert np.array_equal(image.labels[~is_red], scene.labels[~is_red])


def test_the_image_handed_in_is_not_written_to() -> None:
    scene = Scenes()[0]
    for array in scene[:3]:
        array.setflags(write=False)
    assert (pasted(scene=scene).anomaly == ANOMALY).any()
    assert not (scene.anomaly == ANOMALY).any()


@pytest.mark.parametrize("target", ["ignore", "outlier_class", "no_object"])
def test_target_policies_reach_the_losses(target: str) -> None:
    exposure = CutPaste(Blocks((20, 20)), **PLAIN, target=target)  # type: ignore[arg-type]
    framing = Augmentation([HEIGHT, WIDTH], scale=(1, 1), flip=0)
    truth = TrainingSet(Scenes(), framing, exposure, K, seed=0)[0].target
    is_outlier = truth.anomaly == ANOMALY
    assert is_outlier.any()
    assert exposure.ignores_outliers == (target == "ignore")
    assert exposure.adds_class == (target == "outlier_class")
    assert torch.equal(truth.ignore, is_outlier & (target == "ignore"))
    assert (K in truth.labels.tolist()) == (target == "outlier_class")
    for mask, label in zip(truth.masks, truth.labels, strict=True):
        assert torch.equal(mask & is_outlier, is_outlier & (label == K))
    assert truth.masks.any(0)[~is_outlier][truth.anomaly[~is_outlier] == NORMAL].all()


def longer_sides(count: int = 60, **options: Any) -> np.ndarray:
    sides = []
    for seed in range(count):
        rows, columns = np.nonzero(pasted(seed, **options).anomaly == ANOMALY)
        sides.append(max(np.ptp(rows), np.ptp(columns)) + 1)
    return np.array(sides) / HEIGHT


def test_scales_fill_the_range_and_stay_in_it() -> None:
    sides = longer_sides(min_scale=0.25, max_scale=0.75, pool=Blocks((30, 11), (9, 21)))
    assert sides.min() >= 0.25 - 0.5 / HEIGHT
    assert sides.max() <= 0.75 + 0.5 / HEIGHT
    assert sides.min() < 0.35
    assert sides.max() > 0.6
    assert np.allclose(longer_sides(5, min_scale=0.5, max_scale=0.5), 0.5)


def test_objects_on_the_road_have_their_foot_on_it() -> None:
    for seed in range(40):
        scene = Scenes()[0]
        scene.labels[:, :20] = SKY  # road is the lower right only
        image = pasted(seed, scene, placement="road", road_classes=[ROAD], min_support=1.0)
        rows, columns = np.nonzero(image.anomaly == ANOMALY)
        foot = scene.labels[rows.max(), columns[rows == rows.max()]]
        assert foot.size
        assert (foot == ROAD).all()


def test_objects_anywhere_leave_the_road_too() -> None:
    feet = [np.nonzero(pasted(seed).anomaly == ANOMALY)[0].max() for seed in range(40)]
    assert min(feet) < HEIGHT // 2 < max(feet)


def test_without_road_nothing_is_set_on_it() -> None:
    scene = Scenes()[0]
    scene.labels[:] = SKY
    assert not (pasted(scene=scene, placement="road").anomaly == ANOMALY).any()


def test_perspective_makes_lower_objects_larger() -> None:
    options = {"placement": "road", "perspective": True, "min_support": 0.0}
    scales = {"min_scale": 0.05, "max_scale": 0.5}
    feet, sizes = [], []
    for seed in range(80):
        image = pasted(seed, pool=Blocks((20, 10)), **options, **scales)
        rows = np.nonzero(image.anomaly == ANOMALY)[0]
        feet.append(rows.max())
        sizes.append(np.ptp(rows) + 1)
    near = np.array(feet) >= HEIGHT * 0.85
    far = np.array(feet) <= HEIGHT * 0.6
    assert np.mean(np.array(sizes)[near]) > 2 * np.mean(np.array(sizes)[far])
    assert max(np.array(sizes)[far]) <= 0.5 * 0.21 * HEIGHT + 1  # a fifth of the way to the eye


def test_feather_keeps_the_core_solid_and_the_mask_unchanged() -> None:
    for shape in ((20, 20), (20, 3), (20, 1)):
        mask = np.zeros((30, 30), dtype=bool)
        mask[5 : 5 + shape[0], 5 : 5 + shape[1]] = True
        for feather in (0.0, 1.5, 4.0):
            alpha = soft_alpha(mask, feather)
            assert np.array_equal(alpha > 0.5, mask)
            assert alpha.max() == 1.0
    mask = np.zeros((30, 30), dtype=bool)
    mask[5:25, 5:25] = True
    alpha = soft_alpha(mask, 3.0)
    assert (alpha[8:22, 8:22] == 1).all()
    assert 0.5 < alpha[5, 15] < alpha[6, 15] < 1
    assert 0.5 > alpha[4, 15] > alpha[3, 15] > 0
    assert alpha[1, 15] == 0


def test_a_soft_edge_lies_between_object_and_scene() -> None:
    hard = pasted(3, min_scale=0.5, max_scale=0.5)
    soft = pasted(3, min_scale=0.5, max_scale=0.5, feather=1.5)
    assert np.array_equal(hard.anomaly, soft.anomaly)
    red, scene = soft.image[..., 0], Scenes()[0].image[..., 0]
    inside, outside = soft.anomaly == ANOMALY, soft.anomaly != ANOMALY
    assert ((red[inside] < 255) & (red[inside] > 127)).any()
    assert (red[inside] == 255).any()
    assert ((red > scene) & (red < 128))[outside].any()


def test_colour_match_moves_the_mean_to_the_background() -> None:
    colours = np.full((8, 8, 3), (200, 60, 60), dtype=np.float32)
    behind = np.full((8, 8, 3), (90, 90, 100), dtype=np.float32)
    mask = np.ones((8, 8), dtype=bool)
    gaps = [
        np.abs(colour_matched(colours, mask, behind, strength) - behind).max()
        for strength in (0.0, 0.5, 1.0)
    ]
    assert gaps[0] == 110
    assert 20 < gaps[1] < 90
    assert gaps[2] < 2


class Halves(Blocks):
    """White objects whose left half is blue."""

    def __getitem__(self, index: int) -> np.ndarray:
        rgba = np.full((*self.shapes[index], 4), 255, dtype=np.uint8)
        rgba[:, : rgba.shape[1] // 2, :2] = 0
        return rgba


def test_half_of_the_objects_are_mirrored() -> None:
    def is_blue_on_the_left(seed: int, flip: bool) -> bool:
        image = pasted(seed, pool=Halves((16, 16)), flip=flip)
        red = np.where(image.anomaly == ANOMALY, image.image[..., 0].astype(int), -1)
        columns = np.nonzero((red >= 0).any(axis=0))[0]
        return bool(red[:, columns[0]].max() < red[:, columns[-1]].max())

    assert all(is_blue_on_the_left(seed, flip=False) for seed in range(20))
    assert 0.3 < np.mean([is_blue_on_the_left(seed, flip=True) for seed in range(60)]) < 0.7


def test_lightened_colours_do_not_wrap_around() -> None:
    levels = set()
    for seed in range(20):
        image = pasted(seed, pool=Halves((16, 16)), brightness=0.3)
        levels |= set(image.image[image.anomaly == ANOMALY][:, 2].tolist())
    assert min(levels) >= 255 * 0.7 - 1
    assert len(levels) > 5


def test_paste_probability_is_kept() -> None:
    hits = [(pasted(s, paste_probability=0.3).anomaly == ANOMALY).any() for s in range(300)]
    assert 0.22 < np.mean(hits) < 0.38


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_scale": 0.6, "max_scale": 0.5}, "min_scale=0.6, max_scale=0.5"),
        ({"min_objects": 3, "max_objects": 2}, "min_objects=3, max_objects=2"),
        ({"paste_probability": 1.2}, "paste_probability must lie between 0 and 1, got 1.2"),
        ({"placement": "sky"}, "placement must be one of anywhere, road, got 'sky'"),
        ({"target": "void"}, "target must be one of ignore, outlier_class, no_object"),
        ({"placement": "road", "road_classes": ()}, "road_classes"),
        ({"pool": Blocks()}, "pool has no objects"),
        ({"feather": -1.0}, "feather=-1.0"),
    ],
)
def test_exposure_refuses_what_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pasted(**options)


# --- augmentation ------------------------------------------------------------------------------


def away_from_void(labels: Any) -> np.ndarray:
    void = np.pad(labels == VOID, 1)
    rows, columns = labels.shape
    near = [void[r : r + rows, c : c + columns] for r in range(3) for c in range(3)]
    return ~np.any(near, axis=0)


@pytest.mark.parametrize(("size", "scale"), [((32, 48), (1, 2)), ((60, 50), (0.5, 0.9))])
def test_labels_move_with_the_image_and_are_never_interpolated(
    size: tuple[int, int], scale: tuple[float, float]
) -> None:
    augmentation = Augmentation(size, scale)
    boundary = []
    for seed in range(12):
        image = augmentation.geometric(Scenes()[0], seed)
        assert image.image.shape == (*size, 3)
        assert image.labels.shape == image.anomaly.shape == size
        assert set(np.unique(image.labels)) <= {ROAD, SKY, VOID}
        assert set(np.unique(image.anomaly)) <= {NORMAL, VOID}
        row = image.image[..., 2].astype(int)  # blue says which source row a pixel shows
        known = away_from_void(image.labels)  # a black rim shines into its neighbours
        assert (row[known & (image.labels == ROAD)] >= HEIGHT // 2 - 1).all()
        assert (row[known & (image.labels == SKY)] <= HEIGHT // 2 + 1).all()
        boundary.append((image.labels[:, size[1] // 2] == SKY).sum())
    assert len(set(boundary)) > 3


def test_scale_is_relative_to_what_just_covers() -> None:
    image = Augmentation((24, 48), scale=(1, 1), flip=0).geometric(Scenes()[0], 0).image
    assert image[..., 1].min() <= 1
    assert image[..., 1].max() >= WIDTH - 2
    twice = Augmentation((24, 48), scale=(2, 2), flip=0).geometric(Scenes()[0], 0).image
    assert np.ptp(twice[..., 1].astype(int)) == pytest.approx(WIDTH / 2, abs=2)


def test_below_scale_one_the_rim_is_void_in_every_map() -> None:
    scene = Scenes()[0]
    augmentation = Augmentation((HEIGHT, WIDTH), scale=(0.5, 0.5), random_crop=False)
    image = augmentation.geometric(scene, 0)
    rim = np.ones((HEIGHT, WIDTH), dtype=bool)
    rim[HEIGHT // 4 : -HEIGHT // 4, WIDTH // 4 : -WIDTH // 4] = False
    assert (image.labels[rim] == VOID).all()
    assert (image.anomaly[rim] == VOID).all()
    assert (image.image[rim] == 0).all()
    assert (image.labels[~rim] != VOID).mean() > 0.9


def test_photometric_changes_colour_and_nothing_else() -> None:
    scene = Scenes()[3]
    image = Augmentation((HEIGHT, WIDTH)).photometric(scene, 5)
    assert not np.array_equal(image.image, scene.image)
    assert image.labels is scene.labels
    assert image.anomaly is scene.anomaly


def test_random_choices_do_not_go_hand_in_hand() -> None:
    augmentation = Augmentation((24, 32), scale=(1, 2), blur=0.5, noise=0.5)
    flips, widths = [], []
    for seed in range(80):
        columns = augmentation.geometric(Scenes()[0], seed).image[0, :, 1].astype(int)
        flips.append(columns[0] > columns[-1])
        widths.append(abs(columns[0] - columns[-1]))
    correlation = np.corrcoef(flips, widths)[0, 1]
    assert 0.3 < np.mean(flips) < 0.7
    assert abs(correlation) < 0.35


def test_augmentation_without_randomness_is_the_identity() -> None:
    off = dict.fromkeys(("flip", "brightness", "contrast", "saturation", "hue", "blur", "noise"), 0)
    augmentation = Augmentation((HEIGHT, WIDTH), (1, 1), random_crop=False, **off)
    scene = Scenes()[2]
    image = augmentation.photometric(augmentation.geometric(scene, 3), 4)
    for after, before in zip(image[:3], scene[:3], strict=True):
        assert np.array_equal(after, before)


# --- training set and loader -------------------------------------------------------------------


def test_samples_are_a_function_of_seed_epoch_and_index() -> None:
    ours, theirs = training_set(), training_set()
    np.random.seed(1)
    torch.manual_seed(1)
    backwards = [fingerprint(theirs[index]) for index in reversed(range(6))][::-1]
    assert [fingerprint(ours[index]) for index in range(6)] == backwards
    theirs.set_epoch(1)
    assert fingerprint(theirs[0]) != backwards[0]
    theirs.set_epoch(0)
    assert fingerprint(theirs[0]) == backwards[0]
    other = TrainingSet(ours.images, ours.augmentation, ours.exposure, K, seed=8)
    assert fingerprint(other[0]) != backwards[0]


def test_exposure_does_not_move_the_frame() -> None:
    images = training_set()
    bare = TrainingSet(images.images, images.augmentation, None, K, seed=7)
    with_outlier, without = images[0].target, bare[0].target
    kept = with_outlier.anomaly != ANOMALY
    assert torch.equal(with_outlier.anomaly[kept], without.anomaly[kept])


def epochs_of(workers: int, cache: bool) -> list[list[tuple[str, str]]]:
    images = training_set(cache=cache)
    loader = training_loader(images, batch_size=2, num_workers=workers, seed=3)
    epochs = []
    for epoch in range(2):
        images.set_epoch(epoch)
        epochs.append(
            [
                fingerprint(Sample(image, target, name))
                for batch in loader
                for image, target, name in zip(*batch, strict=True)
            ]
        )
    return epochs


def test_workers_and_cache_change_nothing() -> None:
    alone = epochs_of(0, cache=False)
    assert set(alone[0]) & set(alone[1]) == set()
    assert [name for name, _ in alone[0]] != [name for name, _ in alone[1]]
    assert epochs_of(0, cache=True) == alone
    assert epochs_of(2, cache=True) == alone


def test_what_a_worker_decodes_is_cached_for_all() -> None:
    images = Scenes()
    cached = training_set(images, cache=True)
    before = images.reads  # one, for the size
    for _ in training_loader(cached, batch_size=3, num_workers=1, seed=0):
        pass
    for index in range(6):
        assert cached.images[index].name == f"scene {index}"
    assert images.reads == before


class MixedSizes(Scenes):
    """The third scene is smaller than the rest."""

    def __getitem__(self, index: int) -> LabelledImage:
        self.height = HEIGHT // 2 if index == 2 else HEIGHT
        return super().__getitem__(index)


def test_the_cache_hands_out_what_it_was_given() -> None:
    plain, cached = MixedSizes(), SharedCache(MixedSizes())
    for _ in range(2):
        for index in range(6):
            theirs, ours = plain[index], cached[index]
            assert ours.name == theirs.name
            for left, right in zip(ours[:3], theirs[:3], strict=True):
                assert np.array_equal(left, right)


def test_the_cache_stays_off_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("eomt_exp.data.shared_cache._MARGIN", 2**60)
    cached = SharedCache(Scenes())
    assert not cached.is_on
    assert "cache is off" in caplog.text
    assert cached[1].name == "scene 1"


class Unlabelled(Scenes):
    """Nothing is known about any pixel."""

    def __getitem__(self, index: int) -> LabelledImage:
        image = super().__getitem__(index)
        image.labels[:], image.anomaly[:] = VOID, VOID
        return image


def test_a_crop_without_known_pixels_is_valid() -> None:
    images = TrainingSet(Unlabelled(), Augmentation([32, 48]), None, K, seed=0)
    truth = images[0].target
    assert truth.masks.shape == (0, 32, 48)
    assert truth.masks.dtype == torch.bool
    assert truth.labels.shape == (0,)
    assert truth.labels.dtype == torch.int64
    batch = collate([images[0], images[1]])
    assert batch.images.shape == (2, 3, 32, 48)
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1


def test_labels_beyond_the_classes_are_refused() -> None:
    images = TrainingSet(Scenes(), Augmentation([32, 48], (1, 1)), None, num_classes=1, seed=0)
    with pytest.raises(ValueError, match="holds class 1, but classes run from 0 to 0"):
        images[0]


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=7 is more than the 6"):
        training_loader(training_set(), batch_size=7, num_workers=0, seed=0)


def test_loaders_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    for _ in training_loader(training_set(), batch_size=2, num_workers=0, seed=0):
        pass
    for _ in image_loader(Scenes(2), num_workers=0):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_start_although_opencv_has_run_threads() -> None:
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), dtype=np.uint8), (9, 9), 2)
    loader = training_loader(training_set(), batch_size=3, num_workers=1, seed=0)
    loader.timeout = 20  # a worker that waits for the parent's threads waits for ever
    assert len(list(loader)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_image_loader_keeps_order_and_arrays(workers: int) -> None:
    images = list(image_loader(Scenes(5), workers))
    assert [image.name for image in images] == [f"scene {index}" for index in range(5)]
    assert isinstance(images[0], LabelledImage)
    assert isinstance(images[0].image, np.ndarray)
    assert np.array_equal(images[4].image, Scenes()[4].image)


# --- the real thing ----------------------------------------------------------------------------


def test_the_shared_data_can_be_read() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no data in {SHARED}")
    sizes = {split: len(CamVid(SHARED / "camvid", split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 367, "val": 101, "test": 62}
    road = AnomalyFolder(SHARED / "roadanomaly_cc" / "RoadAnomaly", "road_anomaly")
    assert len(road) == 36
    assert [road[index].name for index in (0, 1, 2)] == ["0", "1", "2"]
    assert (road[0].anomaly == ANOMALY).any()
    assert len(OutlierFolder(SHARED / "outlier_objects")) == 165
    scene = CamVid(SHARED / "camvid", "train")[0]
    assert (scene.labels[-60:, 200:280] == 3).mean() > 0.5  # the car stands on road
    assert (scene.labels[:40] == 3).mean() == 0
