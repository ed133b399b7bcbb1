"""The main job from the command line: results, wrong input, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import eomt_exp
from eomt_exp import cli
from eomt_exp.contracts import VOID
from eomt_exp.data.synthetic_roads import SyntheticBenchmark
from eomt_exp.engine.trainer import Trainer
from tests.command_line import (
    ROOT,
    SMALL,
    metrics_of,
    mlflow_client,
    mlflow_run,
    only_run,
    run,
    start,
    wait_for,
)
from tests.data_files import noise, save

POST_HOC = ("msp", "max_logit", "entropy", "energy", "rba")


@pytest.mark.slow
def test_the_main_job_from_roads_to_numbers(outputs: Path, capfd) -> None:
    outcome = run(capfd, "+experiment=eim_oe", *SMALL, "evaluator.figures=1")
    assert outcome.code == 0, outcome.err
    assert "none for this model, data and seed; training it" in outcome.out
    folder = only_run(outputs, "eim_oe")
    saved = metrics_of(folder)
    for benchmark in ("synth_anomaly", "synth_obstacle"):
        for scorer in (
            "msp",
            "max_logit",
            "entropy",
            "energy",
            "rba",
            "outlier_class",
            "uno",
            "class_margin",
        ):
            assert 0 <= saved["metrics"][f"{benchmark}/{scorer}/ap"] <= 1
    assert 0 <= saved["metrics"]["val/miou"] <= 1
    assert saved["manifest"]["seed"] == 0
    for needle in ("AP", "FPR95", "AUROC", "make ui", str(folder)):
        assert needle in outcome.out
    figures = {path.name for path in (folder / "figures").glob("*.png")}
    assert {"synth_anomaly_class_margin.png", "synth_anomaly_curves.png"} <= figures
    assert "training.png" in figures
    _mlflow_has_it(outputs, folder, saved["metrics"])
    _loads_as_a_detector(folder)

    again = run(capfd, "+experiment=uncertainty", *SMALL)
    assert again.code == 0, again.err
    assert "semantic EoMT: found" in again.out
    head = metrics_of(only_run(outputs, "uncertainty"))["metrics"]
    # Frozen really means frozen: the known classes are those of the semantic model.
    (semantic,) = (outputs / "semantic").glob("by-content-*/metrics.json")
    assert head["val/miou"] == json.loads(semantic.read_text())["metrics"]["val/miou"]

    evaluated = run(capfd, "task=evaluate", f"checkpoint={folder}", "benchmark=[synth_anomaly]",
                    "benchmark.synth_anomaly.length=6", "scorer=[msp,uno]", "score=uno",
                    "data.val.length=4", "evaluator.resamples=20", "name=again",
                    "trainer.num_workers=0", "evaluator.bits=17")  # fmt: skip
    assert evaluated.code == 0, evaluated.err
    repeated = metrics_of(only_run(outputs, "again"))["metrics"]
    assert not [key for key in repeated if "/rba/" in key]  # what was typed, and only that
    for metric in ("ap", "fpr95", "auroc"):
        key = f"synth_anomaly/uno/{metric}"
        assert repeated[key] == pytest.approx(saved["metrics"][key], abs=1e-6)

    _another_models_checkpoint_is_refused(folder, outputs, capfd)


def _mlflow_has_it(outputs: Path, folder: Path, metrics: dict) -> None:
    client, recorded = mlflow_client(outputs), mlflow_run(outputs, folder)
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params["trainer.epochs"] == "1"
    assert recorded.data.params["loss.isotropy_penalty.temperature"] == "1.0"
    key = "synth_anomaly/uno/ap"
    assert recorded.data.metrics[key] == pytest.approx(metrics[key])
    assert client.get_metric_history(recorded.info.run_id, "train/isotropy_penalty")
    artifacts = {a.path for a in client.list_artifacts(recorded.info.run_id)}
    assert {"metrics.json", "config.yaml", "figures"} <= artifacts


def _loads_as_a_detector(folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    detector = eomt_exp.load_detector(folder)
    score = detector(image)
    assert score.shape == (50, 70)
    assert score.dtype == np.float32
    assert np.isfinite(score).all()
    other = eomt_exp.load_detector(folder, score="rba")(image)
    assert not np.allclose(score, other)


def _another_models_checkpoint_is_refused(folder: Path, outputs: Path, capfd) -> None:
    outcome = run(capfd, "+experiment=semantic", f"checkpoint={folder}", *SMALL,
                  "recipe.num_queries=5", "name=refused")  # fmt: skip
    assert outcome.code == 2
    assert "is of another model" in outcome.err
    assert "q.weight is (6, 48), the model wants (5, 48)" in outcome.err
    assert not list((outputs / "refused").glob("*"))


def make_camvid(root: Path, count: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(count):
            save(root / split / f"{index}.jpg", noise(10 * len(split) + index, 36, 64), quality=95)
            labels = rng.integers(0, 12, (36, 64), dtype=np.uint8)
            save(root / f"{split}annot" / f"{index}.png", labels)
    return root


def make_road_anomaly(root: Path, count: int = 2) -> Path:
    for index in range(count):
        save(root / "images" / f"{index}.jpg", noise(index, 40, 80))
        labels = np.zeros((40, 80), dtype=np.uint8)
        labels[10:20, 10:30] = 2
        save(root / "labels_masks" / f"{index}.png", labels)
    return root


def make_objects(root: Path) -> Path:
    pixels = np.full((20, 20, 4), 200, dtype=np.uint8)
    pixels[:3, :, 3] = 0
    save(root / "box.png", pixels)
    return root


@pytest.fixture
def real(tmp_path: Path) -> dict[str, Path]:
    return {
        "camvid": make_camvid(tmp_path / "camvid"),
        "road_anomaly": make_road_anomaly(tmp_path / "road_anomaly"),
        "outlier_objects": make_objects(tmp_path / "objects"),
    }


def real_overrides(real: dict[str, Path]) -> tuple[str, ...]:
    return (
        "data=camvid", "data.image_size=[32,64]", "recipe.semantic_epochs=1",
        "recipe.exposure_epochs=1", "recipe.batch_size=2", "recipe.num_points=64",
        "recipe.num_queries=6", "trainer.num_workers=0", "evaluator.bits=17",
        *(one for one in SMALL if "backbone" in one),
        *(f"paths.{key}={path}" for key, path in real.items()),
    )  # fmt: skip


@pytest.mark.slow
def test_real_folders_train_and_a_truncated_file_is_skipped_by_choice(
    outputs: Path, real: dict[str, Path], capfd
) -> None:
    broken = real["camvid"] / "train" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:-400])
    outcome = run(capfd, "+experiment=outlier_exposure", *real_overrides(real))
    assert outcome.code == 2
    assert "1.jpg" in outcome.err
    assert "on_broken=skip" in outcome.err
    _nothing_is_half_written(outputs)

    outcome = run(
        capfd, "+experiment=outlier_exposure", *real_overrides(real), "data.on_broken=skip"
    )
    assert outcome.code == 0, outcome.err
    assert "Left out 1 of 3 images" in outcome.out + outcome.err
    folder = only_run(outputs, "outlier_exposure")
    assert "road_anomaly/uno/ap" in metrics_of(folder)["metrics"]
    # What the semantic model was trained on, this one has seen too; where both began is known.
    record = json.loads((folder / "images.json").read_text())
    assert sorted(record["uses"]["training"].values()) == ["0", "2"]
    assert record["unknown"] == []


def _nothing_is_half_written(outputs: Path) -> None:
    left = [p for p in outputs.rglob("*") if p.is_file() and p.suffix not in (".lock", ".db")]
    assert left == []


def drop_label(real: dict[str, Path]) -> None:
    (real["camvid"] / "trainannot" / "2.png").unlink()


def strange_value(real: dict[str, Path]) -> None:
    save(real["road_anomaly"] / "labels_masks" / "1.png", np.full((40, 80), 7, dtype=np.uint8))


def forget_path(real: dict[str, Path]) -> None:
    del real["road_anomaly"]


@pytest.mark.parametrize(
    ("damage", "needles"),
    [
        (drop_label, ["2.jpg", "label"]),
        (strange_value, ["1.png", "7"]),
        (forget_path, ["paths.road_anomaly", "EOMT_ROAD_ANOMALY"]),
    ],
)
def test_bad_data_is_one_message_before_anything_is_written(
    outputs: Path, real: dict[str, Path], capfd, damage, needles: list[str]
) -> None:
    damage(real)
    outcome = run(capfd, "+experiment=outlier_exposure", *real_overrides(real))
    assert outcome.code == 2
    assert outcome.err.count("error:") == 1
    assert "Traceback" not in outcome.err
    assert all(needle in outcome.err for needle in needles)
    _nothing_is_half_written(outputs)


@pytest.mark.parametrize(
    ("typed", "needle"),
    [
        (["+experiment=eim_oo"], "eim_oe"),
        (["+experiment=eim_oe", "outlier_exposure.min_scale=2"], "scale"),
        (["+experiment=eim_oe", "score=best"], "score=best"),
        (["task=evaluate"], "checkpoint="),
        (["+experiment=semantic", "checkpoint=[a,b]"], "several are for task=evaluate"),
        (["task=evaluate", "checkpoint=[]"], "names no model"),
        (["task=evaluate", "checkpoint=nowhere"], "nowhere"),
        (["+experiment=eim_oe", "start_from=heaven"], "semantic or null"),
        (["paths.outputs=null"], "paths.outputs must be a folder, got null."),
        (["name=a/b"], "name='a/b' must be a folder's name"),
        (["-m", "name=..", "seed=0,1"], "name='..' must be a folder's name"),
        (["data.image_size=[64]"], "data.image_size must hold 2 numbers, got [64]."),
        (["data.train=null"], "data.train is null: there is nothing to learn from"),
    ],
)
def test_a_mistyped_command_is_one_message(outputs: Path, capfd, typed, needle: str) -> None:
    outcome = run(capfd, *typed)
    assert outcome.code != 0
    assert needle in outcome.err
    assert "Traceback" not in outcome.err
    _nothing_is_half_written(outputs)


def test_a_job_of_a_grid_that_is_wrong_is_one_line_and_the_others_go_on(
    outputs: Path, capfd
) -> None:
    outcome = run(capfd, "-m", "task=describe", "recipe.num_queries=0,4,-1", "backbone=mini")
    assert outcome.code == 2
    assert "error: job 0 refused: recipe.num_queries must be at least 1, got 0." in outcome.err
    assert "error: job 2 refused: recipe.num_queries must be at least 1, got -1." in outcome.err
    assert outcome.out.count("trainable=all") == 1
    assert "Traceback" not in outcome.err


def test_a_sweep_under_torchrun_is_one_message(capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = run(capfd, "-m", "+sweep=eim_oe_tpe")
    assert outcome.code == 2
    assert "without torchrun" in outcome.err


@pytest.mark.parametrize("typed", [["--help"], ["+experiment=eim_oe", "--cfg", "job"]])
def test_help_and_cfg_answer_without_torch(typed: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "eomt_exp", *typed],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "mlflow", "timm", "accelerate", "matplotlib", "optuna"}
    assert "eim_oe" in result.stdout


UNSCORED = (*SMALL, "recipe.semantic_epochs=6", "recipe.validate_every=0", "data.train.length=24")
LONG = ("+experiment=semantic", *UNSCORED, "scorer=[msp]", "score=msp")


@pytest.mark.slow
def test_killed_and_typed_again_goes_on_in_the_same_run(outputs: Path, capfd) -> None:
    process = start(*LONG)
    states = (outputs / "semantic").glob
    wait_for(lambda: list(states("*/checkpoints/step-00000012")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = only_run(outputs, "semantic")
    run_id = (folder / "mlflow_run_id").read_text()
    assert not (folder / "metrics.json").exists()

    outcome = run(capfd, *LONG)
    assert outcome.code == 0, outcome.err
    assert "going on with" in outcome.out
    assert only_run(outputs, "semantic") == folder
    assert (folder / "mlflow_run_id").read_text() == run_id
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert steps == sorted(steps)
    logged = [line for line in steps if line < 36]
    assert len(logged) == len(set(logged))
    _equals_an_unbroken_run(folder, outputs.parent / "unbroken", capfd)

    again = f"hydra.run.dir={folder}"
    assert "complete already" in run(capfd, *LONG, again).out
    outcome = run(capfd, *LONG, again, "optim.lr=0.5")
    assert outcome.code == 2
    assert "optim.lr: 0.001 -> 0.5" in outcome.err


@pytest.mark.slow
def test_killed_while_the_semantic_model_trains(outputs: Path, capfd) -> None:
    typed = ("+experiment=query_only", *UNSCORED)
    process = start(*typed)
    wait_for(lambda: list(outputs.glob("semantic/*/checkpoints/step-00000012")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    outcome = run(capfd, *typed)
    assert outcome.code == 0, outcome.err
    assert "going on with" in outcome.out
    assert len(list((outputs / "query_only").glob("*"))) == 1
    assert "synth_anomaly/anomaly_head/ap" in metrics_of(only_run(outputs, "query_only"))["metrics"]
    assert not list((outputs / ".unfinished").iterdir())


def _equals_an_unbroken_run(folder: Path, elsewhere: Path, capfd) -> None:
    from safetensors.torch import load_file

    assert run(capfd, *LONG, f"paths.outputs={elsewhere}").code == 0
    (other,) = (elsewhere / "semantic").glob("*/model.safetensors")
    broken, whole = load_file(folder / "model.safetensors"), load_file(other)
    assert all((broken[name] == whole[name]).all() for name in whole)


@pytest.mark.slow
def test_sigterm_closes_the_run_as_killed(outputs: Path) -> None:
    process = start(*LONG, "recipe.semantic_epochs=500")
    wait_for(lambda: list((outputs / "semantic").glob("*/checkpoints/step-*")))
    process.terminate()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "goes on from its last checkpoint" in text
    assert mlflow_run(outputs, only_run(outputs, "semantic")).info.status == "KILLED"


@pytest.mark.slow
def test_two_processes_make_one_run(outputs: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "-m", "eomt_exp", "+experiment=eim_oe", *SMALL],
        cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    folder = only_run(outputs, "eim_oe")
    assert (folder / ".hydra").is_dir()
    assert result.stdout.count("training it in") == 1
    # All images were seen once, whoever saw them.
    single = metrics_of(folder)["metrics"]
    pixels = single["synth_anomaly/uno/positives"] + single["synth_anomaly/uno/negatives"]
    images = SyntheticBenchmark("anomaly", length=6)
    assert pixels == sum((images[i].anomaly != VOID).sum() for i in range(6))


def test_a_workers_death_does_not_hide_that_the_command_was_stopped(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    closed = []

    def killed_with_its_workers(cfg: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)  # the same wish again, while a run is closed
            closed.append(True)
            raise RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Terminated."
            ) from None

    monkeypatch.setattr(cli, "_run", killed_with_its_workers)
    outcome = run(capfd, f"paths.outputs={tmp_path}")
    assert outcome.code == 143
    assert "stopped" in outcome.err
    assert closed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_an_interrupt_that_python_swallows_ends_training_after_its_step(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], outputs: Path
) -> None:
    class Interrupted:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)  # the handler raises here, and nobody hears it

    steps, unhurt = [], Trainer._step

    def step(trainer: Trainer, batch: object) -> object:
        steps.append(batch)
        Interrupted()
        return unhurt(trainer, batch)

    monkeypatch.setattr(Trainer, "_step", step)
    outcome = run(capfd, *LONG)
    assert outcome.code == 143
    assert len(steps) == 1
