"""task=preview: the samples of a training, drawn, and what was pasted into them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eomt_exp.contracts import ANOMALY, VOID, Sample, Target
from eomt_exp.data.augmentation import Augmentation
from eomt_exp.data.outlier_exposure import CutPaste
from eomt_exp.data.synthetic_objects import SyntheticOutliers
from eomt_exp.data.synthetic_roads import SyntheticRoads
from eomt_exp.data.training_set import TrainingSet
from eomt_exp.report.figures import ANOMALY_COLOUR
from eomt_exp.report.sample_gallery import panels_of
from tests.command_line import run

FEW = ("task=preview", "data.image_size=[32,64]", "data.train.length=9", "data.outliers.length=5")


def test_the_manifest_is_that_of_the_samples_of_a_training(
    outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("+experiment=eim_oe", "task.images=4", "task.epoch=2", "seed=3")
    outcome = run(capfd, *FEW, *words, "outlier_exposure.shifted_copy=photometric")
    assert outcome.code == 0, outcome.err
    (folder,) = (outputs / "preview").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.csv", "preview.png"]
    assert str(folder / "preview.png") in outcome.out
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    paste = CutPaste(
        SyntheticOutliers(5, assemblies=0.6),
        num_classes=9,
        paste_probability=1.0,
        max_objects=5,
        min_scale=0.06,
        max_scale=0.8,
        placement="mixed",
    )
    scenes = SyntheticRoads("train", 9, 32, 64)
    training = TrainingSet(scenes, Augmentation([32, 64], (1.0, 1.4)), paste, 9, seed=3)
    training.set_epoch(2)
    found = 0
    for index in (0, 2, 4, 6):
        ys, xs = np.nonzero((training[index].target.anomaly == ANOMALY).numpy())
        boxes = np.array(
            [
                [int(row[key]) for key in ("top", "left", "height", "width")]
                for row in rows
                if row["sample"] == str(index)
            ]
        ).reshape(-1, 4)
        assert len(boxes) == len(training[index].pasted)
        if len(boxes):
            ends = (boxes[:, :2] + boxes[:, 2:]).max(0)
            assert (*boxes[:, :2].min(0), *ends) == (ys.min(), xs.min(), ys.max() + 1, xs.max() + 1)
            found += len(boxes)
    assert found == len(rows) > 3
    assert {row["object"] for row in rows} <= {f"object {number}" for number in range(5)}
    with Image.open(folder / "preview.png") as picture:
        assert picture.width == 1200


def test_wrong_keys_leave_no_folder_and_nothing_pasted_is_no_error(
    outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capfd, *FEW, "task.images=0")
    assert outcome.code == 2
    assert "Got task.images=0 and task.epoch=0; allowed are" in outcome.err
    assert not list((outputs / "preview").iterdir())
    outcome = run(capfd, *FEW, "task.images=1")
    assert outcome.code == 0, outcome.err
    assert "nothing is pasted" in outcome.out
    (folder,) = (outputs / "preview").iterdir()
    assert (folder / "manifest.csv").read_text().count("\n") == 1


def test_panels_show_masks_anomalies_and_what_is_left_out() -> None:
    size = (8, 40)
    mask, anomaly, ignore = torch.zeros(1, *size) > 0, torch.zeros(size), torch.zeros(size) > 0
    mask[0, :, :10] = True
    anomaly[:, 10:20], anomaly[:, 20:30], ignore[:, 10:20] = ANOMALY, VOID, True
    target = Target(mask, torch.tensor([0]), anomaly.byte(), ignore)
    image = torch.full((3, *size), 0.5)
    sample = Sample(image, target, "x")
    shown, masks, truth = panels_of(sample)
    assert (shown == 127.5).all()

    def is_grey(panel: np.ndarray, column: int) -> bool:
        return bool((np.ptp(panel[:, column], axis=-1) < 1).all())

    def is_striped(panel: np.ndarray, first: int) -> bool:
        return bool(panel[:, first : first + 8, 0].std() > 5)

    assert not is_grey(masks, 5)
    assert [is_striped(masks, first) for first in (1, 11, 21, 31)] == [False, True, False, False]
    assert [is_striped(truth, first) for first in (1, 11, 21, 31)] == [False, False, True, False]
    assert np.abs(truth[0, 15] - ANOMALY_COLOUR).max() < 40
    assert [is_grey(panel, 35) for panel in (masks, truth)] == [True, True]
    assert len(panels_of(sample._replace(copy=sample))) == 4
