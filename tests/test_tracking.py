"""Runs end with the right status, go on after a kill, and leave whole files behind."""

from __future__ import annotations

import io
import json
import logging
import math
import multiprocessing
import os
import re
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from eomt_exp.contracts import TrialPruned
from eomt_exp.engine.progress import progress
from eomt_exp.files import replacing, write_text
from eomt_exp.report.terminal import write_metrics
from eomt_exp.signals import StopSignals, stop_signals
from eomt_exp.tracking.metrics_file import Journal, read_journal
from eomt_exp.tracking.provenance import git_facts
from eomt_exp.tracking.run import MLflowTracker, Tracker
from eomt_exp.tracking.store import (
    TrackingError,
    clean_name,
    clean_value,
    run_status_of,
    sqlite_file,
)
from tests.command_line import mlflow_client


def make(store: Path, run_dir: Path, **changes) -> MLflowTracker:
    settings = {"uri": f"sqlite:///{store}/mlflow.db", "experiment": "train", "run_name": "r"}
    settings |= {"run_dir": run_dir, "artifact_root": str(store / "artifacts")}
    return MLflowTracker(**{**settings, **changes})


def read_back(store: Path, run_id: str):
    return mlflow_client(store).get_run(run_id)


def history(store: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in mlflow_client(store).get_metric_history(run_id, key))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("bad lr"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (TrialPruned(), "FINISHED"),
    ],
)
def test_status_tells_how_the_run_ended(store, tmp_path, error, status):
    tracker = make(store, tmp_path)
    outcome = nullcontext() if error is None else pytest.raises(type(error))
    with outcome as caught, tracker:
        tracker.log_metrics({"loss": 1.0}, step=1)
        assert read_back(store, tracker.run_id).info.status == "RUNNING"
        if error is not None:
            raise error
    assert error is None or caught.value is error
    run = read_back(store, tracker.run_id)
    assert run.info.status == status
    assert run.data.metrics["loss"] == 1.0
    assert run.data.tags.get("error") == ("ValueError: bad lr" if status == "FAILED" else None)
    assert run.data.tags.get("optuna.state") == ("PRUNED" if type(error) is TrialPruned else None)


def test_a_signal_does_not_break_off_a_transaction(store, tmp_path):
    from sqlalchemy import Engine, event

    def stop(connection, cursor, statement, *rest):
        if statement.startswith("INSERT INTO metrics") and not stop_signals:
            stop_signals.handle(signal.SIGTERM, None)

    def train():
        with run:
            run.log_metrics({"loss": 1.0})
            run.flush()

    run = make(store, tmp_path)
    rolled_back = []
    listeners = {"after_cursor_execute": stop, "rollback": rolled_back.append}
    for name, listener in listeners.items():
        event.listen(Engine, name, listener)
    try:
        with pytest.raises(KeyboardInterrupt):
            train()
    finally:
        for name, listener in listeners.items():
            event.remove(Engine, name, listener)
        stop_signals.clear()
    assert not rolled_back  # one broken off at another point would leave the store locked
    ended = read_back(store, run.run_id)
    assert (ended.info.status, ended.data.metrics) == ("KILLED", {"loss": 1.0})


def test_a_signal_waits_for_a_write_and_a_later_one_does_not(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    signals = StopSignals()
    written = []

    def write(name, *moments):
        with signals.held():
            for now[0] in moments:
                signals.handle(signal.SIGTERM, None)
            written.append(name)

    with pytest.raises(KeyboardInterrupt):
        write("whole", 0.0, 1.0)  # one wish to stop
    with pytest.raises(KeyboardInterrupt):
        write("half", 3.0)
    write("closing")
    assert written == ["whole", "closing"]


def test_a_loaders_worker_that_was_stopped_is_no_failure():
    worker = "DataLoader worker (pid 7) is killed by signal: "
    assert run_status_of(RuntimeError(worker + "Terminated.")) == "KILLED"
    assert run_status_of(RuntimeError(worker + "Killed.")) == "FAILED"


def test_a_killed_try_goes_on_in_the_same_run_with_its_first_params(store, tmp_path):
    first = make(store, tmp_path, tags={"method": "rba"})
    with suppress(RuntimeError), first:
        first.log_params({"optim.lr": 1e-4, "data.sizes": [512, 1024], "long": "x" * 7000})
        raise RuntimeError("out of memory")
    with make(store, tmp_path) as second:
        assert read_back(store, second.run_id).info.status == "RUNNING"
        second.log_params({"optim.lr": 5e-4, "trainer.new": True})
    assert second.run_id == first.run_id
    run = read_back(store, first.run_id)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    long = run.data.params.pop("long")
    assert (len(long), long[-5:]) == (6000, "[cut]")
    wanted = {"optim.lr": "0.0001", "data.sizes": "[512, 1024]", "trainer.new": "true"}
    assert run.data.params == wanted
    assert {"host", "pid", "output_dir", "method"} <= set(run.data.tags)
    assert run.data.tags["eomt.kind"] == "run"


def test_a_run_that_the_store_has_lost_begins_anew(store, tmp_path, caplog):
    write_text(tmp_path / "mlflow_run_id", "0" * 32)
    with caplog.at_level(logging.WARNING), make(store, tmp_path) as tracker:
        assert tracker.run_id != "0" * 32
    assert "lost run" in caplog.text
    assert (tmp_path / "mlflow_run_id").read_text().strip() == tracker.run_id


def test_metrics_wait_in_the_buffer_until_size_or_flush(store, tmp_path):
    with make(store, tmp_path, flush_seconds=1e9, flush_size=3) as tracker:
        tracker.log_metrics({"a": 1.0, "iou/[road]": math.nan}, step=1)
        assert history(store, tracker.run_id, "a") == []
        tracker.log_metrics({"a": 2.0}, step=2)
        assert history(store, tracker.run_id, "a") == [(1, 1.0), (2, 2.0)]
        tracker.log_metrics({"a": 3.0}, step=3)
        tracker.log_metrics({"a": 4.0}, step=4)
        tracker.rewind(3)
        tracker.flush()
        assert history(store, tracker.run_id, "a")[2:] == [(3, 3.0)]
        assert math.isnan(history(store, tracker.run_id, "iou/_road_")[0][1])
    assert [line["step"] for line in read_journal(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_store_that_goes_away_costs_warnings_not_the_run(store, tmp_path, caplog, monkeypatch):
    with make(store, tmp_path, flush_size=1) as tracker:
        with monkeypatch.context() as patch:
            patch.setattr(tracker._client, "log_batch", lambda *_, **__: 1 / 0)
            tracker.log_metrics({"a": 1.0}, step=1)
        assert "could not log metrics" in caplog.text
        tracker.log_metrics({"a": 2.0}, step=2)  # left alone for a minute
    assert history(store, tracker.run_id, "a") == [(1, 1.0), (2, 2.0)]


def test_the_link_to_compare_runs_leads_to_the_server_in_use(store, tmp_path):
    with make(store, tmp_path) as tracker:
        assert tracker.compare_link(["a", "b"]).startswith("http://127.0.0.1:5000/#/compare-runs?")
        assert tracker.compare_link(["a"]) == tracker.compare_link([]) == ""
        assert tracker.compare_link() == ""  # it has no method to compare with
        tracker.uri = "https://runs.example.org/"
        assert tracker.compare_link(["a", "b"]).startswith("https://runs.example.org/#/compare-")
    assert Tracker(tmp_path).compare_link(["a", "b"]) == ""


def test_artifacts_lie_under_the_root_we_chose(store, tmp_path):
    (tmp_path / "figure.png").write_bytes(b"png")
    with make(store, tmp_path) as tracker:
        tracker.log_artifact(tmp_path / "figure.png", "figures")
    folder = store / "artifacts" / "train" / tracker.run_id / "artifacts"
    assert (folder / "figures" / "figure.png").read_bytes() == b"png"


def test_the_environment_names_the_store_and_nothing_is_printed(
    store, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    with make(store, tmp_path, uri="sqlite:////nowhere/at/all.db") as tracker:
        pass
    assert read_back(store, tracker.run_id).info.status == "FINISHED"
    assert capfd.readouterr() == ("", "")


def test_two_runs_at_once_do_not_meet(store, tmp_path):
    import mlflow

    parent = make(store, tmp_path / "a", experiment="sweep")
    with parent, make(store, tmp_path / "b", parent_run_id=parent.run_id) as child:
        assert mlflow.active_run() is None
        assert child.run_id != parent.run_id


def test_a_store_that_cannot_be_opened_names_the_way_out(tmp_path):
    (tmp_path / "file").write_text("no folder, and no database at all" * 100)
    for database in ("file/mlflow.db", "file"):
        tracker = make(tmp_path, tmp_path, uri=f"sqlite:///{tmp_path}/{database}")
        with pytest.raises(TrackingError, match="tracking=none"):
            tracker.__enter__()


def _open_once(store: Path, start, name: str) -> str:
    import mlflow  # noqa: F401  both are through with imports when they start

    start.wait()
    with make(store, store / name) as tracker:
        tracker.log_metrics({"a": 1.0}, step=0)
    return tracker.run_id


@pytest.mark.slow
def test_two_processes_may_open_a_fresh_database_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, context) as pool:
        opened = partial(_open_once, tmp_path, manager.Barrier(2))
        runs = [read_back(tmp_path, run_id) for run_id in pool.map(opened, "ab", timeout=120)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.info.experiment_id for run in runs}) == 1


def test_names_and_values_are_fitted_to_mlflow():
    names = ["iou/traffic light (far)", "/a//b/", "..", "x" * 300]
    assert [*map(clean_name, names)] == ["iou/traffic light _far_", "a/b", "_", "x" * 250]
    values = ["text", None, True, [1, "a"]]
    assert [*map(clean_value, values)] == ["text", "null", "true", '[1, "a"]']
    assert sqlite_file("sqlite:////abs/m.db?timeout=5") == Path("/abs/m.db")
    assert sqlite_file("http://host:5000") is None


def test_git_facts_never_fail(tmp_path, monkeypatch):
    assert git_facts(tmp_path) == {}
    monkeypatch.setenv("PATH", "")
    assert git_facts() == {}


def test_the_journal_forgets_what_came_after_the_checkpoint(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.rewind(5)
    for step in range(4):
        journal.write({"loss": math.inf if step == 1 else 1.0 / (step + 1)}, step)
    with journal.path.open("a") as file:
        file.write('{"step": 4, "lo')  # kill -9 in the middle of a line
    journal.write({"loss": 0.5}, 5)  # not lost behind the half line
    journal.rewind(2)
    journal.write({"loss": 0.1}, 3)
    lines = read_journal(journal.path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert math.isnan(lines[1]["loss"])
    assert lines[3]["loss"] == 0.1
    for text in journal.path.read_text().splitlines():
        assert "Infinity" not in text
        json.loads(text)


def test_without_mlflow_a_tracker_keeps_the_journal_alone(tmp_path):
    with Tracker(tmp_path) as tracker:
        for step in (1, 2):
            tracker.log_metrics({"loss": 1.0}, step)
        tracker.rewind(1)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert [line["step"] for line in read_journal(tmp_path / "metrics.jsonl")] == [1]
    Tracker().log_metrics({"loss": 1.0}, 1)


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    manifest = {"when": Path("p"), "n": (1, math.inf)}
    write_metrics(path, {"metrics": {"a/b/ap": math.nan, "x": 0.5}, "manifest": manifest})
    content = json.loads(path.read_text())
    assert content["metrics"] == {"a/b/ap": None, "x": 0.5}
    assert content["manifest"] == {"when": "p", "n": [1, None]}
    with suppress(RuntimeError), replacing(path) as scratch:
        scratch.write_text("half")
        raise RuntimeError("disk full")
    assert json.loads(path.read_text()) == content
    assert os.listdir(path.parent) == ["metrics.json"]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_prints_lines_or_draws_and_is_silent_on_other_ranks(is_terminal, monkeypatch):
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=is_terminal)
    monkeypatch.setattr("rich.console.Console", lambda highlight: console)
    monkeypatch.setattr("eomt_exp.engine.progress.PLAIN_SECONDS", 0.0)
    with progress(10, "train", 4) as bar:
        bar.advance(3, loss=0.25)
        bar.advance(3, loss=0.125)
    shown = text.getvalue()
    assert re.search(r"10/10.*loss 0\.125", shown)
    if not is_terminal:
        first, last = shown.splitlines()
        assert re.fullmatch(r"train  70 % 7/10, .*loss 0\.25", first)
        assert "100 % 10/10" in last
    with progress(10, "train", enabled=False) as bar:
        bar.advance(10)
    assert text.getvalue() == shown
