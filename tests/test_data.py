"""What data sets hand out is true to the files, and a function of (seed, epoch, index)."""

import hashlib
import os
import re
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from eomt_exp.contracts import (
    ANOMALY,
    NORMAL,
    VOID,
    DataError,
    ImageSet,
    LabelledImage,
    OutlierPool,
    Sample,
    UserError,
)
from eomt_exp.data.anomaly_folder import AnomalyFolder
from eomt_exp.data.augmentation import Augmentation
from eomt_exp.data.cutouts import colour_matched, soft_alpha
from eomt_exp.data.files.layouts import Layout
from eomt_exp.data.files.tree import FileTree
from eomt_exp.data.loader import check_enough_images, collate, image_loader, training_loader
from eomt_exp.data.outlier_exposure import CutPaste
from eomt_exp.data.outlier_folder import OutlierFolder
from eomt_exp.data.shared_cache import SharedCache
from eomt_exp.data.training_set import TrainingSet
from tests.data_files import SHARED, assert_same_images, known_classes, noise, save

ROAD, SKY, K = 0, 1, 2
HEIGHT, WIDTH = 48, 64


class Scenes(ImageSet):
    """Sky over road; the green channel is the column and blue the row, so positions can be read."""

    num_classes = K
    class_names = ("road", "sky")

    def __init__(self, count: int = 6) -> None:
        self.count, self.reads = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LabelledImage:
        self.reads += 1
        return self._scene(index)

    def _scene(self, index: int) -> LabelledImage:
        rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
        image = np.stack([np.full_like(rows, 40 * index), columns, rows], axis=2)
        labels = np.where(rows >= HEIGHT // 2, ROAD, SKY).astype(np.uint8)
        labels[:2] = VOID
        anomaly = np.where(labels == VOID, VOID, NORMAL).astype(np.uint8)
        return LabelledImage(image, labels, anomaly, f"scene {index}")


class Blocks(OutlierPool):
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
    parts = b"".join(np.asarray(part).tobytes() for part in (sample.image, *target))
    return sample.name, hashlib.sha256(parts).hexdigest()


def test_unknown_benchmark_values_name_file_and_option(tmp_path: Path) -> None:
    save(tmp_path / "images" / "1.webp", noise(1, 1, 3))
    save(tmp_path / "labels_masks" / "1.png", np.array([[0, 1, 2]], dtype=np.uint8))
    layouts = {"x": Layout("images/{id}", "labels_masks/{id}.png")}
    with pytest.raises(DataError, match=r"1\.png .*values 1;.*benchmark\.ra\.anomaly_values"):
        AnomalyFolder(tmp_path, "ra", layouts)[0]
    with pytest.raises(ValueError, match="holds 0, which has a meaning already"):
        AnomalyFolder(tmp_path, "ra", layouts, anomaly_values=[0], normal_values=[0])


def test_outliers_are_cropped_to_their_alpha_and_bad_folders_are_named(tmp_path: Path) -> None:
    for nowhere in (None, "", "/no/such/place"):
        with pytest.raises(DataError, match=r"paths\.outlier_objects=.*EOMT_OUTLIER_OBJECTS"):
            OutlierFolder(nowhere)
    with pytest.raises(DataError, match="No PNG files"):
        OutlierFolder(tmp_path)
    rgba = np.zeros((9, 9, 4), dtype=np.uint8)
    rgba[2:5, 3:7] = 128
    save(tmp_path / "rgba" / "a.png", rgba)
    for root in (tmp_path, tmp_path / "rgba"):
        cutout = OutlierFolder(root)[0]
        assert (cutout.shape, cutout.min()) == ((3, 4, 4), 128)
    for alpha in (0, 1, 127):  # 1: a mask of 0 and 1
        save(tmp_path / "rgba" / "b.png", np.full((3, 3, 4), alpha, np.uint8))
        with pytest.raises(DataError, match=rf"b\.png has no object .* is {alpha} at most"):
            OutlierFolder(tmp_path)[1]
    save(tmp_path / "rgba" / "flat.png", np.zeros((3, 3, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"flat\.png is RGB, not RGBA"):
        OutlierFolder(tmp_path)


def archive(path: Path, *names: str, content: bytes = bytes(range(256)) * 40) -> Path:
    """Packed as its members are, which does not shrink noise to nothing."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in names:
            out.writestr(name, content)
    return path


def test_what_is_damaged_in_an_archive_while_it_is_read_is_named(tmp_path: Path) -> None:
    data = archive(tmp_path / "a.zip", "x/1.png").read_bytes()
    start = 30 + len("x/1.png")  # behind the header of the first member
    damaged = {"invalid block": data[:start] + b"\xff" + data[start + 1 :], "": data[:60]}
    for reason, content in damaged.items():
        tree = FileTree(archive(tmp_path / "a.zip", "x/1.png"))
        assert tree.pictures == ["x/1.png"]
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.zip!x/1\.png cannot be read.*{reason}"):
            tree.read("x/1.png")


def test_names_in_an_archive_are_those_of_a_folder(tmp_path: Path) -> None:
    made_on_windows = "images\\1.png"
    tree = FileTree(archive(tmp_path / "a.zip", made_on_windows, "./labels/1.png", content=b"x"))
    assert tree.pictures == ["images/1.png", "labels/1.png"]
    assert [tree.read(name) for name in tree.pictures] == [b"x", b"x"]
    assert all(tree.has(name) for name in tree.pictures)
    assert not any(tree.has(name) for name in ("images\\1.png", "./labels/1.png", "1.png"))


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
        _ = FileTree(tmp_path).pictures
    refused = {"lost+found"}  # every disk has one, which only root may read
    assert FileTree(tmp_path).pictures == ["locked/1.png", "open/1.png"]


def test_links_that_lead_back_are_followed_once_and_no_folders_without_end(tmp_path: Path) -> None:
    eight, fourteen = ("/".join("d" * depth) for depth in (8, 14))
    for folder in ("a/x", "b", eight, fourteen):
        save(tmp_path / folder / "1.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "a" / "x" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "x" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    found = [name.removesuffix("/1.png") for name in FileTree(tmp_path).pictures]
    assert found == ["a/x", "a/x/other", "b", "c", eight]


def test_truth_marks_exactly_the_pasted_pixels_and_the_scene_is_not_written_to() -> None:
    scene = Scenes()[0]
    for array in scene[:3]:
        array.setflags(write=False)
    image = pasted(scene=scene, target="outlier_class")
    is_red = (image.image[..., 0] == 255) & (image.image[..., 1] == 0)
    assert is_red.any()
    assert np.array_equal(image.anomaly == ANOMALY, is_red)
    assert np.array_equal(image.labels == K, is_red)
    assert np.array_equal(image.image[~is_red], scene.image[~is_red])
    assert np.array_equal(image.labels[~is_red], scene.labels[~is_red])
    assert not (scene.anomaly == ANOMALY).any()


@pytest.mark.parametrize("target", ["ignore", "outlier_class", "no_object"])
def test_target_policies_reach_the_losses(target: str) -> None:
    exposure = CutPaste(Blocks((20, 20)), **PLAIN, target=target)  # type: ignore[arg-type]
    framing = Augmentation([HEIGHT, WIDTH], scale=(1, 1), flip=0)
    truth = TrainingSet(Scenes(), framing, exposure, K, seed=0)[0].target
    is_outlier = truth.anomaly == ANOMALY
    assert is_outlier.any()
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
    assert 0.25 - 0.5 / HEIGHT <= sides.min() < 0.35
    assert 0.6 < sides.max() <= 0.75 + 0.5 / HEIGHT
    assert np.allclose(longer_sides(5, min_scale=0.5, max_scale=0.5), 0.5)


def test_objects_on_the_road_have_their_foot_on_it_and_others_not_always() -> None:
    for seed in range(40):
        scene = Scenes()[0]
        scene.labels[:, :20] = SKY  # road is the lower right only
        image = pasted(seed, scene, placement="road", road_classes=[ROAD], min_support=1.0)
        rows, columns = np.nonzero(image.anomaly == ANOMALY)
        foot = scene.labels[rows.max(), columns[rows == rows.max()]]
        assert foot.size
        assert (foot == ROAD).all()
    scene.labels[:] = SKY
    assert not (pasted(scene=scene, placement="road").anomaly == ANOMALY).any()
    feet = [np.nonzero(pasted(seed).anomaly == ANOMALY)[0].max() for seed in range(40)]
    assert min(feet) < HEIGHT // 2 < max(feet)


def test_mixed_placement_sets_half_of_the_objects_on_the_road() -> None:
    def stands(seed: int, scene: LabelledImage) -> bool:
        image = pasted(seed, scene, placement="mixed", road_classes=[ROAD], min_support=1.0)
        rows, columns = np.nonzero(image.anomaly == ANOMALY)
        return bool((scene.labels[rows.max(), columns[rows == rows.max()]] == ROAD).all())

    scene = Scenes()[0]
    scene.labels[:] = SKY
    assert not any(stands(seed, scene) for seed in range(20)), "no road: anywhere, and all pasted"
    scene.labels[-3:] = ROAD  # objects set down anywhere seldom meet it
    share = np.mean([stands(seed, scene) for seed in range(80)])
    assert 0.35 < share < 0.75


def test_perspective_makes_lower_objects_larger() -> None:
    options = {"placement": "road", "perspective": True, "min_support": 0.0}
    images = [pasted(s, min_scale=0.05, max_scale=0.5, **options) for s in range(80)]
    rows = [np.nonzero(image.anomaly == ANOMALY)[0] for image in images]
    feet, sizes = np.array([(each.max(), np.ptp(each) + 1) for each in rows]).T
    near, far = sizes[feet >= HEIGHT * 0.85], sizes[feet <= HEIGHT * 0.6]
    assert near.mean() > 2 * far.mean()
    assert far.max() <= 0.5 * 0.21 * HEIGHT + 1  # a fifth of the way to the eye


def test_feather_keeps_the_core_solid_and_the_mask_unchanged() -> None:
    for shape in ((20, 1), (20, 3), (20, 20)):
        mask = np.zeros((30, 30), dtype=bool)
        mask[5 : 5 + shape[0], 5 : 5 + shape[1]] = True
        for feather in (0.0, 1.5, 4.0):
            alpha = soft_alpha(mask, feather)
            assert np.array_equal(alpha > 0.5, mask)
            assert alpha.max() == 1.0
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
    matched = [colour_matched(colours, mask, behind, strength) for strength in (0.0, 0.5, 1.0)]
    none, half, full = (np.abs(colour - behind).max() for colour in matched)
    assert none == 110
    assert 20 < half < 90
    assert full < 2


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
    images = [pasted(seed, pool=Halves((16, 16)), brightness=0.3) for seed in range(20)]
    levels = [image.image[image.anomaly == ANOMALY][:, 2] for image in images]
    assert np.concatenate(levels).min() >= 255 * 0.7 - 1
    assert len(np.unique(np.concatenate(levels))) > 5


def test_paste_probability_is_kept() -> None:
    hits = [(pasted(s, paste_probability=0.3).anomaly == ANOMALY).any() for s in range(300)]
    assert 0.22 < np.mean(hits) < 0.38


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_scale": 0.6, "max_scale": 0.5}, "min_scale=0.6, max_scale=0.5"),
        ({"min_objects": 3, "max_objects": 2}, "min_objects=3, max_objects=2"),
        ({"placement": "road", "road_classes": ()}, "road_classes"),
        ({"pool": Blocks()}, "pool has no objects"),
    ],
)
def test_exposure_refuses_what_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pasted(**options)


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


def test_scale_is_relative_to_what_just_covers_and_below_it_the_rim_is_void() -> None:
    image = Augmentation((24, 48), scale=(1, 1), flip=0).geometric(Scenes()[0], 0).image
    assert image[..., 1].min() <= 1
    assert image[..., 1].max() >= WIDTH - 2
    twice = Augmentation((24, 48), scale=(2, 2), flip=0).geometric(Scenes()[0], 0).image
    assert np.ptp(twice[..., 1].astype(int)) == pytest.approx(WIDTH / 2, abs=2)
    augmentation = Augmentation((HEIGHT, WIDTH), scale=(0.5, 0.5), random_crop=False)
    image = augmentation.geometric(Scenes()[0], 0)
    rim = np.ones((HEIGHT, WIDTH), dtype=bool)
    rim[HEIGHT // 4 : -HEIGHT // 4, WIDTH // 4 : -WIDTH // 4] = False
    assert np.isin([image.labels[rim], image.anomaly[rim]], VOID).all()
    assert (image.image[rim] == 0).all()
    assert (image.labels[~rim] != VOID).mean() > 0.9


def test_photometric_changes_colour_alone_and_without_randomness_nothing_changes() -> None:
    scene = Scenes()[3]
    image = Augmentation((HEIGHT, WIDTH)).photometric(scene, 5)
    assert not np.array_equal(image.image, scene.image)
    assert image.labels is scene.labels
    assert image.anomaly is scene.anomaly
    off = dict.fromkeys(("flip", "brightness", "contrast", "saturation", "hue", "blur", "noise"), 0)
    augmentation = Augmentation((HEIGHT, WIDTH), (1, 1), random_crop=False, **off)
    image = augmentation.photometric(augmentation.geometric(scene, 3), 4)
    for after, before in zip(image[:3], scene[:3], strict=True):
        assert np.array_equal(after, before)


def test_random_choices_do_not_go_hand_in_hand() -> None:
    augmentation = Augmentation((24, 32), scale=(1, 2), blur=0.5, noise=0.5)
    rows = [augmentation.geometric(Scenes()[0], seed).image[0, :, 1] for seed in range(80)]
    spans = np.array([int(row[0]) - int(row[-1]) for row in rows])
    assert 0.3 < np.mean(spans > 0) < 0.7
    assert abs(np.corrcoef(spans > 0, np.abs(spans))[0, 1]) < 0.35


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


def test_what_was_pasted_is_said_with_the_box_of_its_pixels() -> None:
    images = training_set(paste_probability=0.7, min_objects=1, max_objects=1)
    found = []
    for index in range(6):
        sample = images[index]
        rows, columns = np.nonzero((sample.target.anomaly == ANOMALY).numpy())
        found += sample.pasted
        if not sample.pasted:
            assert not rows.size
            continue
        (one,) = sample.pasted
        assert (one.top, one.left) == (rows.min(), columns.min())
        assert (one.height, one.width) == (np.ptp(rows) + 1, np.ptp(columns) + 1)
        assert one.pixels == rows.size
    assert 0 < len(found) < 6
    assert {one.number for one in found} == {0, 1}  # both objects of the pool
    assert pasted(pool=Blocks((4, 4)), paste_probability=0).pasted == ()


@pytest.mark.parametrize("kind", ["photometric", "weather"])
def test_a_shifted_copy_is_the_scene_without_objects_in_other_colours(kind: str) -> None:
    plain = training_set()
    images = training_set(shifted_copy=kind)
    bare = TrainingSet(images.images, images.augmentation, None, K, seed=7)
    for index in range(6):
        sample, copy, scene = images[index], images[index].copy, bare[index]
        assert fingerprint(sample) == fingerprint(plain[index])  # the copy moves no draw
        assert plain[index].copy is None
        assert fingerprint(copy._replace(image=scene.image)) == fingerprint(scene)
        assert not torch.equal(copy.image, scene.image)
        assert not (copy.target.anomaly == ANOMALY).any()


def test_a_copy_knows_its_image_in_the_batch() -> None:
    images = training_set(shifted_copy="photometric", copy_probability=0.5)
    samples = [images[index] for index in range(6)]
    batch = collate(samples)
    with_copy = [index for index, sample in enumerate(samples) if sample.copy]
    assert 0 < len(with_copy) < 6
    assert [target.copy_of for target in batch.targets] == [-1] * 6 + with_copy
    for place, index in enumerate(with_copy, start=6):
        assert torch.equal(batch.images[place], samples[index].copy.image)
        assert batch.names[place] == batch.names[index]


def epochs_of(workers: int, cache: bool) -> list[list[tuple[str, str]]]:
    images = training_set(cache=cache, shifted_copy="weather", copy_probability=0.5)
    loader = training_loader(images, batch_size=2, num_workers=workers, seed=3)
    epochs = []
    for epoch in range(2):
        images.set_epoch(epoch)
        samples = [Sample(*parts) for batch in loader for parts in zip(*batch, strict=True)]
        epochs.append([fingerprint(sample) for sample in samples])
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
    before = images.reads  # one, for the size, and it is kept
    list(training_loader(cached, batch_size=3, num_workers=1, seed=0))
    for index in range(6):
        assert cached.images[index].name == f"scene {index}"
    assert images.reads == before


def test_images_are_decoded_once_into_the_cache() -> None:
    images = Scenes()
    assert_same_images(
        image_loader(SharedCache(images), num_workers=0), map(images._scene, range(6))
    )
    assert images.reads == 6


class MixedSizes(Scenes):
    """The third scene is smaller than the rest."""

    def __getitem__(self, index: int) -> LabelledImage:
        *arrays, name = super().__getitem__(index)[:4]
        return LabelledImage(*(a[index == 2 and 20 :] for a in arrays), name)


def test_the_cache_stays_off_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("eomt_exp.data.shared_cache._MARGIN", 2**60)
    cached = SharedCache(Scenes())
    assert not cached.is_on
    assert "cache is off" in caplog.text
    assert cached[1].name == "scene 1"


def test_a_crop_without_known_pixels_is_valid() -> None:
    scene = Scenes()[1]
    scene.labels[:], scene.anomaly[:] = VOID, VOID
    sample = TrainingSet([scene], Augmentation([32, 48]), None, K, seed=0)[0]
    masks, labels = sample.target.masks, sample.target.labels
    assert (masks.shape, masks.dtype) == ((0, 32, 48), torch.bool)
    assert (labels.shape, labels.dtype) == ((0,), torch.int64)
    images = collate([sample, sample]).images
    assert images.shape == (2, 3, 32, 48)
    assert 0 <= images.min() < images.max() <= 1


def test_labels_beyond_the_classes_and_too_few_images_for_a_batch_are_refused() -> None:
    images = TrainingSet(Scenes(), Augmentation([32, 48], (1, 1)), None, num_classes=1, seed=0)
    with pytest.raises(ValueError, match="holds class 1, but classes run from 0 to 0"):
        images[0]
    check_enough_images(6, batch_size=3, accumulate=1, processes=2)
    with pytest.raises(ValueError, match=r"=3 x .*accumulate=1 .* are 2, .* the 5 .*batch_size=2"):
        check_enough_images(5, batch_size=3, accumulate=1, processes=2)


@pytest.mark.parametrize(
    ("options", "epochs", "message"),
    [
        ({"paste_probability": 0.3}, 9, ""),
        ({"paste_probability": 0.0}, 2, "pastes nothing into the first 1,000"),
        ({"placement": "road", "road_classes": [9]}, 2, "pastes nothing"),  # none is there
        ({"paste_probability": 0.0, "shifted_copy": "photometric"}, 2, ""),
    ],
)
def test_an_exposure_that_pastes_nothing_in_a_training_is_refused(
    options: dict[str, Any], epochs: int, message: str
) -> None:
    images = training_set(**options)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        images.check(epochs)
    assert images.epoch == 0


def test_a_training_set_without_a_normal_pixel_is_refused() -> None:
    class Void(Scenes):
        def __getitem__(self, index: int) -> LabelledImage:
            scene = super().__getitem__(index)
            void = np.full_like(scene.labels, VOID)
            return scene._replace(labels=void, anomaly=void)

    for exposure in (None, CutPaste(Blocks((9, 5)), num_classes=K, paste_probability=1)):
        images = TrainingSet(Void(), Augmentation([32, 48]), exposure, K, seed=0)
        with pytest.raises(UserError, match="nothing to learn"):
            images.check(1)


def test_loaders_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    list(training_loader(training_set(), batch_size=2, num_workers=0, seed=0))
    assert_same_images(image_loader(Scenes(2), num_workers=0), (Scenes()[i] for i in range(2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_start_although_opencv_has_run_threads() -> None:
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), dtype=np.uint8), (9, 9), 2)
    loader = training_loader(training_set(), batch_size=3, num_workers=1, seed=0)
    loader.timeout = 20  # a worker that waits for the parent's threads waits for ever
    assert len(list(loader)) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no data in {SHARED}")
def test_the_shared_data_can_be_read() -> None:
    sizes = {
        split: len(known_classes("camvid", SHARED / "camvid", split))
        for split in ("train", "val", "test")
    }
    assert sizes == {"train": 367, "val": 101, "test": 62}
    assert len(OutlierFolder(SHARED / "outlier_objects")) == 165
    scene = known_classes("camvid", SHARED / "camvid")[0]
    assert (scene.labels[-60:, 200:280] == 3).mean() > 0.5  # the car stands on road
    assert (scene.labels[:40] == 3).mean() == 0
