"""A study's run in MLflow: one of it, whoever opens it, and closed as the study ends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from eomt_exp.studies.record import named, parent_run
from eomt_exp.tracking.metrics_file import read_journal
from eomt_exp.tracking.run import Tracker
from eomt_exp.tracking.store import compare_link
from tests.command_line import mlflow_client

pytestmark = pytest.mark.slow  # opens stores of MLflow
POINT = {"sweep/value": 0.25}


def make(
    store: Path, folder: Path, others_open: Callable[[], int] = lambda: 0, **changes
) -> AbstractContextManager[Tracker]:
    settings = {"enabled": True, "uri": f"sqlite:///{store}/mlflow.db", "experiment": "lr",
                "artifacts": f"{store}/artifacts",
                "tags": {"team": "a", "eomt.kind": "x"}}  # fmt: skip
    return parent_run(SimpleNamespace(**{**settings, **changes}), folder, others_open)


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError("no space"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_the_run_ends_as_the_study_ends(store, tmp_path, error, status):
    with suppress(ValueError, KeyboardInterrupt), make(store, tmp_path) as run:
        assert mlflow_client(store).get_run(run.run_id).info.status == "RUNNING"
        if error is not None:
            raise error
    found = mlflow_client(store).get_run(run.run_id)
    assert found.info.status == status
    assert (found.data.tags["eomt.kind"], found.data.tags["team"]) == ("sweep", "a")


def test_a_study_that_goes_on_has_the_same_run(store, tmp_path):
    with make(store, tmp_path) as first:
        first.log_metrics(POINT, step=0)
    with make(store, tmp_path) as second:
        assert mlflow_client(store).get_run(first.run_id).info.status == "RUNNING"
        second.log_metrics(POINT, step=1)
    assert second.run_id == first.run_id
    history = mlflow_client(store).get_metric_history(first.run_id, "sweep/value")
    assert sorted(point.step for point in history) == [0, 1]


def test_two_controllers_at_once_share_one_run(store, tmp_path):
    with make(store, store):  # makes the tables
        pass
    runs = [make(store, tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda run: run.__enter__(), runs))
    assert len({tracker.run_id for tracker in found}) == 1
    running = mlflow_client(store).search_runs([found[0].experiment_id], "status = 'RUNNING'")
    assert [one.info.run_id for one in running] == [found[0].run_id]
    for run in runs:
        run.__exit__(None, None, None)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_the_run_stays_open_while_others_are_at_the_study(store, tmp_path, error):
    with suppress(KeyboardInterrupt), make(store, tmp_path, lambda: 1) as run:
        run.log_metrics(POINT, step=0)
        if error:
            raise error
    assert mlflow_client(store).get_run(run.run_id).info.status == "RUNNING"
    assert mlflow_client(store).get_metric_history(run.run_id, "sweep/value")  # sent all the same
    with make(store, tmp_path):
        pass
    assert mlflow_client(store).get_run(run.run_id).info.status == "FINISHED"


def test_without_mlflow_the_points_still_stand_in_the_folder(store, tmp_path):
    with make(store, tmp_path, enabled=False) as run:
        run.log_metrics(POINT, step=0)
    assert run.run_id is None
    assert not (tmp_path / "mlflow_run_id").exists()
    assert read_journal(tmp_path / "metrics.jsonl")[0]["sweep/value"] == 0.25


def test_several_objectives_have_a_curve_each():
    assert named("sweep/value", {"val/ap": 0.25}) == {"sweep/value": 0.25}
    both = named("sweep/value", {"val/ap": 0.25, "gflops": 3.0})
    assert both == {"sweep/value/val/ap": 0.25, "sweep/value/gflops": 3.0}


def test_the_link_to_compare_runs_is_one_word_for_a_terminal():
    link = compare_link(["a", "b"], "1")
    assert not set(link) & set("\"[], '")
    wanted = 'http://127.0.0.1:5000/#/compare-runs?runs=["a","b"]&experiments=["1"]'
    assert unquote(link) == wanted
