"""Runs end with the right status, go on after a kill, and leave whole files behind."""

from __future__ import annotations

import io
import json
import logging
import math
import multiprocessing
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from rich.console import Console

from eomt_exp.engine.progress import progress
from eomt_exp.files import replacing, write_text
from eomt_exp.report.terminal import print_report, results_table, write_metrics
from eomt_exp.tracking.metrics_file import Journal, read_journal
from eomt_exp.tracking.provenance import git_facts
from eomt_exp.tracking.run import MLflowTracker, NullTracker
from eomt_exp.tracking.store import TrackingError, clean_name, clean_value, sqlite_file


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One database for the module: to make a new one takes seconds."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(autouse=True)
def _own_address(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def make(store: Path, run_dir: Path, **changes) -> MLflowTracker:
    settings = {"uri": f"sqlite:///{store}/mlflow.db", "experiment": "train", "run_name": "r"}
    settings |= {"run_dir": run_dir, "artifact_root": store / "artifacts"}
    return MLflowTracker(**{**settings, **changes})


def read_back(store: Path, run_id: str):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db").get_run(run_id)


def history(store: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


class TrialPruned(Exception):
    """Stands for Optuna's, which is known by its name."""


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


def test_a_killed_try_goes_on_in_the_same_run_with_its_first_params(store, tmp_path):
    first = make(store, tmp_path, tags={"method": "rba"})
    with suppress(RuntimeError), first:
        first.log_params({"optim.lr": 1e-4, "data.sizes": [512, 1024], "long": "x" * 7000})
        raise RuntimeError("out of memory")
    with make(store, tmp_path) as second:
        assert second.is_resumed
        assert read_back(store, second.run_id).info.status == "RUNNING"
        second.log_params({"optim.lr": 5e-4, "trainer.new": True})
    assert second.run_id == first.run_id
    run = read_back(store, first.run_id)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    long = run.data.params.pop("long")
    assert len(long) == 6000
    assert long.endswith("[cut]")
    wanted = {"optim.lr": "0.0001", "data.sizes": "[512, 1024]", "trainer.new": "true"}
    assert run.data.params == wanted
    assert {"host", "pid", "output_dir", "method"} <= set(run.data.tags)
    assert run.data.tags["eomt.kind"] == "run"


def test_a_run_that_the_store_has_lost_begins_anew(store, tmp_path, caplog):
    write_text(tmp_path / "mlflow_run_id", "0" * 32)
    with caplog.at_level(logging.WARNING), make(store, tmp_path) as tracker:
        assert not tracker.is_resumed
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


def test_artifacts_lie_under_the_root_we_chose(store, tmp_path):
    (tmp_path / "figure.png").write_bytes(b"png")
    with make(store, tmp_path) as tracker:
        tracker.log_artifact(tmp_path / "figure.png", "figures")
        tracker.log_dict({"lr": 1e-4}, "config.json")
        tracker.log_text("text", "notes/a.txt")
        folder = store / "artifacts" / "train" / tracker.run_id / "artifacts"
    assert (folder / "figures" / "figure.png").read_bytes() == b"png"
    assert json.loads((folder / "config.json").read_text()) == {"lr": 1e-4}
    assert (folder / "notes" / "a.txt").read_text() == "text"


def test_the_environment_names_the_store_and_nothing_is_printed(
    store, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    with make(store, tmp_path, uri="sqlite:////nowhere/at/all.db") as tracker:
        pass
    assert read_back(store, tracker.run_id).info.status == "FINISHED"
    assert capfd.readouterr() == ("", "")


def test_the_trackers_import_is_light():
    code = "import sys, eomt_exp.tracking.run; print('mlflow' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


def test_two_runs_at_once_do_not_meet(store, tmp_path):
    import mlflow

    parent = make(store, tmp_path / "a", experiment="sweep")
    with parent, make(store, tmp_path / "b", parent_run_id=parent.run_id) as child:
        assert mlflow.active_run() is None
        assert child.run_id != parent.run_id


def test_a_store_that_cannot_be_opened_names_the_way_out(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    tracker = make(tmp_path, tmp_path, uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TrackingError, match="tracking=none"):
        tracker.__enter__()
    (tmp_path / "broken.db").write_text("no database at all" * 100)
    tracker = make(tmp_path, tmp_path, uri=f"sqlite:///{tmp_path}/broken.db")
    with pytest.raises(TrackingError, match="tracking=none"):
        tracker.__enter__()


def _open_once(store: Path, run_dir: Path, start, answers) -> None:
    import mlflow  # noqa: F401  both are through with imports when they start

    start.wait()
    with make(store, run_dir) as tracker:
        tracker.log_metrics({"a": 1.0}, step=0)
    answers.put(tracker.run_id)


@pytest.mark.slow
def test_two_processes_may_open_a_fresh_database_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_open_once, args=(tmp_path, tmp_path / name, start, answers))
        for name in "ab"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    runs = [read_back(tmp_path, answers.get(timeout=5)) for _ in processes]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.info.experiment_id for run in runs}) == 1


def test_names_and_values_are_fitted_to_mlflow():
    assert clean_name("iou/traffic light (far)") == "iou/traffic light _far_"
    assert clean_name("/a//b/") == "a/b"
    assert clean_name("..") == "_"
    assert len(clean_name("x" * 300)) == 250
    assert [clean_value(v) for v in ("text", None, True, [1, "a"])] == [
        "text",
        "null",
        "true",
        '[1, "a"]',
    ]
    assert sqlite_file("sqlite:////abs/m.db?timeout=5") == Path("/abs/m.db")
    assert sqlite_file("http://host:5000") is None


def test_git_facts_never_fail(tmp_path, monkeypatch):
    assert git_facts(tmp_path) == {}
    monkeypatch.setenv("PATH", "")
    assert git_facts() == {}


def test_the_journal_forgets_what_came_after_the_checkpoint(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    assert journal.rewind(5) == 0
    for step in range(4):
        journal.write({"loss": math.inf if step == 1 else 1.0 / (step + 1)}, step)
    with journal.path.open("a") as file:
        file.write('{"step": 4, "lo')  # kill -9 in the middle of a line
    assert journal.rewind(2) == 1
    journal.write({"loss": 0.1}, 3)
    lines = read_journal(journal.path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert math.isnan(lines[1]["loss"])
    assert lines[3]["loss"] == 0.1
    for text in journal.path.read_text().splitlines():
        assert "Infinity" not in text
        json.loads(text)


def test_a_line_after_half_a_line_is_not_lost(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.path.write_text('{"step": 0, "lo')
    journal.write({"loss": 0.5}, 1)
    assert [line["step"] for line in read_journal(journal.path)] == [1]


def test_the_null_tracker_keeps_the_journal_alone(tmp_path):
    with NullTracker(tmp_path) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.log_dict({}, "x.json")
        tracker.log_metrics({"loss": 1.0}, 2)
        tracker.rewind(1)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert len(read_journal(tmp_path / "metrics.jsonl")) == 1
    NullTracker().log_metrics({"loss": 1.0}, 1)


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_metrics(path, {"a/b/ap": math.nan, "x": 0.5}, {"when": Path("p"), "n": (1, math.inf)})
    content = json.loads(path.read_text())
    assert content == {
        "metrics": {"a/b/ap": None, "x": 0.5},
        "manifest": {"when": "p", "n": [1, None]},
    }
    with suppress(RuntimeError), replacing(path) as scratch:
        scratch.write_text("half")
        raise RuntimeError("disk full")
    assert json.loads(path.read_text()) == content
    assert os.listdir(path.parent) == ["metrics.json"]


METRICS = {
    "road_anomaly/rba/ap": 0.8123,
    "road_anomaly/rba/fpr95": 0.1,
    "road_anomaly/rba/auroc": math.nan,
    "road_anomaly/msp/ap": 0.4,
    "road_anomaly/msp/fpr95": 0.3,
    "road_anomaly/msp/auroc": 0.7,
    "lost_and_found/rba/ap": 0.5,
    "val/miou": 0.7011,
}


def test_the_table_stars_the_best_and_names_the_undefined():
    text = io.StringIO()
    Console(file=text, width=100).print(results_table(METRICS))
    rows = {tuple(line.split()[-5:][:2]): line for line in text.getvalue().splitlines()}
    assert "0.812*" in rows["road_anomaly", "rba"]
    assert "0.100*" in rows["road_anomaly", "rba"]  # a lower FPR95 is better
    assert "undefined" in rows["road_anomaly", "rba"]
    assert "0.700*" in text.getvalue()
    assert "0.500 " in rows["lost_and_found", "rba"]  # alone, so no star
    assert "semantic: val/miou 0.701" in text.getvalue()
    assert "PPV" not in text.getvalue()


def test_the_report_is_plain_where_there_is_no_terminal(tmp_path, capsys):
    write_metrics(tmp_path / "metrics.json", METRICS, {})
    figure = tmp_path / ("long_" * 30 + ".png")
    read_back = json.loads((tmp_path / "metrics.json").read_text())["metrics"]  # NaN is null
    print_report(read_back, tmp_path, [figure])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "undefined" in text
    assert str(figure) in text
    assert str(tmp_path / "metrics.json") in text
    assert "make ui" in text


def test_progress_prints_lines_where_there_is_no_terminal():
    text = io.StringIO()
    console = Console(file=text, width=100)
    with progress(10, "train", 4, console=console, plain_seconds=0.0) as bar:
        bar.advance(3, loss=0.25)
        bar.advance(3, loss=0.125)
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("train  70 % 7/10, ")
    assert lines[0].endswith("loss 0.25")
    assert "100 % 10/10" in lines[1]
    assert len(lines) == 2


def test_progress_draws_on_a_terminal_and_is_silent_on_other_ranks():
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True)
    with progress(10, "train", console=console) as bar:
        bar.advance(10, loss=0.125)
    assert "10/10" in text.getvalue()
    assert "loss 0.125" in text.getvalue()
    length = len(text.getvalue())
    with progress(10, "train", console=console, enabled=False) as bar:
        bar.advance(10)
    assert len(text.getvalue()) == length
