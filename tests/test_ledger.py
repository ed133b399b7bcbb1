"""A study's books: what is asked, counted and asked again, whoever is killed and whenever."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from eomt_exp.processes import began
from eomt_exp.studies.ledger import Ledger, Ticket
from eomt_exp.studies.settings import StudyError
from eomt_exp.studies.storage import open_storage
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


def run_out(ledger: Ledger) -> list[Ticket]:
    """All that is left, each with a result."""
    tickets = []
    while (ticket := ledger.claim()) is not None:
        tickets.append(ticket)
        ledger.complete(ticket, [0.5])
    return tickets


def points(ledger: Ledger) -> list[str]:
    return [json.dumps(row.params, sort_keys=True) for row in ledger.rows()]


def test_a_study_has_its_trials_and_then_nothing_is_left(journal: str) -> None:
    with ledger_of(journal, 4) as ledger:
        tickets = run_out(ledger)
    assert [t.folder for t in tickets] == ["000", "001", "002", "003"]
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
        ticket = ledger.claim()
        assert ticket
        assert (ticket.folder, ticket.values, ticket.attempt) == ("000", values, 2)
        # What it reported before it was killed is not lost to the pruner.
        assert ledger.study.trials[ticket.number].intermediate_values == {1: 0.1}
        ledger.complete(ticket, [1.0])
        run_out(ledger)
        assert [row.folder for row in ledger.rows()] == ["000", "002", "003"]
        assert len(set(points(ledger))) == 3


def test_a_kill_between_the_end_and_the_new_try_loses_nothing(
    journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ledger_of(journal, 2, max_retries=1)
    ticket = first.claim()
    assert ticket
    monkeypatch.setattr(first._queue, "enqueue_heirs", lambda: None)  # killed right there
    first.fail(ticket, "out of memory", retry=True)
    assert first.rows() == []
    with ledger_of(journal, 2, max_retries=1) as second:
        assert [t.folder for t in run_out(second)] == ["000", "002"]
        assert second.rows()[0].params == ticket.values


def test_of_two_heirs_of_one_trial_the_first_is_the_heir(journal: str) -> None:
    ledger = ledger_of(journal, 2, max_retries=1)
    ticket = ledger.claim()
    assert ticket
    ledger.fail(ticket, "crashed", retry=True)
    heir = ledger.study.trials[1]
    # A second controller had the same thought in the same instant.
    ledger.study.enqueue_trial(ticket.values, user_attrs=dict(heir.user_attrs))
    assert [t.folder for t in run_out(ledger)] == ["000", "003"]
    assert len(ledger.rows()) == 2
    assert "surplus" in ledger.study.trials[2].user_attrs


@pytest.mark.parametrize("space", ["float", "discrete"])
def test_three_controllers_at_once_end_at_exactly_n_trials(space: str, journal: str) -> None:
    ledgers = [ledger_of(journal, 10, space) for _ in range(3)]
    done: list[int] = []

    def work(ledger: Ledger) -> None:
        with ledger:
            done.extend(ticket.number for ticket in run_out(ledger))

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = ledgers[0].rows()
    assert len(rows) == len(done) == 10
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
    ledger = ledger_of(journal, 2)
    trial_id = ledger._queue.take()
    assert trial_id is not None
    ledger._queue.close()
    with ledger_of(journal, 2) as second:
        assert [t.folder for t in run_out(second)] == ["001", "002"]


def test_what_a_closed_ledger_left_open_is_asked_again() -> None:
    storage = optuna.storages.InMemoryStorage()
    with ledger_of(storage, 2) as first:
        left = first.claim()
    assert left
    with ledger_of(storage, 2) as second:
        ticket = second.claim()
        assert ticket
        assert ticket.values == left.values


def test_trials_of_others_that_live_are_left_alone(journal: str) -> None:
    with ledger_of(journal, 2) as first, ledger_of(journal, 2) as second:
        ticket = first.claim()
        assert ticket
        assert second.open_elsewhere() == 1
        assert first.open_elsewhere() == 0
        assert [t.number for t in run_out(second)] == [1]
        first.complete(ticket, [1.0])
        assert second.open_elsewhere() == 0


@pytest.mark.parametrize(("silent_for", "asked_again"), [(250, False), (350, True)])
def test_another_machine_is_dead_after_five_minutes_of_silence(
    silent_for: int, asked_again: bool, journal: str
) -> None:
    ledger = ledger_of(journal, 1)
    ticket = ledger.claim()
    assert ticket
    ticket.trial.set_user_attr("owner", {"host": "elsewhere", "pid": 1, "began": "5"})
    ticket.trial.set_user_attr("alive", time.time() - silent_for)
    with ledger_of(journal, 1) as second:
        assert (second.claim() is not None) is asked_again


def test_a_trial_whose_own_process_lives_is_not_asked_again(journal: str) -> None:
    ledger = ledger_of(journal, 1)
    ticket = ledger.claim()
    assert ticket
    job = {"host": socket.gethostname(), "pid": os.getpid(), "began": began(os.getpid())}
    ticket.trial.set_user_attr("job_owner", job)
    ledger._queue.close()
    with ledger_of(journal, 1) as second:
        assert second.claim() is None
        ticket.trial.set_user_attr("job_owner", {**job, "began": "1"})  # the number was reused
        assert second.claim() is not None


def test_a_lost_trial_may_fail_or_be_ignored_instead(journal: str) -> None:
    ledger_of(journal, 2).claim()
    with ledger_of(journal, 2, on_stale="ignore") as ignoring:
        assert len(run_out(ignoring)) == 2
    with ledger_of(journal, 3, on_stale="fail") as failing:
        assert run_out(failing) == []
        assert [row.state for row in failing.rows()] == ["failed", "complete", "complete"]
        assert failing.rows()[0].note == "its process was gone, 1 times"


def test_nan_is_a_failure_and_no_second_try_would_come_to_more() -> None:
    with ledger_of(None, 1, max_retries=1, max_failure_rate=1.0) as ledger:
        ticket = ledger.claim()
        assert ticket
        ledger.complete(ticket, [float("nan")])
        assert ledger.claim() is None
        (row,) = ledger.rows()
        assert (row.state, row.note) == ("failed", "val/ap is NaN")


def test_too_many_failures_end_the_study_with_their_reasons() -> None:
    with ledger_of(None, 20) as ledger:
        for reason in ("no disk", "no memory", "no luck"):
            ticket = ledger.claim()
            assert ticket
            ledger.fail(ticket, reason, retry=False)
        with pytest.raises(StudyError, match=r"3 of 3 trials failed(.|\n)*no disk(.|\n)*no luck"):
            ledger.claim()
    with ledger_of(None, 20, max_failure_rate=1.0) as patient:
        for _ in range(4):
            ticket = patient.claim()
            assert ticket
            patient.fail(ticket, "no luck", retry=False)


def test_forbidden_combinations_are_drawn_again_and_do_not_count() -> None:
    def forbidden(values: dict) -> str | None:
        return "a: q" if values["a"] == "q" else None

    with ledger_of(None, 6, "discrete", forbidden=forbidden) as ledger:
        assert {t.values["a"] for t in run_out(ledger)} == {"p", "r"}
        assert len(ledger.rows()) == 6


def test_a_space_that_is_all_forbidden_says_which_rule() -> None:
    with (
        ledger_of(None, 6, forbidden=lambda values: "x: '<= 1'") as ledger,
        pytest.raises(StudyError, match="x: '<= 1'"),
    ):
        ledger.claim()


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_a_finite_space_ends_when_each_point_was_asked(sampler: str) -> None:
    with ledger_of(None, 30, "discrete", sampler) as ledger:
        run_out(ledger)
        assert ledger.exhausted
        assert len(set(points(ledger))) == len(ledger.rows()) == 12
        if sampler == "grid":  # which knows it and need not find out by drawing
            assert len(ledger.study.trials) == 13


def test_the_defaults_come_first_and_once(journal: str) -> None:
    with ledger_of(journal, 3) as first, ledger_of(journal, 3) as second:
        for ledger in (first, second):
            ledger.enqueue({"x": 0.25, "n": 2})
        values = [t.values for t in run_out(second)]
    assert values[0] == {"x": 0.25, "n": 2}
    assert {"x": 0.25, "n": 2} not in values[1:]
    assert len(values) == 3


def test_defaults_queued_twice_at_once_run_once(journal: str) -> None:
    with ledger_of(journal, 3) as ledger:
        for _ in range(2):
            ledger.study.enqueue_trial({"x": 0.25, "n": 2})
        run_out(ledger)
        assert len(ledger.rows()) == len(set(points(ledger))) == 3


def test_an_enqueued_value_out_of_range_is_not_run_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ledger_of(None, 1) as ledger:
        ledger.enqueue({"x": 3.0, "n": 2})
        with caplog.at_level(logging.WARNING), pytest.warns(UserWarning, match="out of range"):
            run_out(ledger)
    assert "Trial 0 has values outside the search space: x" in caplog.text


def test_a_changed_study_is_refused_with_the_difference(journal: str) -> None:
    ledger_of(journal, 2).claim()
    with pytest.raises(StudyError) as caught:
        ledger_of(
            journal,
            2,
            facts={"space": {"space": "float", "y": "[0, 1]"}, "fixed": {"lr": "0.2"}},
        )
    text = str(caught.value)
    assert "lr: 0.1 -> 0.2" in text
    assert "space y: absent -> [0, 1]" in text
    assert "hydra.sweeper.study=toy_2" in text
    with pytest.raises(StudyError, match="objective: maximize -> minimize"):
        ledger_of(journal, 2, objective={"val/ap": "minimize"})


def test_a_study_none_of_whose_trials_ran_takes_the_mended_settings(journal: str) -> None:
    with ledger_of(journal, 2) as ledger:
        ledger.enqueue({"x": 0.25})
        ticket = ledger.claim()
        assert ticket
        ledger.refuse(ticket, "no such folder")
        assert ledger.rows() == []
    mended = {"space": {"space": "float"}, "fixed": {"lr": "0.2"}}
    with ledger_of(journal, 2, facts=mended) as ledger:
        ledger.enqueue({"x": 0.25})
        again = ledger.claim()
        assert again
        assert again.values["x"] == 0.25  # the defaults are tried after all
        assert len(run_out(ledger)) == 1


def test_a_long_difference_is_cut(journal: str) -> None:
    ledger_of(journal, 2).claim()
    many = {"space": {"space": "float"}, "fixed": {f"key_{i}": "1" for i in range(20)}}
    with pytest.raises(StudyError) as caught:
        ledger_of(journal, 2, facts=many)
    assert sum(line.startswith("  ") for line in str(caught.value).splitlines()) == 8


def test_a_result_of_a_trial_that_was_taken_away_does_not_count(
    journal: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = ledger_of(journal, 1)
    ticket = first.claim()
    assert ticket
    first._queue.close()  # as if its machine had been silent for long
    with ledger_of(journal, 1) as second:
        heir = second.claim()
        assert heir
        first.complete(ticket, [0.1])
        first.fail(ticket, "late", retry=True)
        second.complete(heir, [0.9])
        assert [row.values for row in second.rows()] == [(0.9,)]
    assert "was taken for dead" in caplog.text


def test_a_pruned_trial_counts_with_its_last_value() -> None:
    with ledger_of(None, 1) as ledger:
        ticket = ledger.claim()
        assert ticket
        ticket.trial.report(0.2, 1)
        ticket.trial.report(0.3, 2)
        ledger.prune(ticket, {"epoch": 2})
        (row,) = ledger.rows()
        assert (row.state, row.values, row.epochs) == ("pruned", (0.3,), 2)
        assert ledger.claim() is None


def test_notes_and_constraints_are_kept_with_the_trial() -> None:
    with ledger_of(None, 1) as ledger:
        ticket = ledger.claim()
        assert ticket
        ledger.complete(ticket, [0.4], {"val/miou": 0.1}, {"metrics": {"val/miou": 0.4}})
        trial = ledger.study.trials[0]
        assert trial.constraints == {"val/miou": 0.1}
        assert trial.user_attrs["metrics"] == {"val/miou": 0.4}
        assert trial.state is TrialState.COMPLETE


def test_the_heartbeat_signs_what_is_open(journal: str) -> None:
    with ledger_of(journal, 1) as ledger:
        ticket = ledger.claim()
        assert ticket
        ledger._heartbeat.stop()
        ledger._heartbeat.seconds = 0.02
        before = ledger.study.trials[0].user_attrs["alive"]
        ledger._heartbeat.start()
        time.sleep(0.3)
        assert ledger.study.trials[0].user_attrs["alive"] > before
        ledger.complete(ticket, [1.0])


def test_a_line_torn_by_a_kill_does_not_spoil_the_journal(journal: str) -> None:
    ledger_of(journal, 3).claim()
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
    open_storage(url)
    Path("here/study.log.lock").symlink_to(Path("here/study.log").resolve())
    with ledger_of(url, 1) as ledger:
        assert len(run_out(ledger)) == 1
