"""A bug is no wrong input: it is a traceback, and in a study one failed trial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState
from torch._utils import ExceptionWrapper

from eomt_exp import cli
from eomt_exp.contracts import DataError, MaskOutput, UserError
from eomt_exp.scorers.msp import MSP
from tests.command_line import run
from tests.sweep_commands import QUICK_STUDY, trials_of

ONE_RUN = [one for one in QUICK_STUDY if one != "-m" and not one.startswith("hydra")]
BROADCASTING = "operands could not be broadcast together"


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Plant a broadcasting error, a ValueError of numpy, in the first call of a scorer."""
    right, calls = MSP.__call__, []

    def broken(self: MSP, output: MaskOutput) -> object:
        calls.append(len(calls))
        return right(self, output) if len(calls) > 1 else np.zeros(3) + np.zeros(4)

    monkeypatch.setattr(MSP, "__call__", broken)
    return calls


def test_a_bug_in_a_scorer_is_a_traceback(study_outputs: Path, bug: list[int], capfd) -> None:
    outcome = run(capfd, *ONE_RUN, "tracking=none")
    assert bug
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert "in broken" in outcome.err
    assert f"ValueError: {BROADCASTING}" in outcome.err
    assert "error:" not in outcome.err.replace("Error:", "")


@pytest.mark.slow
def test_in_a_study_a_bug_costs_its_trial_and_the_next_one_runs(
    study_outputs: Path, bug: list[int], capfd
) -> None:
    space = ("optim.lr=choice(1e-3, 1e-4)", "hydra.sweeper.study=planted")
    outcome = run(capfd, *QUICK_STUDY, *space, "hydra.sweeper.n_trials=2")
    assert outcome.code == 0, outcome.err
    failed, complete = trials_of(study_outputs / "studies" / "planted")
    assert (failed.state, complete.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert BROADCASTING in failed.user_attrs["reason"]
    assert f"ValueError: {BROADCASTING}" in outcome.out


@pytest.mark.parametrize("kind", [UserError, DataError])
def test_a_wrong_input_in_a_loaders_worker_is_one_line_too(kind: type[UserError], capfd) -> None:
    try:
        raise kind("3.png: class 12")
    except kind:
        as_from_a_worker = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(SystemExit, match="2"), cli.user_errors_in_one_line():
        as_from_a_worker.reraise()
    assert capfd.readouterr().err == "error: 3.png: class 12\n"
