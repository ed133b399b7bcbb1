"""A training as a trial: what the study hears of it, and when it has to end."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from eomt_exp.contracts import TrialPruned
from eomt_exp.jobs import STORAGE_ENV, TRIAL_ENV
from eomt_exp.studies.storage import open_storage
from eomt_exp.studies.trial import PRUNED, Trial, current_trial, forget_pruning

MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 0}
NO_PRUNER = {"_target_": "optuna.pruners.NopPruner"}


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

    def settings(self, **changes: Any) -> dict[str, Any]:
        """What a sweeper puts into the environment."""
        found = {"storage": self.url, "study": "eim", "id": self.id, "number": 1}
        return {**found, "objective": ["val/ap"], "pruner": MEDIAN, **changes}

    def trial(self, **changes: Any) -> Trial:
        return Trial(**self.settings(**changes))

    @property
    def reported(self) -> dict[int, float]:
        """What stands on disk, read afresh."""
        return open_storage(self.url).get_trial(self.id).intermediate_values


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.delenv(STORAGE_ENV, raising=False)
    return Study(tmp_path)


def report(trial: Trial, folder: Path, ap: float, epoch: int) -> None:
    trial.report({"val/ap": ap, "val/miou": 0.5}, folder, epoch, epochs=5, step=10 * epoch)


def test_a_job_learns_from_its_environment_which_trial_it_is(study, monkeypatch) -> None:
    monkeypatch.delenv(TRIAL_ENV, raising=False)
    assert current_trial() is None
    monkeypatch.setenv(TRIAL_ENV, json.dumps(study.settings()))
    assert current_trial() == study.trial()


def test_every_validation_is_reported_to_the_study(study, tmp_path) -> None:
    for epoch, ap in ((1, 0.2), (2, 0.3)):
        report(study.trial(pruner=NO_PRUNER), tmp_path, ap, epoch)
    assert study.reported == {1: 0.2, 2: 0.3}


def test_a_training_that_goes_on_does_not_report_an_epoch_twice(study, tmp_path) -> None:
    report(study.trial(pruner=NO_PRUNER), tmp_path, 0.2, 1)
    report(study.trial(pruner=NO_PRUNER), tmp_path, 0.7, 1)  # another process, after a kill
    report(study.trial(pruner=NO_PRUNER), tmp_path, 0.8, 2)
    assert study.reported == {1: 0.2, 2: 0.8}


def test_a_trial_below_the_median_ends_and_its_folder_says_so(study, tmp_path) -> None:
    trial = study.trial(pruner=MEDIAN | {"n_warmup_steps": 2})
    report(trial, tmp_path, 0.2, 1)
    assert not (tmp_path / PRUNED).exists()
    with pytest.raises(TrialPruned, match=r"pruned after epoch 2 of 5: val/ap 0\.310"):
        report(trial, tmp_path, 0.31, 2)
    assert study.reported == {1: 0.2, 2: 0.31}
    found = json.loads((tmp_path / PRUNED).read_text())
    assert found == {"epoch": 2, "of": 5, "step": 20, "metric": "val/ap", "value": 0.31}
    with pytest.raises(TrialPruned, match="pruned after epoch 2"):
        trial.stay_pruned(tmp_path)  # killed before the study knew of it, and asked for again
    assert forget_pruning(tmp_path)
    assert not forget_pruning(tmp_path)
    trial.stay_pruned(tmp_path)


def test_nothing_is_saved_by_pruning_after_the_last_epoch(study, tmp_path) -> None:
    report(study.trial(), tmp_path, 0.0, 5)
    assert study.reported == {5: 0.0}


def test_of_two_objectives_neither_prunes(tmp_path) -> None:
    study = Study(tmp_path, ("maximize", "maximize"))
    report(study.trial(objective=["val/ap", "val/miou"]), tmp_path, 0.0, 1)
    assert study.reported == {}


def test_a_study_out_of_reach_costs_a_warning_and_not_the_training(study, tmp_path, caplog) -> None:
    (tmp_path / "a file").write_text("")
    away = f"journal://{tmp_path / 'a file' / 'study.log'}"
    for trial in (study.trial(storage=away), study.trial(study="renamed")):
        with caplog.at_level(logging.WARNING):
            report(trial, tmp_path, 0.0, 1)
        assert "has not got epoch 1 of trial 1" in caplog.text
        caplog.clear()
    assert study.reported == {}


RANKS = """
import os, sys
from pathlib import Path
from accelerate import PartialState
PartialState(cpu=True)
from eomt_exp.studies.trial import current_trial
try:
    current_trial().report({"val/ap": 0.1}, Path(sys.argv[1]), epoch=2, epochs=5, step=20)
    print("not pruned", flush=True)
except Exception as error:
    print(f"rank {os.environ['RANK']}: {type(error).__name__} {error}", flush=True)
PartialState().destroy_process_group()  # as cli.py does: left to the exit, it may abort a rank
"""


@pytest.mark.slow
def test_all_ranks_end_together_and_one_of_them_reports(study, tmp_path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script), str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=True,
        env=os.environ | {TRIAL_ENV: json.dumps(study.settings()), "ACCELERATE_USE_CPU": "1"},
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    assert "rank 0: TrialPruned pruned after epoch 2" in done.stdout
    assert "rank 1: TrialPruned pruned after epoch 2" in done.stdout
    assert study.reported == {2: 0.1}
    assert json.loads((tmp_path / PRUNED).read_text())["epoch"] == 2
