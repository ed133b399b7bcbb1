"""A training as a trial: what the study hears of it, and when it has to end."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from eomt_exp.studies import trial as module
from eomt_exp.studies.storage import open_storage
from eomt_exp.studies.trial import (
    PRUNED,
    VARIABLE,
    NullTrial,
    TrialError,
    current_trial,
    forget_pruning,
)

MEDIAN = {"name": "median", "n_startup_trials": 1, "n_warmup_steps": 0}
HERE = {"host": socket.gethostname(), "pid": os.getpid()}
LOOKS = ("val/miou", "val/ap")


class Study:
    """A study on disk with one good trial behind it, and the next one running."""

    def __init__(self, folder: Path, directions: tuple[str, ...] = ("maximize",)) -> None:
        self.url = f"journal://{folder / 'study.log'}"
        study = optuna.create_study(
            study_name="eim", storage=open_storage(self.url), directions=list(directions)
        )
        if len(directions) == 1:
            good = study.ask()
            for epoch in range(1, 6):
                good.report(0.9, epoch)
            study.tell(good, 0.9)
        self.id = study.ask()._trial_id

    def told(self, **changes: Any) -> dict[str, Any]:
        """What a sweeper would put into the environment."""
        told = {"storage": self.url, "study": "eim", "id": self.id, "number": 1}
        told |= {"objective": ["val/ap"], "pruner": MEDIAN, "controller": HERE}
        return told | changes

    @property
    def trial(self) -> optuna.trial.FrozenTrial:
        """As it stands on disk, read afresh."""
        return open_storage(self.url).get_trial(self.id)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def as_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., NullTrial]:
    def begin(told: dict[str, Any], epochs: int = 5) -> NullTrial:
        monkeypatch.setenv(VARIABLE, json.dumps(told))
        trial = current_trial()
        trial.expect(tmp_path, epochs, LOOKS)
        return trial

    return begin


def test_outside_a_study_nobody_is_told_and_nothing_ends(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with current_trial() as trial:
        assert not trial.is_of_study
        trial.expect(tmp_path, 5, ())
        trial.look({}, 1)
    assert list(tmp_path.iterdir()) == []
    assert (trial.run_name, trial.parent_run_id, trial.experiment) == (None, None, None)


def test_every_look_is_on_the_record_of_the_study(study, as_trial) -> None:
    trial = as_trial(study.told(pruner={"name": "none"}))
    for epoch, ap in ((1, 0.2), (2, 0.3)):
        trial.look({"val/ap": ap, "val/miou": 0.5}, epoch)
    assert study.trial.intermediate_values == {1: 0.2, 2: 0.3}


def test_a_training_that_goes_on_does_not_report_an_epoch_twice(study, as_trial) -> None:
    told = study.told(pruner=None)
    as_trial(told).look({"val/ap": 0.2}, 1)
    again = as_trial(told)  # another process, after a kill
    again.look({"val/ap": 0.7}, 1)
    again.look({"val/ap": 0.8}, 2)
    assert study.trial.intermediate_values == {1: 0.2, 2: 0.8}


def test_a_trial_below_the_median_ends_and_its_folder_says_so(study, as_trial, tmp_path) -> None:
    trial = as_trial(study.told(pruner=MEDIAN | {"n_warmup_steps": 1}))
    trial.look({"val/ap": 0.2}, 1, step=10)
    assert not (tmp_path / PRUNED).exists()
    with pytest.raises(optuna.TrialPruned, match=r"pruned after epoch 2 of 5: val/ap 0\.310"):
        trial.look({"val/ap": 0.31}, 2, step=20)
    assert study.trial.intermediate_values == {1: 0.2, 2: 0.31}


def test_what_was_found_stays_in_the_folder_until_it_goes_on(study, as_trial, tmp_path) -> None:
    with pytest.raises(optuna.TrialPruned):
        as_trial(study.told()).look({"val/ap": 0.31}, 1, step=20)
    found = json.loads((tmp_path / PRUNED).read_text())
    assert found == {"epoch": 1, "of": 5, "step": 20, "metric": "val/ap", "value": 0.31}
    assert forget_pruning(tmp_path)
    assert not forget_pruning(tmp_path)


def test_of_two_objectives_neither_prunes(tmp_path, as_trial) -> None:
    study = Study(tmp_path, ("maximize", "maximize"))
    trial = as_trial(study.told(objective=["val/ap", "val/miou"]))
    trial.look({"val/ap": 0.0, "val/miou": 0.0}, 1)
    assert study.trial.intermediate_values == {}


@pytest.mark.parametrize("when", ["before", "while"])
def test_an_objective_that_no_look_gives_says_what_to_type(study, as_trial, when) -> None:
    words = r"val/fpr95.*looks: val/ap, val/miou.*trainer\.validate_every=1 benchmark@tuning="
    if when == "before":
        with pytest.raises(TrialError, match=words):
            as_trial(study.told(objective=["val/fpr95"]))
    else:
        trial = as_trial(study.told())
        trial.objective = ["val/fpr95"]
        with pytest.raises(TrialError, match=words):
            trial.look({"val/ap": 0.5, "val/miou": 0.5}, 1)


def test_a_study_out_of_reach_costs_a_warning_and_not_the_training(
    study, as_trial, tmp_path, caplog
) -> None:
    (tmp_path / "a file").write_text("")
    trial = as_trial(study.told(storage=f"journal://{tmp_path / 'a file' / 'study.log'}"))
    with caplog.at_level(logging.WARNING):
        trial.look({"val/ap": 0.0}, 1)
    assert "has not got epoch 1 of trial 1" in caplog.text
    study_again = as_trial(study.told(study="renamed"))
    study_again.look({"val/ap": 0.0}, 1)
    assert study.trial.intermediate_values == {}


def test_a_job_of_its_own_process_says_that_it_lives_until_it_ends(
    study, as_trial, monkeypatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    with as_trial(study.told(controller=HERE | {"pid": 1})):
        first = _waited_for(study, lambda attrs: "alive" in attrs)
        assert {k: first["job_owner"][k] for k in HERE} == HERE
        assert first["job_owner"]["began"] is not None or not Path("/proc/self/stat").exists()
        _waited_for(study, lambda attrs: attrs["alive"] > first["alive"])
    last = study.trial.user_attrs["alive"]
    time.sleep(0.1)
    assert study.trial.user_attrs["alive"] == last


def _waited_for(study: Study, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The trial's attributes once they are so; AssertionError after 10 s."""
    for _ in range(200):
        if done(attrs := study.trial.user_attrs):
            return attrs
        time.sleep(0.05)
    raise AssertionError(f"only {study.trial.user_attrs}")


def test_inside_the_controller_there_is_no_second_sign_of_life(study, as_trial) -> None:
    with as_trial(study.told()) as trial:
        trial.look({"val/ap": 0.95}, 1)
    assert "job_owner" not in study.trial.user_attrs


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"storage": "x", "study": "y", "id": "z"}'])
def test_an_environment_that_cannot_be_read_is_quoted(monkeypatch, text) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(TrialError, match="EOMT_TRIAL is set by the sweeper"):
        current_trial()


def test_a_trial_ends_in_one_line(study, as_trial) -> None:
    told = study.told(objective=["val/ap", "val/x"], pruner=None)
    assert as_trial(told).in_words({"val/ap": 0.5}) == "trial 1 of eim: val/ap 0.500, no val/x"


RANKS = """
import os, sys
from pathlib import Path
from accelerate import PartialState
PartialState(cpu=True)
from eomt_exp.studies.trial import current_trial
with current_trial() as trial:
    trial.expect(Path(sys.argv[1]), 5, ["val/ap"])
    try:
        trial.look({"val/ap": 0.1}, 2)
        print("not pruned", flush=True)
    except Exception as error:
        print(f"rank {os.environ['RANK']}: {type(error).__name__} {error}", flush=True)
"""


@pytest.mark.slow
def test_all_ranks_end_together_and_one_of_them_speaks(study, tmp_path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script), str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=True,
        env=os.environ | {VARIABLE: json.dumps(study.told()), "ACCELERATE_USE_CPU": "1"},
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    assert "rank 0: TrialPruned pruned after epoch 2" in done.stdout
    assert "rank 1: TrialPruned pruned after epoch 2" in done.stdout
    assert study.trial.intermediate_values == {2: 0.1}
    assert study.trial.user_attrs["job_owner"]["pid"] not in (os.getpid(), 1)
    assert json.loads((tmp_path / PRUNED).read_text())["epoch"] == 2
