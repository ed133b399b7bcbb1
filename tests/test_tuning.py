"""Validation during training: anomalies that are not the test, to judge and prune trials by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file

from eomt_exp import cli, runs
from eomt_exp.build import build
from eomt_exp.contracts import (
    VOID,
    CheckpointError,
    ImageSet,
    LabelledImage,
    TrialPruned,
    UserError,
)
from eomt_exp.data.outlier_exposure import CutPaste
from eomt_exp.data.pasted_objects import PastedObjects
from eomt_exp.engine.checkpoint import states
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.paths import asset_dir
from eomt_exp.studies.trial import PRUNED
from eomt_exp.tasks.image_sets import ImageSets
from eomt_exp.tasks.measure import Measurement
from eomt_exp.tasks.start import checked_settings
from eomt_exp.tasks.train import train
from eomt_exp.tasks.validation import Validation, last_validation
from eomt_exp.tracking.metrics_file import Journal, read_journal
from eomt_exp.weights.weight_files import WEIGHTS
from tests.bright_anomalies import BrightnessNet, NegatedEvidence
from tests.command_line import SMALL, metrics_of, mlflow_client, mlflow_run, run
from tests.test_trial import NO_PRUNER, Study

# debug=fast names benchmarks, and here there are none.
TINY = ("+experiment=semantic", *SMALL[1:], "recipe.batch_size=4", "data.val.length=4",
        "tracking=none", "scorer=[msp]", "score=msp",
        "benchmark=none", "evaluator.known_classes=false", "data.train.length=8",
        "trainer.epochs=2")  # fmt: skip
VALIDATED = ("trainer.validate_every=1", "benchmark@tuning=pasted_validation")


@pytest.fixture(autouse=True)
def hydra_at_conf(request: pytest.FixtureRequest) -> Iterator[None]:
    if "capfd" in request.fixturenames:  # whole commands start Hydra themselves
        yield
        return
    cli.register()
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        yield


def load(*overrides: str) -> Any:
    return compose("config", overrides=["hydra.run.dir=unused", *overrides])


class DarkScenes(ImageSet):
    """Noisy dark images (16, 32), one with a void edge."""

    num_classes = 2
    class_names = ("grey", "black")

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> LabelledImage:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 100, (16, 32, 3), dtype=np.uint8)
        labels = np.zeros((16, 32), np.uint8)
        labels[:, :2] = VOID if index == 1 else 0
        return LabelledImage(image, labels, labels.copy(), f"dark {index}")


def white_objects(**changes: Any) -> CutPaste:
    square = np.full((8, 8, 4), 255, np.uint8)
    plain = {"feather": 0.0, "colour_match": 0.0, "rotation": 0.0, "brightness": 0.0}
    settings = {"num_classes": 2, "paste_probability": 1.0, "target": "ignore"} | plain | changes
    return CutPaste([square], **settings)


def test_the_truth_is_what_was_pasted_to_the_pixel() -> None:
    images = PastedObjects(DarkScenes(), white_objects())
    for index in range(10):
        before, after = DarkScenes()[index], images[index]
        white = (after.image == 255).all(axis=-1)
        assert white.any()
        np.testing.assert_array_equal(after.anomaly == 1, white)
        np.testing.assert_array_equal(after.labels[white], VOID)
        np.testing.assert_array_equal(after.image[~white], before.image[~white])
        np.testing.assert_array_equal(after.anomaly[~white], before.anomaly[~white])


def test_an_image_is_a_function_of_seed_and_index_alone() -> None:
    one, other = (PastedObjects(DarkScenes(), white_objects(), seed=3) for _ in range(2))
    _ = [other[index] for index in (7, 1, 1)]
    for index in (1, 7, 4):
        np.testing.assert_array_equal(one[index].image, other[index].image)
    changed = PastedObjects(DarkScenes(), white_objects(), seed=4)
    assert any((one[index].image != changed[index].image).any() for index in range(10))


def test_fewer_images_are_spread_evenly_and_show_the_same() -> None:
    whole = PastedObjects(DarkScenes(), white_objects())
    part = PastedObjects(DarkScenes(), white_objects(), length=5)
    assert [item.name for item in part] == [f"pasted/dark {index}" for index in (0, 2, 4, 6, 8)]
    np.testing.assert_array_equal(part[2].image, whole[4].image)


@pytest.mark.parametrize(
    ("changes", "overrides"),
    [
        ({"length": 11}, "1 to 10"),
        ({"images": None}, "data.val is null"),
    ],
)
def test_what_cannot_be_pasted_says_what_can(changes: dict, overrides: str) -> None:
    with pytest.raises(ValueError, match=overrides):
        PastedObjects(**{"images": DarkScenes(), "paste": white_objects()} | changes)


class Blind(NegatedEvidence):
    """Finds nothing anywhere."""

    def __call__(self, output: Any) -> torch.Tensor:
        return torch.zeros_like(super().__call__(output))


def validated(tmp_path: Path, scorer: Any, *overrides: str, **tuning: Any) -> dict[str, float]:
    detector = Detector(
        model=BrightnessNet(as_masks=False), scorers={"own": scorer, "other": None},  # type: ignore[dict-item]
        score="own", image_size=(16, 32),
    )  # fmt: skip
    settings = checked_settings(load("trainer.num_workers=0", *overrides))
    alone: Any = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)
    measurement = Measurement(settings, alone, tmp_path)
    images, best = ImageSets({}, DarkScenes(), tuning, {}), settings.trainer.keep_best
    return Validation(measurement, detector, images, best)(1)


def test_the_weights_of_the_best_validation_are_kept(tmp_path: Path) -> None:
    images = PastedObjects(DarkScenes(), white_objects())
    best, journal = tmp_path / "best.safetensors", Journal(tmp_path / "metrics.jsonl")
    keep = ("trainer.keep_best=val/ap", "trainer.validate_every=1")
    for earlier, is_best in ((None, True), (0.9, True), (1.0, False)):
        if earlier is not None:
            journal.write({"val/ap": earlier, "val/miou": 2.0}, 1)
        validated(tmp_path, NegatedEvidence(), *keep, pasted=images)  # its AP is 1
        assert best.is_file() == is_best
        best.unlink(missing_ok=True)
    with pytest.raises(UserError, match="add benchmark@tuning=pasted_validation"):
        validated(tmp_path, NegatedEvidence(), *keep)


def test_who_knows_the_pasted_pixels_gets_1_and_the_blind_the_base_rate(tmp_path: Path) -> None:
    images = PastedObjects(DarkScenes(), white_objects())
    sure = validated(tmp_path, NegatedEvidence(), pasted=images)
    assert sure["val/pasted/ap"] == pytest.approx(1.0)
    assert sure["val/pasted/fpr95"] == pytest.approx(0.0)
    blind = validated(tmp_path, Blind(), pasted=images)
    truth = np.concatenate([item.anomaly.ravel() for item in images])
    assert blind["val/ap"] == pytest.approx((truth == 1).sum() / (truth != VOID).sum())
    assert blind["val/fpr95"] == pytest.approx(1.0)
    assert 0 <= blind["val/miou"] <= 1
    assert list(tmp_path.iterdir()) == [], "scratch is cleared away"


def test_several_sets_count_the_same_whatever_their_size(tmp_path: Path) -> None:
    sets = {
        "few": PastedObjects(DarkScenes(), white_objects(max_scale=0.9), length=2),
        "many": PastedObjects(DarkScenes(), white_objects(max_scale=0.2), seed=1),
    }
    found = validated(tmp_path, Blind(), **sets)
    assert found["val/few/ap"] != found["val/many/ap"]
    assert found["val/ap"] == pytest.approx((found["val/few/ap"] + found["val/many/ap"]) / 2)


def test_the_protocol_says_which_fpr95_is_meant(tmp_path: Path) -> None:
    images = PastedObjects(DarkScenes(), white_objects())
    overrides = ("protocol.fpr95=interpolated", "evaluator.bits=17")
    first = validated(tmp_path, Blind(), pasted=images)["val/fpr95"]
    assert first == pytest.approx(1.0)
    assert validated(tmp_path, Blind(), *overrides, pasted=images)["val/fpr95"] == pytest.approx(
        0.95
    )


def test_any_benchmark_can_be_tuned_on_and_none_is_the_default() -> None:
    assert load().tuning == {}
    assert load("benchmark=none").benchmark == {}
    cfg = load("benchmark@tuning=[pasted_validation,synth_obstacle]", "benchmark=[synth_anomaly]")
    assert set(cfg.tuning) == {"pasted_validation", "synth_obstacle"}
    assert set(cfg.benchmark) == {"synth_anomaly"}
    assert "road_anomaly" in load("benchmark@tuning=validation_dataset").tuning


def test_a_swept_exposure_leaves_what_trials_are_judged_by_alone() -> None:
    overrides = ("+experiment=eim_oe", "benchmark@tuning=pasted_validation")
    exposure = ("max_objects=9", "feather=0", "placement=road", "paste_probability=0.1")
    swept = ("seed=7", *(f"outlier_exposure.{word}" for word in exposure))
    assert runs.plain(load(*overrides))["tuning"] == runs.plain(load(*overrides, *swept))["tuning"]


def test_the_objects_of_the_synthetic_tuning_set_are_new_to_the_model() -> None:
    cfg = load("data.outliers.length=8", "data.val_outliers.length=8")
    seen, new = build(cfg.data.outliers), build(cfg.data.val_outliers)
    known = {seen[index].tobytes() for index in range(8)}
    assert known.isdisjoint(new[index].tobytes() for index in range(8))


def test_runs_from_before_there_were_tuning_sets_are_found_again() -> None:
    # The first as the commit before tuning sets named it: whoever changes a default knows it.
    assert runs.content_key(load("+experiment=semantic")) == "09a80176ee0a"
    assert runs.content_key(load("+experiment=eim_oe")) == "27ddbe47a356"
    validated = (
        "+experiment=semantic",
        *VALIDATED,
        "tuned_on=/somewhere",
        "data.val_outliers.seed=5",
    )
    assert runs.content_key(load(*validated)) == "09a80176ee0a"


def test_a_run_from_before_there_were_sources_and_copies_goes_on() -> None:
    cfg = load("outlier_exposure=cut_paste")
    old = runs.plain(cfg)
    del old["outliers"]
    del old["outlier_exposure"]["shifted_copy"], old["outlier_exposure"]["copy_probability"]
    assert runs.training_settings(OmegaConf.create(old)) == runs.training_settings(cfg)
    copies = load("outlier_exposure=cut_paste", "outlier_exposure.shifted_copy=weather")
    assert runs.content_key(copies) != runs.content_key(cfg)


def test_an_old_run_has_validation_outliers_too(tmp_path: Path) -> None:
    old = runs.plain(load())
    del old["data"]["val_outliers"], old["tuning"], old["tuned_on"]
    (tmp_path / "config.yaml").write_text(json.dumps(old))
    cfg = runs.load_config(tmp_path)
    assert cfg.data.val_outliers == cfg.data.outliers
    assert cfg.tuning == {}


@pytest.mark.parametrize("text", ["optim: [", "optim: {lrr: 1}", "trainer: {epochs: many}"])
def test_a_broken_configuration_of_a_run_names_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yaml is no configuration of a run"):
        runs.load_config(tmp_path)


@pytest.mark.slow
def test_a_pruned_training_says_so_and_goes_on_when_it_is_asked_to(tmp_path: Path) -> None:
    study = Study(tmp_path)  # its first trial had 0.9 after every epoch
    folder = tmp_path / "000"
    with pytest.raises(TrialPruned, match="pruned after epoch 1 of 2: val/ap 0"):
        train(load(*TINY, *VALIDATED), folder, study.trial())
    note = json.loads((folder / PRUNED).read_text())
    assert (note["epoch"], note["step"], note["metric"]) == (1, 2, "val/ap")
    assert study.reported == {1: note["value"]}
    assert [state.name for state in states(folder / runs.STATES)] == ["step-00000002"]
    assert not (folder / WEIGHTS).exists()
    assert runs.read_metrics(folder) is None
    used = SeenImages.load(folder).uses
    assert {use: len(images) for use, images in used.items()} == {
        "training": 8, "validation": 4, "tuning": 4,
    }  # fmt: skip

    train(load(*TINY, *VALIDATED), folder)  # outside the study
    assert not (folder / PRUNED).exists()
    assert runs.read_metrics(folder) is not None
    steps = [line["step"] for line in read_journal(folder / "metrics.jsonl") if "val/ap" in line]
    assert steps == [2, 4], "no epoch was trained or validated twice"
    assert set(last_validation(folder)) == {
        "val/miou", "val/ap", "val/fpr95", "val/pasted_validation/ap",
        "val/pasted_validation/fpr95",
    }  # fmt: skip


@pytest.mark.slow
def test_validation_does_not_change_the_training(tmp_path: Path) -> None:
    train(load(*TINY, *VALIDATED), tmp_path / "seen")
    train(load(*TINY), tmp_path / "unseen")
    seen, unseen = (load_file(tmp_path / name / WEIGHTS) for name in ("seen", "unseen"))
    assert seen.keys() == unseen.keys()
    for name, value in unseen.items():
        torch.testing.assert_close(seen[name], value, rtol=0, atol=0)
    assert last_validation(tmp_path / "unseen") == {}


@pytest.mark.slow
def test_the_last_epoch_is_always_validated(tmp_path: Path) -> None:
    train(load(*TINY, "trainer.validate_every=3", "trainer.epochs=4"), tmp_path)
    lines = read_journal(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "val/miou" in line] == [6, 8]


@pytest.mark.slow
def test_an_image_that_was_tuned_on_is_no_test(tmp_path: Path) -> None:
    same = "benchmark=[pasted_validation]"
    with pytest.raises(UserError, match=r"4 images of pasted_validation were seen.*tuning"):
        train(load(*TINY, *VALIDATED, same), tmp_path / "both")
    study = SeenImages()
    train(load(*TINY, *VALIDATED, "trainer.epochs=1"), tmp_path / "trial")
    study.include(SeenImages.load(tmp_path / "trial"))
    study.save(tmp_path)
    with pytest.raises(UserError, match=r"4 images of pasted_validation were seen.*tuning"):
        train(load(*TINY, same, f"tuned_on={tmp_path}"), tmp_path / "winner")
    with pytest.raises(UserError, match=r"tuned_on=/nowhere has no images\.json"):
        train(load(*TINY, "tuned_on=/nowhere"), tmp_path / "lost")


def test_a_tuning_image_cannot_be_trained_on(tmp_path: Path) -> None:
    roads = "{_target_: eomt_exp.data.synthetic_roads.SyntheticRoads, split: train, length: 8, "
    roads += "height: 32, width: 64, seed: 0}"
    with pytest.raises(UserError, match=r"8 images of tuning\.roads were seen.*training"):
        train(load(*TINY, "trainer.validate_every=1", f"+tuning.roads={roads}"), tmp_path)


def test_a_tuning_set_that_is_never_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"type trainer\.validate_every=1"):
        train(load(*TINY, VALIDATED[1]), tmp_path)


def test_a_stage_before_the_trial_is_not_the_trials(tmp_path: Path) -> None:
    from eomt_exp.tasks.start import semantic_config

    cfg = load("+experiment=eim_oe", *VALIDATED, "tuned_on=/somewhere")
    semantic = semantic_config(cfg)
    assert semantic.tuning == {}
    assert semantic.tuned_on is None


@pytest.mark.slow
def test_a_command_under_a_study_reports_to_it_and_to_mlflow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path)
    result = tmp_path / "result.json"
    monkeypatch.setenv("EOMT_RESULT", str(result))
    client = mlflow_client(tmp_path)
    studies = client.create_experiment("studies", artifact_location=f"{tmp_path}/artifacts")
    parent = client.create_run(studies).info.run_id
    trial = study.settings(run_name="trial-001 lr=1", parent_run_id=parent)
    monkeypatch.setenv("EOMT_TRIAL", json.dumps(trial))
    overrides = [word for word in TINY if word != "tracking=none"]
    overrides += [*VALIDATED, f"paths.outputs={tmp_path}", f"hydra.run.dir={tmp_path}/000"]
    assert run(capfd, *overrides).code == 0
    assert json.loads(result.read_text())["status"] == "pruned"
    found = mlflow_run(tmp_path, tmp_path / "000")
    assert (found.info.status, found.info.run_name) == ("FINISHED", "trial-001 lr=1")
    tags = {"optuna.state": "PRUNED", "optuna.study": "eim", "optuna.trial": "1"}
    assert tags.items() <= found.data.tags.items()
    assert found.data.tags["mlflow.parentRunId"] == parent
    assert client.get_experiment(found.info.experiment_id).name == "studies"
    assert [m.step for m in client.get_metric_history(found.info.run_id, "val/ap")] == [2]

    monkeypatch.setenv("EOMT_TRIAL", json.dumps(trial | {"pruner": NO_PRUNER}))
    done = run(capfd, *overrides)
    assert done.code == 0
    assert "trial 1 of eim: " in done.out
    assert "checkpoint " not in done.out, "the study has a table of its own"
    value = json.loads(result.read_text())["value"]
    assert value["val/ap"] == last_validation(tmp_path / "000")["val/ap"]
    assert mlflow_run(tmp_path, tmp_path / "000").data.tags["optuna.state"] == "COMPLETE"

    result.unlink()
    assert run(capfd, *overrides).code == 0  # queued again when it was complete already
    assert json.loads(result.read_text())["value"] == value


@pytest.mark.slow
def test_two_processes_validate_together_and_end_together(tmp_path: Path) -> None:
    study = Study(tmp_path)
    overrides = [*TINY, *VALIDATED, f"paths.outputs={tmp_path}", f"hydra.run.dir={tmp_path}/000"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "-m", "eomt_exp", *overrides, "trainer.batch_size=2"],
        env=os.environ | {"EOMT_TRIAL": json.dumps(study.settings())},
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    note = json.loads((tmp_path / "000" / PRUNED).read_text())
    assert study.reported == {1: note["value"]}
    assert not (tmp_path / "000" / WEIGHTS).exists()


@pytest.mark.slow
@pytest.mark.parametrize("known", ["true", "false"])
def test_training_and_evaluation_without_any_benchmark(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], known: str
) -> None:
    overrides = [*TINY, f"evaluator.known_classes={known}", f"paths.outputs={tmp_path}"]
    folder = tmp_path / "000"
    first = run(capfd, *overrides, f"hydra.run.dir={folder}")
    assert first.code == 0, first.err
    again = run(capfd, "task=evaluate", *overrides[2:], f"checkpoint={folder}",
                f"hydra.run.dir={tmp_path}/001")  # fmt: skip
    assert again.code == 0, again.err
    for outcome, place in ((first, folder), (again, tmp_path / "001")):
        assert ("val/miou" in metrics_of(place)["metrics"]) == (known == "true")
        assert ("nothing was measured" in outcome.out) == (known == "false")
        assert (place / "report.html").is_file()
