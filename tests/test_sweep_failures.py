"""What happens to studies: pruning, kills at any moment, several controllers, bad trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState

from eomt_exp.paths import asset_dir
from eomt_exp.studies.trial import PRUNED
from tests.command_line import ROOT, run, wait_for
from tests.sweep_commands import (
    QUICK_STUDY,
    SMALL_STUDY,
    Command,
    ended,
    finished,
    is_training,
    points,
    recorded,
    run_beside,
    trials_of,
    validated_steps,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes through /proc"),
]
RATES = "optim.lr=tag(log, interval(1e-4, 1e-2))"
EPOCHS = 8  # enough to be killed in the middle
LONG = f"trainer.epochs={EPOCHS}"


def named(study: str, n_trials: int, *overrides: str) -> tuple[str, ...]:
    return (*QUICK_STUDY, *overrides, f"hydra.sweeper.study={study}",
            f"hydra.sweeper.n_trials={n_trials}")  # fmt: skip


# Who waits for a hundred rivals before any may go on, ends all after their first epoch.
SURE = ("hydra/sweeper/pruner=successive_halving", "hydra.sweeper.pruner.bootstrap_count=100",
        "trainer.epochs=2", RATES)  # fmt: skip
LAUNCHERS = {
    "basic": (1, ()),
    "process": (1, ("hydra/launcher=process",)),
    # With one job joblib would start no process.
    "joblib": (2, ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2")),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_pruned_trial_ends_early_and_says_so_everywhere(
    study_outputs, capfd, launcher: str
) -> None:
    if launcher == "joblib":
        reason = 'needs the extra joblib: pip install -e ".[joblib]"'
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason=reason)
    study = f"pruned_{launcher}"
    n_trials, how = LAUNCHERS[launcher]
    overrides = named(study, n_trials, *SURE, *how)
    outcome = (
        run(capfd, *overrides) if launcher == "basic" else run_beside(study_outputs, *overrides)
    )
    assert outcome.code == 0, outcome.err
    assert f"{n_trials} trials: {n_trials} pruned (100 % pruned)" in outcome.out
    folder = study_outputs / "studies" / study
    found = {run.data.tags["optuna.trial"]: run for run in recorded(study_outputs, study).children}
    trials = trials_of(folder)
    assert [t.state for t in trials] == [TrialState.PRUNED] * n_trials
    for trial in trials:
        job = folder / f"{trial.number:03d}"
        note = json.loads((job / PRUNED).read_text())
        assert (note["epoch"], note["metric"]) == (1, "val/ap")
        assert trial.intermediate_values == {1: pytest.approx(note["value"])}
        assert len(validated_steps(job)) == 1
        assert list(job.glob("checkpoints/step-*")), "it can be gone on with by hand"
        run_of_mlflow = found[str(trial.number)]
        assert run_of_mlflow.data.tags["optuna.state"] == "PRUNED"
        assert run_of_mlflow.info.status == "FINISHED"


def assert_gone_on_with(folder: Path) -> None:
    """That a run was killed and still has every epoch once."""
    steps = validated_steps(folder)
    assert len(steps) == len(set(steps)) == EPOCHS


def test_a_killed_controller_loses_nothing_and_doubles_nothing(study_outputs, capfd) -> None:
    overrides = named("killed", 2, RATES, LONG)
    folder = study_outputs / "studies" / "killed"
    with Command(study_outputs, *overrides) as command:
        wait_for(lambda: is_training(folder / "001") or command.process.poll() is not None)
        command.process.kill()
        assert command.wait() == -signal.SIGKILL, command.text
    stopped = trials_of(folder)
    assert [t.state for t in stopped] == [TrialState.COMPLETE, TrialState.RUNNING]

    outcome = run(capfd, *overrides)
    assert outcome.code == 0, outcome.err
    assert "1 done before" in outcome.out
    assert f"going on with {folder / '001'}" in outcome.out
    trials = trials_of(folder)
    assert trials[1].state is TrialState.FAIL
    retries = [t for t in trials if t.system_attrs.get("retry_history") == [1]]
    assert [t.params for t in retries] == [stopped[1].params]
    assert len(ended(trials)) == len(points(ended(trials))) == 2
    assert_gone_on_with(folder / "001")
    found = recorded(study_outputs, "killed")
    assert found.parent.info.status == "FINISHED"
    assert [run.info.status for run in found.children] == ["FINISHED"] * 2


def test_a_killed_trial_costs_one_try(study_outputs) -> None:
    overrides = named("unlucky", 1, RATES, LONG, "hydra/launcher=process")
    folder = study_outputs / "studies" / "unlucky"
    with Command(study_outputs, *overrides) as command:
        wait_for(lambda: is_training(folder / "000"))
        (job,) = command.jobs()
        os.kill(job, signal.SIGKILL)
        text = finished(command)
    assert "it is tried again" in text
    trials = trials_of(folder)
    assert trials[0].state is TrialState.FAIL
    assert "SIGKILL" in trials[0].user_attrs["reason"]
    (retry,) = ended(trials)
    assert retry.params == trials[0].params
    assert_gone_on_with(folder / "000")
    found = recorded(study_outputs, "unlucky")
    assert found.parent.info.status == "FINISHED"
    assert [run.info.status for run in found.children] == ["FINISHED"]


@pytest.mark.parametrize("launcher", ["basic", "process"])
def test_a_terminated_study_leaves_no_process_and_says_that_it_was_killed(
    study_outputs, launcher: str
) -> None:
    study = f"terminated_{launcher}"
    overrides = named(study, 2, RATES, "trainer.epochs=500", f"hydra/launcher={launcher}")
    folder = study_outputs / "studies" / study
    with Command(study_outputs, *overrides) as command:
        wait_for(lambda: is_training(folder / "000"))
        assert len(command.family()) >= (2 if launcher == "process" else 1)
        command.process.send_signal(signal.SIGTERM)
        assert command.wait(60) == 143, command.text
        wait_for(lambda: not command.family(), 30)
        assert "stopped; the same command goes on" in command.text
    found = recorded(study_outputs, study)
    assert found.parent.info.status == "KILLED"
    assert [run.info.status for run in found.children] == ["KILLED"]


def test_two_first_controllers_at_once_share_one_study(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EOMT_OUTPUTS", str(tmp_path))  # no study, no MLflow, no semantic EoMT
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rates = "optim.lr=choice(1e-4,2e-4,4e-4,8e-4)"
    overrides = ("-m", "+sweep=eim_oe_tpe", *SMALL_STUDY, "trainer.epochs=1", rates,
             "hydra.sweeper.study=shared", "hydra.sweeper.n_trials=4")  # fmt: skip
    with Command(tmp_path, *overrides) as one, Command(tmp_path, *overrides) as other:
        texts = [finished(one), finished(other)]
    trials = ended(trials_of(tmp_path / "studies" / "shared"))
    assert len(trials) == len(points(trials)) == 4, texts
    found = recorded(tmp_path, "shared")
    assert len({run.data.tags["pid"] for run in found.children}) == 2, "one did all the work"
    assert found.parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in found.children} == {
        found.parent.info.run_id
    }
    assert len(found.children) == 4
    assert sum("training it in" in text for text in texts) == 1, "of the semantic EoMT"


BAD = {
    "a loss that raises": ("optim.lr=choice(-1,-2,-3)", "the study ends with its first trial"),
    "NaN": ("tuning.pasted_validation.paste.paste_probability=0", "val/ap is NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_study_that_only_fails_ends_and_says_why(study_outputs, capfd, case: str) -> None:
    word, said = BAD[case]
    study = f"bad_{list(BAD).index(case)}"
    outcome = run(capfd, *named(study, 1, "trainer.epochs=1", RATES, word))
    assert outcome.code == 2
    assert said in outcome.err
    trials = trials_of(study_outputs / "studies" / study)
    assert [t.state for t in trials] == [TrialState.FAIL]
    assert recorded(study_outputs, study).parent.info.status == "FAILED"


def test_a_training_that_diverges_costs_one_trial(study_outputs, capfd) -> None:
    rates = ("hydra/sweeper/sampler=grid", "optim.lr=choice(1e-3, 4e9)")
    overrides = named("diverged", 2, *rates, "hydra.sweeper.try_defaults=false", "trainer.epochs=2")
    outcome = run(capfd, *overrides)
    assert outcome.code == 0, outcome.err
    trials = trials_of(study_outputs / "studies" / "diverged")
    assert {(t.params["optim.lr"], t.state) for t in trials} == {
        (4e9, TrialState.FAIL), (1e-3, TrialState.COMPLETE),
    }  # fmt: skip
    assert "not finite" in outcome.out


COMPOSE_ALL = """
import contextlib, io, sys
from pathlib import Path
import eomt_exp
from eomt_exp import cli
from eomt_exp.paths import asset_dir
print(Path(eomt_exp.__file__).parent)
folders = {"experiment": asset_dir("conf") / "experiment", "sweep": asset_dir("sweeps")}
for group, folder in folders.items():
    for file in sorted(folder.glob("*.yaml")):
        text = io.StringIO()
        sys.argv = ["eomt_exp", f"+{group}={file.stem}", "--cfg", "all"]
        with contextlib.redirect_stdout(text):
            cli.main()
        sweeper = "OptunaSweeper" in text.getvalue()
        print(f"{group}/{file.stem}", sweeper)
sys.argv = ["eomt_exp", "--help"]
cli.main()
"""


def python(*arguments: str, **given) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, **given
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_composes_every_experiment_and_study_from_another_folder(tmp_path) -> None:
    pytest.importorskip(
        "hatchling", reason="builds the wheel without network: pip install hatchling"
    )
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-input")
    built, installed = tmp_path / "built", tmp_path / "installed"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    python(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(built), cwd=ROOT)
    (wheel,) = built.glob("*.whl")
    python(*pip, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel))
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    text = python("-c", COMPOSE_ALL, cwd=elsewhere, env=environment)
    place, *rest = text.splitlines()
    assert Path(place) == installed / "eomt_exp"
    folders = {"experiment": asset_dir("conf") / "experiment", "sweep": asset_dir("sweeps")}
    for group, folder in folders.items():
        for file in folder.glob("*.yaml"):
            assert f"{group}/{file.stem} {group == 'sweep'}" in rest
    studies = ", ".join(sorted(path.stem for path in asset_dir("sweeps").glob("*.yaml")))
    assert f"sweep: {studies}" in text  # of --help
    plugins = python("-m", "eomt_exp", "--info", "plugins", cwd=elsewhere, env=environment)
    assert {"OptunaSweeper", "ProcessLauncher"} <= set(plugins.split())
