"""The trials of a study: what is claimed, counted and retried, whoever is killed and whenever."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from eomt_exp.contracts import UserError
from eomt_exp.files import LOCK, hold_lock, is_locked
from eomt_exp.studies.ledger import ClaimedTrial, Ledger
from tests.study_controller import ledger_of

CONTROLLER = Path(__file__).with_name("study_controller.py")


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return f"journal://{tmp_path}/studies/toy/study.log"


def start(url: str, n_trials: int, seconds: float, space: str = "float") -> subprocess.Popen:
    words = [url, str(n_trials), str(seconds), space, "random"]
    return subprocess.Popen(
        [sys.executable, str(CONTROLLER), *words], stdout=subprocess.PIPE, text=True
    )


def killed_in_its_first_trial(url: str) -> dict:
    """The values of a trial whose controller was killed while it ran."""
    child = start(url, 6, 60)
    assert child.stdout
    line = child.stdout.readline()
    time.sleep(0.2)  # so that it reports
    child.kill()
    child.wait()
    return json.loads(line.split(" ", 3)[3])


def claim(ledger: Ledger) -> ClaimedTrial:
    claimed = ledger.claim()
    assert claimed
    return claimed


def run_out(ledger: Ledger) -> list[ClaimedTrial]:
    """All that is left, each with a result."""
    trials = []
    while (claimed := ledger.claim()) is not None:
        trials.append(claimed)
        ledger.complete(claimed, [0.5])
    return trials


def points(ledger: Ledger) -> list[str]:
    return [json.dumps(row.params, sort_keys=True) for row in ledger.rows()]


def test_a_study_has_its_trials_and_then_nothing_is_left(journal: str) -> None:
    with ledger_of(journal, 4) as ledger:
        trials = run_out(ledger)
    assert [t.folder for t in trials] == ["000", "001", "002", "003"]
    with ledger_of(journal, 4) as again:
        assert again.claim() is None
        assert [row.state for row in again.rows()] == ["complete"] * 4
    with ledger_of(journal, 5) as longer:  # the budget may change
        assert [t.number for t in run_out(longer)] == [4]


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_a_killed_trial_goes_on_in_its_folder_with_its_values(kind: str, tmp_path: Path) -> None:
    url = f"{kind}://{'/' if kind == 'sqlite' else ''}{tmp_path}/study"
    values = killed_in_its_first_trial(url)
    with ledger_of(url, 3) as ledger:
        claimed = claim(ledger)
        assert (claimed.folder, claimed.values, claimed.tries) == ("000", values, 2)
        # What it reported before it was killed is not lost to the pruner.
        assert ledger.study.trials[claimed.number].intermediate_values == {1: 0.1}
        ledger.complete(claimed, [1.0])
        run_out(ledger)
        assert [row.folder for row in ledger.rows()] == ["000", "002", "003"]
        assert len(set(points(ledger))) == 3


def test_a_kill_between_the_retry_and_the_end_loses_and_doubles_nothing(
    journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ledger_of(journal, 2, max_retries=1)
    claimed = claim(first)
    with monkeypatch.context() as patch:
        patch.setattr(first, "_end", lambda *_: None)  # killed right there
        first.fail(claimed, "out of memory", retry=True)
    first.__exit__()
    assert first.rows() == []
    with ledger_of(journal, 2, max_retries=1) as second:
        assert [t.folder for t in run_out(second)] == ["000", "002"]
        assert second.rows()[0].params == claimed.values
        assert second.study.trials[0].state is TrialState.FAIL


@pytest.mark.parametrize("space", ["float", "discrete"])
def test_three_controllers_at_once_end_at_exactly_n_trials(space: str, journal: str) -> None:
    ledgers = [ledger_of(journal, 10, space) for _ in range(3)]

    def work(ledger: Ledger) -> int:
        with ledger:
            return len(run_out(ledger))

    with ThreadPoolExecutor(3) as pool:
        done = sum(pool.map(work, ledgers))
    assert len(ledgers[0].rows()) == done == 10
    assert len(set(points(ledgers[0]))) == 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_three_processes_at_once_end_at_exactly_n_trials(kind: str, tmp_path: Path) -> None:
    url = f"{kind}://{'/' if kind == 'sqlite' else ''}{tmp_path}/study"
    children = [start(url, 10, 0.02, "discrete") for _ in range(3)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    ledger = ledger_of(url, 10, "discrete")
    assert len(ledger.rows()) == len(set(points(ledger))) == 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_kills_at_any_instant_cost_nothing_but_time(kind: str, tmp_path: Path) -> None:
    url = f"{kind}://{'/' if kind == 'sqlite' else ''}{tmp_path}/study"
    chance = random.Random(3)
    for _ in range(6):
        child = start(url, 12, 0.05)
        assert child.stdout
        child.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.4))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    with ledger_of(url, 12) as ledger:
        run_out(ledger)
        rows = ledger.rows()
        assert [row.state for row in rows] == ["complete"] * 12
        assert len(set(points(ledger))) == 12
        assert len({row.folder for row in rows}) == 12


def test_a_trial_killed_before_it_had_values_makes_room(journal: str) -> None:
    def interrupted(trial: object) -> dict:
        raise KeyboardInterrupt

    ledger = ledger_of(journal, 2, suggest=interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.claim()
    with ledger_of(journal, 2) as second:
        assert [t.folder for t in run_out(second)] == ["001", "002"]


def test_what_a_closed_ledger_left_open_is_retried(journal: str) -> None:
    with ledger_of(journal, 2) as first:
        left = claim(first)
    with ledger_of(journal, 2) as second:
        assert claim(second).values == left.values


def test_trials_of_others_that_live_are_left_alone(journal: str) -> None:
    with ledger_of(journal, 2) as first, ledger_of(journal, 2) as second:
        claimed = claim(first)
        assert second.open_elsewhere() == 1
        assert first.open_elsewhere() == 0
        assert [t.number for t in run_out(second)] == [1]
        first.complete(claimed, [1.0])
        assert second.open_elsewhere() == 0


def test_a_trial_whose_own_process_lives_is_not_retried(journal: str) -> None:
    with ledger_of(journal, 1) as first:
        claimed = claim(first)
        job = hold_lock(first.folder / claimed.folder / LOCK)
    assert job
    with ledger_of(journal, 1) as second:  # its controller is gone
        assert second.claim() is None
        job.release()
        assert claim(second).tries == 2


def test_a_lock_outlives_neither_its_process_nor_that_by_its_children(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom eomt_exp.files import hold_lock\n"
        "lock = hold_lock(Path(sys.argv[1]))\nprint('held', flush=True)\n"
        "os.fork() or time.sleep(60)\ntime.sleep(60)\n"  # as a data loader's worker
    )
    words = [sys.executable, "-c", program, str(tmp_path / LOCK)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout
    child.stdout.readline()
    assert is_locked(tmp_path / LOCK)
    assert hold_lock(tmp_path / LOCK) is None
    child.kill()
    child.wait()
    assert not is_locked(tmp_path / LOCK)
    os.killpg(child.pid, signal.SIGKILL)


def test_a_lost_trial_may_fail_or_be_ignored_instead(journal: str) -> None:
    with ledger_of(journal, 2) as lost:
        claim(lost)
    with ledger_of(journal, 2, on_stale="ignore") as ignoring:
        assert len(run_out(ignoring)) == 2
    with ledger_of(journal, 3, on_stale="fail") as failing:
        assert run_out(failing) == []
        assert [row.state for row in failing.rows()] == ["failed", "complete", "complete"]
        assert failing.rows()[0].note == "its process was gone, 1 times"


def test_a_trial_is_not_retried_for_ever(journal: str) -> None:
    for tries in range(1, 6):
        with ledger_of(journal, 1) as ledger:
            assert claim(ledger).tries == tries
    with ledger_of(journal, 1, max_failure_rate=1.0) as ledger:
        assert ledger.claim() is None
        assert ledger.rows()[0].note == "its process was gone, 5 times"


def test_nan_is_a_failure_and_no_second_try_would_come_to_more(journal: str) -> None:
    with ledger_of(journal, 1, max_retries=1, max_failure_rate=1.0) as ledger:
        ledger.complete(claim(ledger), [float("nan")])
        assert ledger.claim() is None
        (row,) = ledger.rows()
        assert (row.state, row.note) == ("failed", "val/ap is NaN")


def test_too_many_failures_end_the_study_with_their_reasons(journal: str) -> None:
    with ledger_of(journal, 20) as ledger:
        for reason in ("no disk", "no memory", "no luck"):
            ledger.fail(claim(ledger), reason, retry=False)
        with pytest.raises(UserError, match=r"3 of 3 trials failed(.|\n)*no disk(.|\n)*no luck"):
            ledger.claim()
    with ledger_of(journal, 20, max_failure_rate=1.0) as patient:
        patient.fail(claim(patient), "no luck", retry=False)


def test_forbidden_combinations_are_drawn_again_and_do_not_count(journal: str) -> None:
    def forbidden(values: dict) -> str | None:
        return "a: q" if values["a"] == "q" else None

    with ledger_of(journal, 6, "discrete", forbidden=forbidden) as ledger:
        assert {t.values["a"] for t in run_out(ledger)} == {"p", "r"}
        assert len(ledger.rows()) == 6


def test_a_space_that_is_all_forbidden_says_which_rule(journal: str) -> None:
    with (
        ledger_of(journal, 6, forbidden=lambda values: "x: '<= 1'") as ledger,
        pytest.raises(UserError, match="x: '<= 1'"),
    ):
        ledger.claim()


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_a_finite_space_ends_when_each_point_was_asked(sampler: str, journal: str) -> None:
    with ledger_of(journal, 30, "discrete", sampler) as ledger:
        run_out(ledger)
        assert len(set(points(ledger))) == len(ledger.rows()) == 12
        if sampler == "grid":  # whose points are enqueued and need not be found by drawing
            assert len(ledger.study.trials) == 12


def test_a_grid_goes_on_where_it_stopped(journal: str) -> None:
    with ledger_of(journal, 5, "discrete", "grid") as ledger:
        run_out(ledger)
    with ledger_of(journal, 12, "discrete", "grid") as ledger:
        assert len(run_out(ledger)) == 7
        assert len(set(points(ledger))) == 12


def test_the_defaults_come_first_and_once(journal: str) -> None:
    with ledger_of(journal, 3) as first, ledger_of(journal, 3) as second:
        for ledger in (first, second):
            ledger.enqueue({"x": 0.25, "n": 2})
        values = [t.values for t in run_out(second)]
    assert values[0] == {"x": 0.25, "n": 2}
    assert {"x": 0.25, "n": 2} not in values[1:]
    assert len(values) == 3


def test_a_changed_study_is_refused_with_the_difference(journal: str) -> None:
    ledger_of(journal, 2).claim()
    changed = {"space": {"space": "float", "y": "[0, 1]"}, "fixed": {"lr": "0.2"}}
    with pytest.raises(UserError) as caught:
        ledger_of(journal, 2, facts=changed)
    text = str(caught.value)
    assert "lr: 0.1 -> 0.2" in text
    assert "space.y: None -> [0, 1]" in text
    assert "hydra.sweeper.study=toy_2" in text
    with pytest.raises(UserError, match="objective: maximize -> minimize"):
        ledger_of(journal, 2, objective=["minimize val/ap"])


def test_a_study_none_of_whose_trials_ran_takes_the_mended_settings(journal: str) -> None:
    with ledger_of(journal, 2) as ledger:
        ledger.enqueue({"x": 0.25})
        ledger.refuse(claim(ledger), "no such folder")
        assert ledger.rows() == []
    mended = {"space": {"space": "float"}, "fixed": {"lr": "0.2"}}
    with ledger_of(journal, 2, facts=mended) as ledger:
        ledger.enqueue({"x": 0.25})
        assert claim(ledger).values["x"] == 0.25  # the defaults are tried after all
        assert len(run_out(ledger)) == 1


def test_a_long_difference_is_cut(journal: str) -> None:
    ledger_of(journal, 2).claim()
    many = {"space": {"space": "float"}, "fixed": {f"key_{i}": "1" for i in range(20)}}
    with pytest.raises(UserError) as caught:
        ledger_of(journal, 2, facts=many)
    assert sum(line.startswith("  ") for line in str(caught.value).splitlines()) == 8


def test_a_result_of_a_trial_that_was_retried_elsewhere_does_not_count(
    journal: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = ledger_of(journal, 1)
    claimed = claim(first)
    first.__exit__()  # as on a file system whose locks do not reach other machines
    with ledger_of(journal, 1) as second:
        retry = claim(second)
        first.complete(claimed, [0.1])
        first.fail(claimed, "late", retry=True)
        second.complete(retry, [0.9])
        assert [row.values for row in second.rows()] == [(0.9,)]
    assert "was taken for dead" in caplog.text


def test_a_pruned_trial_counts_with_its_last_value(journal: str) -> None:
    with ledger_of(journal, 1) as ledger:
        claimed = claim(ledger)
        claimed.trial.report(0.2, 1)
        claimed.trial.report(0.3, 2)
        ledger.prune(claimed)
        (row,) = ledger.rows()
        assert (row.state, row.values) == ("pruned", (0.3,))
        assert ledger.claim() is None


def test_notes_and_constraints_are_kept_with_the_trial(journal: str) -> None:
    with ledger_of(journal, 1) as ledger:
        ledger.complete(claim(ledger), [0.4], {"val/miou": 0.1}, {"metrics": {"val/miou": 0.4}})
        trial: FrozenTrial = ledger.study.trials[0]
        assert trial.constraints == {"val/miou": 0.1}
        assert trial.user_attrs["metrics"] == {"val/miou": 0.4}
        assert trial.state is TrialState.COMPLETE


@pytest.mark.parametrize("way", ["maximize", "minimize"])
def test_the_best_trials_keep_their_constraints_or_are_the_front(way: str, journal: str) -> None:
    with ledger_of(journal, 4, objective=[f"{way} val/ap"]) as ledger:
        for value, limit in ((0.5, 0.0), (0.9, 1.0), (0.7, -1.0), (0.1, 1.0)):
            ledger.complete(claim(ledger), [value], {"val/miou": limit})
        assert [row.number for row in ledger.best()] == ([2, 0] if way == "maximize" else [0, 2])
    two = ["maximize val/ap", "minimize val/fpr95"]
    with ledger_of(journal, 3, study="two", objective=two) as ledger:
        for values in ((0.5, 0.5), (0.4, 0.6), (0.9, 0.8)):
            ledger.complete(claim(ledger), values)
        assert [row.number for row in ledger.best()] == [2, 0]


def test_a_line_torn_by_a_kill_does_not_spoil_the_journal(journal: str) -> None:
    with ledger_of(journal, 3) as ledger:
        claim(ledger)
    path = Path(journal.removeprefix("journal://"))
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    with ledger_of(journal, 3) as ledger:
        assert len(run_out(ledger)) == 3
    assert len(ledger_of(journal, 3).rows()) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The value of `grace_period`")
def test_the_lock_of_a_dead_writer_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eomt_exp.studies.storage._GRACE_SECONDS", 1)
    monkeypatch.chdir(tmp_path)
    url = "journal://here/study.log"  # a relative one, whose lock would dangle
    ledger_of(url, 1)
    Path("here/study.log.lock").symlink_to(Path("here/study.log").resolve())
    with ledger_of(url, 1) as ledger:
        assert len(run_out(ledger)) == 1
