"""docs/your-own-data.md: its two YAML files are a training set and a benchmark, without Python."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import ROOT, Outcome, metrics_of, only_run, run
from tests.data_files import save

PAGE = ROOT / "docs" / "your-own-data.md"
SIZE = (64, 96)
ROAD, SKY, CAR, VAN, VOID, NOBODYS = 7, 23, 26, 28, 0, 99
COLOURS = {ROAD: 100, SKY: 200, CAR: 30, VAN: 60, VOID: 0, NOBODYS: 150}


def street(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose grey levels show its label map."""
    labels = np.full(SIZE, SKY, np.uint8)
    labels[32:], labels[60:] = ROAD, VOID
    labels[24:44, 10 + 5 * seed : 30 + 5 * seed] = (CAR, VAN)[seed % 2]
    grey = np.vectorize(COLOURS.__getitem__)(labels)
    noise = np.random.default_rng(seed).integers(0, 30, (*SIZE, 3))
    return (grey[..., None] + noise).astype(np.uint8), labels


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photographs of streets, and two with an anomaly."""
    root = tmp_path / "mine"
    for split, seeds in (("train", range(6)), ("val", range(6, 8))):
        for seed in seeds:
            image, labels = street(seed)
            save(root / "photos" / split / f"{seed}.png", image)
            save(root / "labels" / split / f"{seed}.png", labels)
    for seed in (8, 9):
        image, _ = street(seed)
        image[40:56, 60:80] = 255
        save(root / "anomalies" / "photos" / f"{seed}.jpg", image)
        save(root / "anomalies" / "truth" / f"{seed}.png", (image[..., 0] == 255).astype(np.uint8))
    monkeypatch.setenv("EOMT_MINE", str(root))
    monkeypatch.setenv("EOMT_MY_ANOMALIES", str(root / "anomalies"))
    return root


@pytest.fixture
def typed(tmp_path: Path) -> tuple[str, ...]:
    """How each command begins: with the folder that the page's files are written into."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        (name,) = re.findall(r"^# (my_conf/\S+)$", block, flags=re.MULTILINE)
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(block)
    return "--config-dir", str(tmp_path / "my_conf")


def doctor(capfd: pytest.CaptureFixture[str], typed: tuple[str, ...], *options: str) -> Outcome:
    return run(capfd, *typed, "task=doctor", "data=mine", *options)


def test_the_doctor_reads_a_set_of_ones_own_and_its_class_map(
    mine: Path, typed: tuple[str, ...], outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    healthy = doctor(capfd, typed, "benchmark=my_anomalies")
    assert healthy.code == 0, healthy.err
    for value, name in ((ROAD, "road"), (CAR, "car"), (VAN, "car"), (VOID, "void")):
        assert re.search(rf"label value {value} +[0-9.]+ % +{name}", healthy.out)
    lines = healthy.out.splitlines()[-3:]
    assert [line.split() for line in lines] == [
        ["data.train", "ok"], ["data.val", "ok"], ["benchmark.my_anomalies", "ok"]
    ]  # fmt: skip


def test_the_doctor_says_what_is_wrong_with_it(
    mine: Path, typed: tuple[str, ...], outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = mine / "labels" / "train"
    image, values = street(0)
    values[:2] = NOBODYS
    save(labels / "0.png", values)
    (labels / "1.png").unlink()
    (mine / "photos" / "train" / "2.png").unlink()
    save(labels / "3.png", values[:10])
    (mine / "photos" / "train" / "4.png").write_bytes(b"half of it")
    save(mine / "photos" / "val" / "6.png", image)  # also 0.png of train
    found = doctor(capfd, typed, "data.num_classes=5")
    assert found.code == 1
    share = 100 * 2 / 64 / 2  # two rows, of the two images that can be read
    for text in (
        "It has 4 classes, and data.num_classes=5.",
        "images that cannot be used: 4.",
        f"train/1.png has no label map: {labels}/1.png is missing",
        f"{labels}/2.png has no image",
        "4.png cannot be read",
        f"{labels}/3.png is 96x10 pixels",
        f"no class: 1. The values: {NOBODYS} ({share:.3g} % of all pixels)",
        "images that are also in data.train: 1. A leak",
    ):
        assert text in found.out


@pytest.mark.slow
def test_one_yaml_each_trains_and_evaluates_without_python(
    mine: Path, typed: tuple[str, ...], outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quick = ("trainer.num_workers=0", "tracking=none", "evaluator.bits=17", "evaluator.figures=0",
             "evaluator.resamples=20", "benchmark=my_anomalies")  # fmt: skip
    trained = run(capfd, *typed, "+experiment=semantic", "data=mine", *quick)
    assert trained.code == 0, trained.err
    folder = only_run(outputs, "semantic")
    evaluated = run(capfd, *typed, "task=evaluate", f"checkpoint={folder}", *quick)
    assert evaluated.code == 0, evaluated.err
    metrics = [metrics_of(f)["metrics"] for f in (folder, only_run(outputs, "evaluate"))]
    assert metrics[0]["val/iou_road"] >= 0  # of a class that only the YAML names
    assert metrics[0]["my_anomalies/rba/ap"] > 0
    assert metrics[0]["my_anomalies/rba/ap"] == metrics[1]["my_anomalies/rba/ap"]
