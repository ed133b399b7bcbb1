"""A study's run in MLflow: one of it, whoever opens it, and closed as the study ends."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pytest

from eomt_exp.files import write_text
from eomt_exp.studies.parent_run import NullStudyRun, StudyRun, compare_link
from eomt_exp.tracking.metrics_file import read_journal
from eomt_exp.tracking.store import TrackingError

pytestmark = pytest.mark.slow  # opens stores of MLflow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One database for the module: to make a new one takes seconds."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(autouse=True)
def _own_address(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def make(store: Path, folder: Path, **changes) -> StudyRun:
    settings = {"uri": f"sqlite:///{store}/mlflow.db", "experiment": "lr", "name": "lr"}
    return StudyRun(
        **{**settings, "artifacts": store / "artifacts", "study_dir": folder, **changes}
    )


def client(store: Path):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")


def read_back(store: Path, run: StudyRun):
    return client(store).get_run(run.run_id)


def history(store: Path, run: StudyRun, key: str) -> list[tuple[int, float]]:
    points = client(store).get_metric_history(run.run_id, key)
    return sorted((point.step, point.value) for point in points)


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError("no space"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_the_run_ends_as_the_study_ends(store, tmp_path, error, status):
    run = make(store, tmp_path, tags={"team": "a", "eomt.kind": "x"})
    with suppress(ValueError, KeyboardInterrupt), run:
        assert read_back(store, run).info.status == "RUNNING"
        if error is not None:
            raise error
    found = read_back(store, run)
    assert found.info.status == status
    assert found.data.tags["eomt.kind"] == "sweep"
    assert found.data.tags["team"] == "a"


def test_a_study_that_goes_on_has_the_same_run_and_says_what_it_is(store, tmp_path):
    about = {
        "sampler": {"name": "tpe", "multivariate": True},
        "pruner": {"name": "median"},
        "objective": {"val/ap": "maximize"},
        "space": {"optim.lr": "interval(1e-5, 1e-1)", "+anomaly_head": "choice(none, entropy)"},
    }
    with make(store, tmp_path) as first:
        first.describe(**about, n_trials=10)
    with make(store, tmp_path) as second:
        assert read_back(store, second).info.status == "RUNNING"
        second.describe(**about, n_trials=20)
    assert second.run_id == first.run_id
    found = read_back(store, first)
    assert found.data.params == {
        "sampler.name": "tpe",
        "sampler.multivariate": "true",
        "pruner.name": "median",
        "objective.val/ap": "maximize",
        "space.optim.lr": "interval(1e-5, 1e-1)",
        "space.anomaly_head": "choice(none, entropy)",
    }
    assert found.data.tags["n_trials"] == "20"


def test_each_trial_is_a_point_of_the_curves(store, tmp_path):
    with make(store, tmp_path) as run:
        run.trial_done(0, {"val/ap": 0.25}, {"val/ap": 0.25})
        run.trial_done(1, {"val/ap": 0.125}, {"val/ap": 0.25})
        run.trial_done(2, {"val/ap": 0.5}, {"val/ap": 0.25}, "pruned")
        run.trial_done(3, None, {"val/ap": 0.25}, "failed")
        assert history(store, run, "sweep/value") == []  # not a write for every trial
    assert history(store, run, "sweep/value") == [(0, 0.25), (1, 0.125)]
    assert history(store, run, "sweep/pruned_value") == [(2, 0.5)]
    assert history(store, run, "sweep/best_value") == [(n, 0.25) for n in range(4)]
    assert [line["step"] for line in read_journal(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_several_objectives_have_a_curve_each(store, tmp_path):
    with make(store, tmp_path) as run:
        run.trial_done(0, {"val/ap": 0.25, "gflops": 3.0}, None)
        best = {"trial": 0, "value": {"val/ap": 0.25, "gflops": 3.0}, "params": {}}
        run.finish(best=best)
    metrics = read_back(store, run).data.metrics
    assert metrics == {
        "sweep/value/val/ap": 0.25,
        "sweep/value/gflops": 3.0,
        "best_value/val/ap": 0.25,
        "best_value/gflops": 3.0,
    }


def test_the_end_of_a_study_is_on_record(store, tmp_path):
    for name in ("study.html", "history.png", "best/experiment/lr_best.yaml"):
        write_text(tmp_path / name, name)
    write_text(tmp_path / "3-again" / "mlflow_run_id", "abc\n")
    with make(store, tmp_path) as run:
        run.finish(best={"trial": 5, "value": 0.75, "params": {"optim.lr": 0.1}})
        run.finish(
            [tmp_path / "study.html", tmp_path / "history.png"],
            [tmp_path / "best/experiment/lr_best.yaml"],
            {"trial": 3, "folder": "3-again", "value": 0.5, "params": {"optim.lr": 1e-05}},
            {"complete": 4, "pruned": 2},
        )
    found = read_back(store, run)
    assert found.data.metrics["best_value"] == 0.5  # the last word, whatever its trial's number
    tags = found.data.tags
    assert (tags["best.trial"], tags["best.run_id"]) == ("3", "abc")
    assert json.loads(tags["best.params"]) == {"optim.lr": 1e-05}
    assert (tags["trials.complete"], tags["trials.pruned"]) == ("4", "2")
    paths = {
        one.path for f in ("plots", "best") for one in client(store).list_artifacts(run.run_id, f)
    }
    assert paths == {"plots/study.html", "plots/history.png", "best/lr_best.yaml"}


def test_two_controllers_at_once_share_one_run(store, tmp_path):
    make(store, store / "first_use").__enter__().__exit__(None, None, None)
    runs = [make(store, tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=run.__enter__) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.run_id for run in runs}) == 1
    found = client(store).search_runs([runs[0].experiment_id], "status = 'RUNNING'")
    assert [one.info.run_id for one in found] == [runs[0].run_id]
    runs[0].__exit__(None, None, None)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_the_run_stays_open_while_others_are_at_the_study(store, tmp_path, error):
    others = [True]
    run = make(store, tmp_path, others_open=lambda: others[0])
    with suppress(KeyboardInterrupt), run:
        run.trial_done(0, {"val/ap": 0.25}, {"val/ap": 0.25})
        if error:
            raise error
    assert read_back(store, run).info.status == "RUNNING"
    assert history(store, run, "sweep/value") == [(0, 0.25)]  # sent all the same
    others[0] = False
    with make(store, tmp_path, others_open=lambda: others[0]):
        pass
    assert read_back(store, run).info.status == "FINISHED"


def child(store: Path, folder: Path, name: str, **tags: str) -> str:
    run = client(store).create_run("0", tags={"host": platform.node(), **tags})
    write_text(folder / name / "mlflow_run_id", run.info.run_id + "\n")
    return run.info.run_id


def test_runs_of_dead_processes_are_closed_and_no_others(store, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with make(store, tmp_path) as run:
        dead = child(store, tmp_path, "0", pid=str(gone.pid))
        reused = child(store, tmp_path, "1", pid=str(os.getpid()))
        alive = child(store, tmp_path, "2", pid=str(os.getppid()))
        elsewhere = child(store, tmp_path, "3", pid=str(gone.pid), host="another-host")
        done = child(store, tmp_path, "4", pid=str(gone.pid))
        client(store).set_terminated(done, "FINISHED")
        write_text(tmp_path / "5" / "mlflow_run_id", "0" * 32)  # lost by the store
        assert run.reap(map(str, range(7))) == [dead, reused]
    states = [
        client(store).get_run(one).info.status for one in (dead, reused, alive, elsewhere, done)
    ]
    assert states == ["KILLED", "KILLED", "RUNNING", "RUNNING", "FINISHED"]
    assert run.run_ids(["2", "6", "0"]) == [alive, dead]


def test_a_store_that_goes_away_costs_warnings_not_the_study(store, tmp_path, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING), make(store, tmp_path) as run:
        with monkeypatch.context() as patch:
            for name in ("log_batch", "log_artifact", "get_run"):
                patch.setattr(run._tracker.client, name, lambda *_, **__: 1 / 0)
            child(store, tmp_path, "0", pid="1")
            run.trial_done(0, {"val/ap": 0.25}, {"val/ap": 0.25})
            run.finish([tmp_path / "x.png"], best={"trial": 0, "value": 1, "params": {}})
            assert run.reap(["0"]) == []
        assert "could not log" in caplog.text
        assert "dead trials stay RUNNING" in caplog.text
    assert history(store, run, "sweep/value") == [(0, 0.25)]


def test_a_store_that_cannot_be_opened_says_what_to_type(tmp_path):
    (tmp_path / "file").write_text("")
    broken = make(tmp_path, tmp_path / "study", uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TrackingError, match="tracking=none"):
        broken.__enter__()


@pytest.mark.parametrize("how", ["null", "disabled"])
def test_without_mlflow_the_points_still_stand_in_the_folder(store, tmp_path, how):
    run = NullStudyRun(tmp_path) if how == "null" else make(store, tmp_path, enabled=False)
    with run:
        assert run.run_id is None
        run.describe(sampler={}, pruner={}, objective={}, n_trials=1, space={})
        run.trial_done(0, {"val/ap": 0.25}, {"val/ap": 0.25})
        run.finish(best={"trial": 0, "value": 0.25, "params": {}})
        assert run.reap(["0"]) == []
    assert not (tmp_path / "mlflow_run_id").exists()
    lines = read_journal(tmp_path / "metrics.jsonl")
    assert lines[0]["sweep/best_value"] == 0.25


def test_the_link_to_compare_runs_is_one_word_for_a_terminal():
    link = compare_link(["a", "b"], "1")
    assert not set(link) & set("\"[], '")
    wanted = 'http://127.0.0.1:5000/#/compare-runs?runs=["a","b"]&experiments=["1"]'
    assert unquote(link) == wanted
    assert compare_link(["a"], "1", "http://host:1/").startswith("http://host:1/#/")
