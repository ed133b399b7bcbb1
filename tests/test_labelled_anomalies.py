"""Images with labelled anomalies teach heads and losses, with known classes or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from command_line import SMALL, metrics_of, only_run, run
from data_files import composed, save
from hydra import compose
from PIL import Image

from eomt_exp import runs
from eomt_exp.build import build
from eomt_exp.contracts import (
    ANOMALY,
    NO_OBJECT,
    NORMAL,
    VOID,
    Exposure,
    ImageSet,
    LabelledImage,
    OutlierPool,
    OutlierTarget,
    Target,
)
from eomt_exp.data.anomaly_folder import AnomalyFolder
from eomt_exp.data.augmentation import Augmentation
from eomt_exp.data.files.layouts import Layout
from eomt_exp.data.loader import collate
from eomt_exp.data.outlier_exposure import CutPaste
from eomt_exp.data.pasted_objects import PastedObjects
from eomt_exp.data.training_set import TrainingSet
from eomt_exp.losses.anomaly_head import AnomalyHeadLoss
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.tasks.start import semantic_config

SKY, ROAD, CAR, K = 0, 3, 8, 11  # of CamVid
HEIGHT, WIDTH = 32, 64
SIZE = f"known.image_size=[{HEIGHT},{WIDTH}]"
TINY = tuple(word for word in SMALL if "data.image_size" not in word and word != "debug=fast")
POLICIES: list[OutlierTarget] = ["ignore", "outlier_class", "no_object"]


def scene(seed: int, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Blue sky, grey road, and a disc of this colour on it: (H, W, 3) and labels (H, W)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels = np.full((HEIGHT, WIDTH), ROAD, np.uint8)
    labels[: HEIGHT // 3] = SKY
    radius = rng.integers(7, 10)
    row = rng.integers(HEIGHT // 3 + 3, HEIGHT - radius)
    column = rng.integers(radius, WIDTH - radius)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    labels[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = CAR
    for label, shade in ((SKY, (60, 120, 200)), (ROAD, (80, 80, 80)), (CAR, colour)):
        image[labels == label] += np.array(shade, np.uint8)
    return image, labels


def labelled(root: Path, count: int, first: int = 0) -> Path:
    """A folder of scenes with a purple disc, which is the anomaly; the first row is void."""
    for index in range(count):
        image, labels = scene(first + index, (200, 20, 200))
        truth = (labels == CAR).astype(np.uint8)
        truth[0] = VOID
        save(root / "images" / f"{index}.png", image)
        save(root / "labels_masks" / f"{index}.png", truth)
    return root


def known(root: Path, count: int) -> Path:
    """CamVid of scenes with a red disc, which is a car."""
    for index in range(count):
        for part, first in (("train", 1000), ("val", 2000)):
            image, labels = scene(first + index, (200, 20, 20))
            save(root / part / f"{index}.png", image)
            save(root / f"{part}annot" / f"{index}.png", labels)
    return root


class Square(OutlierPool):
    """A pool of one white square."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full((9, 9, 4), 255, np.uint8)


def white_squares(target: OutlierTarget) -> CutPaste:
    return CutPaste(
        Square(), num_classes=K, paste_probability=1.0, max_objects=1, min_scale=0.25,
        max_scale=0.3, rotation=0, feather=0, brightness=0, colour_match=0, target=target,
    )  # fmt: skip


class Scenes(ImageSet):
    """Two images with labelled anomalies; of the second the known classes are labelled too."""

    num_classes, class_names, labels_anomalies = K, ("",) * K, True

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> LabelledImage:
        image, labels = scene(index, (200, 20, 200))
        anomaly = (labels == CAR).astype(np.uint8)
        anomaly[0] = VOID
        labels = np.where((anomaly == NORMAL) & (index == 1), labels, VOID).astype(np.uint8)
        return LabelledImage(image, labels, anomaly, str(index))


PLAIN = Augmentation(
    [HEIGHT, WIDTH], scale=(1, 1), flip=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0,
    noise=0,
)  # fmt: skip


def test_anomalies_move_with_the_image_and_pasted_ones_stand_beside_them(tmp_path: Path) -> None:
    layouts = {"made": Layout("images/{id}", "labels_masks/{id}.png")}
    root, values = labelled(tmp_path, 4), {"anomaly_values": [1], "void_values": [255]}
    files = AnomalyFolder(root, "made", layouts, **values)
    moving = Augmentation([24, 40], scale=(1, 1.5), brightness=0, contrast=0, saturation=0, hue=0,
                          blur=0, noise=0)  # fmt: skip
    alone, beside = (
        TrainingSet(files, moving, exposure, K, seed=0)
        for exposure in (None, white_squares("ignore"))
    )
    for index in range(4):
        image, target = alone[index][:2]
        purple = image[1] < 0.3  # neither sky, road nor a pasted square is so dark in green
        judged = target.anomaly != VOID
        agrees = (target.anomaly == ANOMALY) == purple
        assert agrees[judged].float().mean() > 0.97  # but for the mixed pixels of the outline
        pasted, with_squares = beside[index][:2]
        white = (pasted > 0.9).all(0)
        assert white.any()
        assert torch.equal(with_squares.anomaly == ANOMALY, (target.anomaly == ANOMALY) | white)


@pytest.mark.parametrize("target", [None, *POLICIES])
def test_the_policy_for_outliers_holds_for_labelled_anomalies_too(target: Any) -> None:
    exposure = None if target is None else white_squares(target)
    unlabelled, classes = (TrainingSet(Scenes(), PLAIN, exposure, K, 0)[i].target for i in (0, 1))
    for truth in (unlabelled, classes):
        outlier = truth.anomaly == ANOMALY
        ignored = truth.ignore & outlier
        assert ignored.sum() == (outlier.sum() if target in (None, "ignore") else 0)
        assert (K in truth.labels) == (target == "outlier_class")
        if target == "outlier_class":
            assert torch.equal(truth.masks[truth.labels == K][0], outlier)
        assert not truth.masks[truth.labels < K].any(0)[outlier].any()
    assert (unlabelled.labels < K).sum() == 0
    assert unlabelled.ignore[unlabelled.anomaly == NORMAL].all()  # no class is known to be wrong
    assert classes.labels[:2].tolist() == [SKY, ROAD]
    assert not classes.ignore[classes.anomaly == NORMAL].any()
    assert not classes.ignore[classes.anomaly == VOID].any()


def only_anomalies() -> list[Target]:
    """Image 0 has an anomaly and no known class; image 1 is labelled normal and nothing else."""
    disc = planted.boxes((5, 2, 8, 4))[0]
    first, second = planted.empty_target(), planted.empty_target()
    everywhere = torch.ones_like(disc)
    first = first._replace(anomaly=disc.to(torch.uint8), ignore=everywhere)
    return [first, second._replace(ignore=everywhere)]


def test_without_known_classes_the_class_head_says_what_is_normal() -> None:
    seen = planted.two_targets(label_outlier=True)
    output = planted.saying(seen, planted.ORDER_WITH_OUTLIER, num_outputs=planted.K + 2)
    output.class_logits[0, 3, planted.K] = 0
    output.class_logits[0, 3, 1] = planted.SURE  # the frozen model takes the anomaly for class 1
    logits = torch.zeros(planted.B, planted.Q, 3, requires_grad=True)
    loss = AnomalyHeadLoss(num_points=planted.POINTS)
    planted.total(loss, output._replace(anomaly_logits=logits), only_anomalies()).backward()
    states = logits.grad.argmin(dim=-1).tolist()
    normal, anomaly, nothing = NORMAL, ANOMALY, NO_OBJECT
    assert states[0] == [normal, nothing, normal, anomaly, normal, nothing]
    assert states[1] == [nothing, normal, nothing, nothing, nothing, normal]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_without_known_classes_say_nothing_about_masks(dtype: torch.dtype) -> None:
    output = planted.random_output(num_aux=1)
    half = output._replace(mask_logits=output.mask_logits.to(dtype))
    terms = MaskClassification(num_points=planted.POINTS)(half, only_anomalies())
    assert terms["mask"] == terms["dice"] == 0
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert output.mask_logits.grad.abs().sum() == 0


class FadedSegments(OutlierPool):
    """Blends the segment of another picture in: a second exposure, made from its protocol alone.

    It is its own pool: a folder of pictures, each with a mask of what is foreign in it.
    """

    def __init__(self, root: str, target: OutlierTarget, strength: float = 0.7) -> None:
        self.files = sorted(Path(root).glob("images/*.png"))
        self.target, self.strength = target, strength

    @property
    def pool(self) -> FadedSegments:
        return self

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        file = self.files[index]
        mask = np.asarray(Image.open(file.parents[1] / "labels_masks" / file.name)) == 1
        return np.dstack([np.asarray(Image.open(file)), 255 * mask.astype(np.uint8)])

    def __call__(self, image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        rgba = self[int(rng.integers(len(self)))]
        inside = rgba[..., 3] > 0
        alpha = self.strength * inside[..., None]
        blended = (1 - alpha) * image.image + alpha * rgba[..., :3]
        return LabelledImage(
            blended.astype(np.uint8), np.where(inside, VOID, image.labels).astype(np.uint8),
            np.where(inside, ANOMALY, image.anomaly).astype(np.uint8), image.name,
        )  # fmt: skip

    def shifted(self, image: LabelledImage, rng: np.random.Generator) -> None:
        """No copies."""


def test_a_second_exposure_is_written_from_the_protocol_alone(tmp_path: Path) -> None:
    exposure: Exposure = FadedSegments(str(labelled(tmp_path, 2)), "outlier_class")
    files = known_images(tmp_path)
    training = TrainingSet(files, PLAIN, exposure, K, seed=0)
    batch = collate([training[index] for index in range(3)])
    for target in batch.targets:
        assert torch.equal(target.masks[target.labels == K][0], target.anomaly == ANOMALY)
    output = planted.random_output(num_aux=1)
    output = output._replace(class_logits=torch.randn(planted.B, planted.Q, K + 2), num_classes=K)
    output = output._replace(aux=())
    terms = MaskClassification(num_points=planted.POINTS)(output, batch.targets[: planted.B])
    assert all(term > 0 for term in terms.values())
    tuning = PastedObjects(files, exposure, length=2)
    assert all((tuning[index].anomaly == ANOMALY).any() for index in range(2))


def known_images(folder: Path) -> Any:
    """The training images of a made CamVid."""
    words = (f"paths.camvid={known(folder / 'camvid', 3)}", "data=camvid")
    return build(composed(*words).data.train, "data.train")


@pytest.mark.usefixtures("hydra_at_conf")
def test_the_semantic_model_under_it_is_that_of_the_known_classes() -> None:
    words = ["+experiment=uncertainty", "data=generic_anomaly", "data@known=camvid"]
    cfg = compose("config", [*words, "hydra.run.dir=unused"])
    semantic = compose("config", ["+experiment=semantic", "data=camvid", "hydra.run.dir=unused"])
    assert cfg.data.num_classes == semantic.data.num_classes
    assert runs.content_key(semantic_config(cfg)) == runs.content_key(semantic)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("loss=[outlier_margin]",), "outlier_margin learns from anomalies, and data=synthetic"),
        (("+experiment=eim_oe", "outlier_exposure=none", "start_from=null"), "=cut_paste"),
        (("data=generic_anomaly",), "got trainable=all. Type trainable=head"),
        (("data=generic_anomaly", "trainable=head", "anomaly_head=entropy"), "[anomaly_head]"),
        (("data=generic_anomaly", "+experiment=query_only", "recipe.batch_size=4",
          "outlier_exposure=none", "start_from=null", "benchmark=road_anomaly",
          "benchmark.road_anomaly.anomaly_values=[1]", "benchmark.road_anomaly.void_values=[255]"),
         "4 images of road_anomaly were seen before: "),
        (("data=generic_anomaly", "+experiment=query_only", "recipe.batch_size=4",
          "outlier_exposure=none", "start_from=null", "data.train.normal_values=[]"),
         "Add them to data.train.anomaly_values,"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, outputs: Path, capfd: Any
) -> None:
    folder = labelled(tmp_path, 4)
    size = SIZE if "data=generic_anomaly" in words else f"data.image_size=[{HEIGHT},{WIDTH}]"
    outcome = run(
        capfd, f"paths.generic_anomaly={folder}", f"paths.road_anomaly={folder}", *TINY, size,
        "benchmark=none", "tracking=none", *words,
    )  # fmt: skip
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.slow
def test_a_head_on_a_frozen_model_finds_what_it_was_shown(
    tmp_path: Path, outputs: Path, capfd: Any
) -> None:
    outcome = run(
        capfd, "+experiment=uncertainty", "data=generic_anomaly", "data@known=camvid", *TINY, SIZE,
        f"paths.camvid={known(tmp_path / 'camvid', 48)}", "recipe.batch_size=8",
        "recipe.backbone_lr_factor=1", "recipe.lr=2e-3", "recipe.semantic_epochs=40",
        f"paths.generic_anomaly={labelled(tmp_path / 'set', 32)}", "outlier_exposure=none",
        "benchmark=road_anomaly", f"paths.road_anomaly={labelled(tmp_path / 'test', 8, 100)}",
        "benchmark.road_anomaly.anomaly_values=[1]", "benchmark.road_anomaly.void_values=[255]",
        "tracking=none",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    metrics = metrics_of(only_run(outputs, "uncertainty"))["metrics"]
    assert metrics["road_anomaly/anomaly_head/auroc"] > 0.95
    assert metrics["road_anomaly/anomaly_head/ap"] > 2 * metrics["road_anomaly/msp/ap"]
