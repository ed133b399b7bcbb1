"""`task=evaluate` as it is typed: several models, resumed cells, protocols, seen images, MLflow."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import average_precision_score

from eomt_exp import cli, load_detector
from eomt_exp.contracts import VOID
from eomt_exp.data.synthetic_roads import SyntheticBenchmark
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.report.cells import Cell
from eomt_exp.tasks.candidate import Candidate, KnownClasses, as_label
from eomt_exp.tasks.manifest import notes_on
from tests.command_line import (
    ROOT,
    SMALL,
    metrics_of,
    mlflow_client,
    mlflow_run,
    only_run,
    own_process_state,
    run,
    start,
    wait_for,
)
from tests.data_files import save
from tests.test_benchmark_data import course
from tests.test_cli import make_camvid, make_objects, make_road_anomaly, real_overrides

__all__ = ["course"]  # the fixture

QUICK = ("trainer.num_workers=0", "data.val.length=4", "evaluator.bits=17",
         "evaluator.resamples=50", "evaluator.figures=0")  # fmt: skip
ONE = ("scorer=[msp]", "score=msp")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small semantic EoMT, trained once for this file."""
    folder = tmp_path_factory.mktemp("trained")
    typed = ("+experiment=semantic", *SMALL, *ONE, "tracking=none", f"paths.outputs={folder}")
    with own_process_state(typed):
        cli.main()
    return only_run(folder, "semantic")


@pytest.fixture
def trained(once: Path, outputs: Path) -> Path:
    """The same, among the outputs of a test."""
    return shutil.copytree(once, outputs / "semantic" / "first")


def evaluate(capfd, *typed: str):
    return run(capfd, "task=evaluate", *QUICK, *typed)


@pytest.mark.slow
def test_models_times_benchmarks_resumed_cell_by_cell(trained: Path, outputs: Path, capfd) -> None:
    copy = shutil.copytree(trained, outputs / "semantic" / "copy")
    folder = outputs / "evaluate" / "mine"
    typed = (f"checkpoint=[{trained},{copy}]", "benchmark=[synth_anomaly,synth_obstacle]",
             "benchmark.synth_obstacle.length=6", "benchmark.synth_anomaly.length=6",
             "scorer=[msp,rba]", "score=msp",
             f"hydra.run.dir={folder}")  # fmt: skip
    outcome = evaluate(capfd, *typed)
    assert outcome.code == 0, outcome.err
    saved = metrics_of(folder)
    for key in ("synth_anomaly/semantic-0.msp/ap", "synth_obstacle/semantic-0~2.rba/fpr95",
                "semantic-0/val/miou"):  # fmt: skip
        assert 0 <= saved["metrics"][key] <= 1
    keys = [f"synth_anomaly/semantic-0{which}.msp/ap" for which in ("", "~2")]
    assert saved["metrics"][keys[0]] == saved["metrics"][keys[1]]  # the same weights
    low, high = saved["manifest"]["intervals"][keys[0]]
    assert low <= saved["metrics"][keys[0]] <= high
    _the_files_agree(folder, saved)
    _mlflow_has_parent_and_children(outputs, folder, saved)

    cells = {path: path.stat().st_mtime_ns for path in folder.rglob("cells/*/*.npz")}
    assert len(cells) == 4
    lost = folder / "cells" / "semantic-0~2" / "synth_obstacle.npz"
    lost.unlink()
    (folder / "metrics.json").unlink()
    again = evaluate(capfd, *typed)
    assert again.code == 0, again.err
    assert [line for line in again.out.splitlines() if " on synth_" in line] == [
        line for line in again.out.splitlines() if "semantic-0~2 on synth_obstacle" in line
    ]
    now = {path: path.stat().st_mtime_ns for path in folder.rglob("cells/*/*.npz")}
    assert [path for path in now if now[path] != cells[path]] == [lost]
    assert metrics_of(folder)["metrics"] == saved["metrics"]

    # Another protocol in the same folder is another result, not the old one under a new name.
    other = evaluate(capfd, *typed, "protocol=smiyc", "tracking=none")
    assert other.code == 0, other.err
    assert "note: protocol smiyc" in other.out
    assert metrics_of(folder)["metrics"] != saved["metrics"]
    assert metrics_of(folder)["manifest"]["protocol"]["name"] == "smiyc_tool"


def _the_files_agree(folder: Path, saved: dict) -> None:
    rows = list(csv.DictReader((folder / "leaderboard.csv").open()))
    (row,) = [
        r for r in rows
        if (r["benchmark"], r["model"], r["scorer"]) == ("synth_anomaly", "semantic-0", "rba")
    ]  # fmt: skip
    assert float(row["ap"]) == pytest.approx(saved["metrics"]["synth_anomaly/semantic-0.rba/ap"])
    assert "semantic-0" in (folder / "leaderboard.md").read_text()
    assert "tabular" in (folder / "leaderboard.tex").read_text()
    assert "synth_obstacle" in (folder / "report.html").read_text()


def _mlflow_has_parent_and_children(outputs: Path, folder: Path, saved: dict) -> None:
    client, parent = mlflow_client(outputs), mlflow_run(outputs, folder)
    key = "synth_anomaly/semantic-0.msp/ap"
    assert parent.data.metrics[key] == pytest.approx(saved["metrics"][key])
    children = client.search_runs(
        [parent.info.experiment_id],
        f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
    )
    names = {child.info.run_name for child in children}
    assert names == {"semantic-0 msp", "semantic-0 rba", "semantic-0~2 msp", "semantic-0~2 rba"}
    (child,) = [c for c in children if c.info.run_name == "semantic-0 msp"]
    assert child.data.metrics["ap/synth_anomaly"] == pytest.approx(saved["metrics"][key])
    assert child.info.status == "FINISHED"
    files = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "leaderboard.csv", "leaderboard.md", "leaderboard.tex"} <= files


@pytest.mark.parametrize(
    ("text", "label"),
    [("eim_oe-0", "eim_oe-0"), ("group/eim-0", "group_eim-0"), ("../../x-0", "_.._x-0"),
     ("..", "model"), ("a" * 300, "a" * 100)],
)  # fmt: skip
def test_a_label_is_a_plain_name(text: str, label: str) -> None:
    assert as_label(text) == label
    assert as_label(text, [label, f"{label}~2"]) == f"{label}~3"


@pytest.mark.slow
def test_a_protocol_changes_the_numbers_and_is_written_beside_them(
    trained: Path, outputs: Path, tmp_path: Path, capfd
) -> None:
    photos = make_road_anomaly(tmp_path / "photos", count=3)
    save(photos / "labels_masks" / "2.png", np.zeros((40, 80), np.uint8))
    found = {}
    for protocol in ("default", "polito_legacy", "smiyc"):
        outcome = evaluate(capfd, f"checkpoint={trained}", "benchmark=[road_anomaly]",
                           f"paths.road_anomaly={photos}", f"protocol={protocol}",
                           f"name={protocol}", "tracking=none", *ONE)  # fmt: skip
        assert outcome.code == 0, outcome.err
        found[protocol] = metrics_of(only_run(outputs, protocol))
    counted = {
        name: saved["metrics"]["road_anomaly/msp/positives"]
        + saved["metrics"]["road_anomaly/msp/negatives"]
        for name, saved in found.items()
    }
    assert counted["default"] == counted["smiyc"] == 3 * 40 * 80
    assert counted["polito_legacy"] == 2 * 32 * 64  # squeezed to the model's size, one left out
    facts = found["polito_legacy"]["manifest"]["benchmarks"]["road_anomaly"]
    assert facts["without_anomaly_left_out"] == ["2"]
    assert found["polito_legacy"]["manifest"]["protocol"]["fpr95"] == "interpolated"
    assert "road_anomaly/msp/siou" in found["smiyc"]["metrics"]
    curves = {name: saved["manifest"]["protocol"]["curve"] for name, saved in found.items()}
    assert curves == {"default": "exact", "polito_legacy": "exact", "smiyc": "tool"}
    assert "road_anomaly/msp/siou" not in found["polito_legacy"]["metrics"]


@pytest.mark.slow
def test_the_course_is_evaluated_by_one_path(
    trained: Path, outputs: Path, course: Path, capfd
) -> None:
    outcome = evaluate(capfd, f"checkpoint={trained}", "benchmark=validation_dataset",
                       f"paths.validation_dataset={course}", *ONE,
                       "tracking=none")  # fmt: skip
    assert outcome.code == 0, outcome.err
    folder = only_run(outputs, "evaluate")
    saved = metrics_of(folder)
    for name in ("smiyc_anomaly21", "smiyc_obstacle21", "road_anomaly", "fishyscapes_laf",
                 "fishyscapes_static"):  # fmt: skip
        assert 0 < saved["metrics"][f"{name}/msp/ap"] < 1
        assert saved["manifest"]["benchmarks"][name]["images"] == 3
        assert saved["manifest"]["benchmarks"][name]["without_anomaly_left_out"] == []
    assert "published" in outcome.out
    assert "note: smiyc_anomaly21: 3 images, where the published set has 10." in outcome.out
    assert "note: fishyscapes_laf: 3 images are too few" in outcome.out
    assert "where the published set has 10" in (folder / "leaderboard.md").read_text()


@pytest.mark.slow
def test_what_is_left_out_or_doubled_is_said_beside_the_numbers(
    trained: Path, outputs: Path, tmp_path: Path, capfd
) -> None:
    photos = make_road_anomaly(tmp_path / "photos", count=3)
    broken = photos / "images" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    for folder, ending in (("images", "jpg"), ("labels_masks", "png")):
        shutil.copy(photos / folder / f"0.{ending}", photos / folder / f"9.{ending}")
    outcome = evaluate(capfd, f"checkpoint={trained}", "benchmark=[road_anomaly]", *ONE,
                       f"paths.road_anomaly={photos}", "benchmark.road_anomaly.on_broken=skip",
                       "tracking=none", "backbone=deit_tiny")  # fmt: skip
    assert outcome.code == 0, outcome.err
    notes = metrics_of(only_run(outputs, "evaluate"))["manifest"]["notes"]
    assert "road_anomaly: left out as broken: 1.jpg." in notes
    assert "road_anomaly: 1 of its images are there more than once." in notes
    assert f"road_anomaly: 3 images, the first is {photos / 'images' / '0.jpg'}" in outcome.out
    assert "typed without effect on task=evaluate: backbone; a run keeps its own." in outcome.out


@pytest.mark.parametrize(
    ("override", "needle"),
    [("protocol=[default,smiyc]", "one protocol at a time"), ("scorer=[rba]", "type score=rba"),
     ("evaluator.bits=99", "from 17 to 28")],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_said_in_one_line(
    trained: Path, capfd, monkeypatch: pytest.MonkeyPatch, override: str, needle: str
) -> None:
    monkeypatch.delattr("eomt_exp.tasks.evaluate.build_image_sets")  # no image is read before
    outcome = run(capfd, "task=evaluate", f"checkpoint={trained}", "benchmark=[synth_anomaly]",
                  "data.val.length=4", "benchmark.synth_anomaly.length=4", override)  # fmt: skip
    assert outcome.code == 2
    assert needle in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.fixture
def leaking(tmp_path: Path) -> dict[str, Path]:
    """CamVid whose first training image is also, as PNG, a photograph of the benchmark."""
    real = {
        "camvid": make_camvid(tmp_path / "camvid"),
        "road_anomaly": make_road_anomaly(tmp_path / "road_anomaly"),
        "outlier_objects": make_objects(tmp_path / "objects"),
    }
    picture = Image.open(real["camvid"] / "train" / "0.jpg")
    picture.save(real["road_anomaly"] / "images" / "stolen.png")
    labels = np.zeros((picture.height, picture.width), np.uint8)
    labels[3:9, 3:9] = 2
    save(real["road_anomaly"] / "labels_masks" / "stolen.png", labels)
    return real


def test_training_on_an_image_of_the_benchmark_is_refused_before_it_begins(
    outputs: Path, leaking: dict[str, Path], capfd
) -> None:
    outcome = run(capfd, "+experiment=semantic", *real_overrides(leaking))
    assert outcome.code == 2
    assert "1 image of road_anomaly was seen before: stolen (training, as 0)" in outcome.err
    assert "evaluator.allow_seen_images=true" in outcome.err
    assert not list(outputs.rglob("model.safetensors"))


@pytest.mark.slow
def test_cut_outs_of_alpha_0_and_1_are_refused_before_anything_is_trained(
    outputs: Path, tmp_path: Path, capfd
) -> None:
    save(tmp_path / "0.png", np.ones((60, 60, 4), np.uint8))
    outcome = run(capfd, "+experiment=outlier_exposure", *SMALL, "outliers=folder",
                  f"paths.outlier_objects={tmp_path}", "tracking=none")  # fmt: skip
    assert outcome.code == 2
    assert f"{tmp_path}/0.png has no object to paste: its alpha is 1 at most" in outcome.err
    assert not list(outputs.rglob("config.yaml"))


def test_a_benchmark_without_one_kind_of_pixel_says_so_beside_its_numbers() -> None:
    facts = {"images": 20, "published_images": None, "broken_left_out": [], "doubled_images": 0,
             "measured": 20}  # fmt: skip

    def notes(positives: float, negatives: float) -> list[str]:
        result = SimpleNamespace(metrics={"positives": positives, "negatives": negatives})
        cell = cast(Cell, SimpleNamespace(results=[result], facts=facts))
        known = KnownClasses({"miou": math.nan if positives else 0.5}, {})
        model = Candidate("x-0", "msp", "", {"images_not_on_record": []}, SeenImages(), {}, None)
        return notes_on([replace(model, known=known, cells={"b": cell})])

    assert notes(0, 5) == [
        "b: no anomalous pixel counts, so its metrics are undefined; task=doctor benchmark=b looks "
        "into the labels."
    ]
    said = notes(5, 0)
    assert said[0].startswith("data.val: no pixel has a class")
    assert said[1].startswith("b: no normal pixel counts")
    assert len(said) == 2


@pytest.mark.slow
def test_evaluating_on_a_trained_image_is_refused_or_marked(
    outputs: Path, leaking: dict[str, Path], capfd
) -> None:
    files = [
        leaking["road_anomaly"] / folder / "stolen.png" for folder in ("images", "labels_masks")
    ]
    for file in files:
        file.rename(file.with_suffix(".hidden"))
    assert run(capfd, "+experiment=semantic", *real_overrides(leaking), *ONE).code == 0
    for file in files:
        file.with_suffix(".hidden").rename(file)
    typed = ("task=evaluate", f"checkpoint={only_run(outputs, 'semantic')}",
             "tracking=none", *ONE, *real_overrides(leaking))  # fmt: skip
    refused = run(capfd, *typed)
    assert refused.code == 2
    assert "stolen (training, as 0)" in refused.err
    assert not list(outputs.glob("evaluate/*/metrics.json"))

    # Nor by the name of the file: it is the same model.
    file = only_run(outputs, "semantic") / "model.safetensors"
    refused = run(capfd, typed[0], "model.num_queries=6", f"checkpoint={file}", *typed[2:])
    assert refused.code == 2
    assert "stolen (training, as 0)" in refused.err

    forced = run(capfd, *typed, "evaluator.allow_seen_images=true")
    assert forced.code == 0, forced.err
    folder = only_run(outputs, "evaluate")
    saved = metrics_of(folder)
    (warning,) = saved["manifest"]["warnings"]
    assert "stolen (training, as 0)" in warning
    assert "stolen (training, as 0)" in (folder / "report.html").read_text()
    assert "stolen (training, as 0)" in forced.out
    assert "stolen" in (folder / "leaderboard.md").read_text()


THREE = ("task=evaluate", "benchmark=[synth_anomaly,synth_obstacle,road_anomaly]", *QUICK,
         "benchmark.synth_anomaly.length=8", "benchmark.synth_obstacle.length=40",
         "scorer=[msp,rba]", "score=msp")  # fmt: skip


@pytest.mark.slow
def test_killed_half_way_only_what_is_missing_is_done(
    trained: Path, outputs: Path, tmp_path: Path, capfd
) -> None:
    photos = make_road_anomaly(tmp_path / "photos")
    typed = (*THREE, f"checkpoint={trained}", f"paths.road_anomaly={photos}")
    process = start(*typed)
    wait_for(lambda: list(outputs.glob("evaluate/*/cells/*/synth_anomaly.npz")))
    process.kill()
    process.wait()
    (done,) = outputs.glob("evaluate/*/cells/*/synth_anomaly.npz")
    assert not list(outputs.glob("evaluate/*/metrics.json"))
    written = done.stat().st_mtime_ns

    outcome = run(capfd, *typed)
    assert outcome.code == 0, outcome.err
    folder = only_run(outputs, "evaluate")
    assert done.stat().st_mtime_ns == written
    assert f"{trained.parent.name}-0 on synth_anomaly" not in outcome.out
    assert f"{trained.parent.name}-0 on road_anomaly" in outcome.out
    assert not list(folder.glob(".scores-*"))
    whole = run(capfd, *typed, f"hydra.run.dir={tmp_path / 'unbroken'}")
    assert whole.code == 0, whole.err
    assert metrics_of(folder)["metrics"] == metrics_of(tmp_path / "unbroken")["metrics"]


@pytest.mark.slow
def test_two_processes_share_the_images_and_count_each_once(
    trained: Path, outputs: Path, tmp_path: Path, capfd
) -> None:
    photos = make_road_anomaly(tmp_path / "photos", count=5)
    typed = (*THREE, f"checkpoint={trained}", f"paths.road_anomaly={photos}",
             "evaluator.batch_size=1")  # fmt: skip  # windows alone: the same arithmetic in both
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "-m", "eomt_exp", *typed, f"hydra.run.dir={tmp_path / 'two'}"],
        cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    alone = subprocess.run(
        [sys.executable, "-m", "eomt_exp", *typed, f"hydra.run.dir={tmp_path / 'one'}"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert metrics_of(tmp_path / "two")["metrics"] == metrics_of(tmp_path / "one")["metrics"]


def test_windows_of_another_size_than_the_training_s(trained: Path, outputs: Path, capfd) -> None:
    typed = ("benchmark=synth_anomaly", "benchmark.synth_anomaly.length=3",
             *ONE, "evaluator.known_classes=false", "tracking=none")  # fmt: skip

    def measured(name: str, model: Path, *more: str) -> dict:
        folder = outputs / "evaluate" / name
        outcome = evaluate(capfd, *typed, f"checkpoint={model}", f"hydra.run.dir={folder}", *more)
        assert outcome.code == 0, outcome.err
        return metrics_of(folder)

    def by_hand(size: tuple[int, int]) -> float:
        one = load_detector(trained, score="msp")
        one.detector.image_size = size
        images = [*SyntheticBenchmark("anomaly", length=3)]
        scores = [one(image.image)[image.anomaly != VOID] for image in images]
        truth = [image.anomaly[image.anomaly != VOID] for image in images]
        return average_precision_score(np.concatenate(truth), np.concatenate(scores))

    own, enlarged = by_hand((32, 64)), by_hand((64, 128))
    assert abs(own - enlarged) > 1e-3
    saved = measured("larger", trained, "protocol.image_size=[64,128]")
    assert saved["metrics"]["synth_anomaly/msp/ap"] == pytest.approx(enlarged, abs=1e-4)
    assert saved["manifest"]["models"]["semantic-0"]["image_size"] == [64, 128]
    # What was measured so, a run or an evaluation, goes by it unless something else is typed.
    config = OmegaConf.load(trained / "config.yaml")
    config.protocol.image_size = [64, 128]
    OmegaConf.save(config, trained / "config.yaml")
    for name, model in (("run", trained), ("evaluation", outputs / "evaluate" / "larger")):
        assert measured(name, model)["metrics"] == saved["metrics"]
    again = measured("own", trained, "protocol.image_size=null")["metrics"]["synth_anomaly/msp/ap"]
    assert again == pytest.approx(own, abs=1e-4)
    odd = evaluate(capfd, *typed, f"checkpoint={trained}", "protocol.image_size=[50,64]")
    assert odd.code == 2
    assert "must be multiples of" in odd.err
    assert "Traceback" not in odd.err
