"""MLflow's pages show the methods on one data set in one table, from the link that a run prints."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import SMALL, metrics_of, mlflow_client, only_run, run_aside, wait_for

pytestmark = pytest.mark.slow
UI = "http://127.0.0.1:5000"  # where `make ui` shows MLflow, and the printed link leads
METHODS = ("baseline", "query_only", "eim_oe")


@pytest.fixture(scope="module")
def printed(study_outputs: Path) -> str:
    """What the last of the methods printed."""
    outcomes = [run_aside(f"+experiment={name}", *SMALL) for name in (*METHODS, METHODS[0])]
    assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes
    assert UI not in outcomes[0].out.partition("semantic EoMT")[0]
    return run_aside("+experiment=eim_oe", *SMALL, "seed=1").out


@pytest.fixture(scope="module")
def served(study_outputs: Path, printed: str) -> Iterator[str]:
    """Where MLflow's pages of these runs are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["ui", "--backend-store-uri", f"sqlite:///{study_outputs}/mlflow.db", "--host",
             "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    with (study_outputs / "mlflow_ui.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def answers() -> bool:
        assert process.poll() is None, (study_outputs / "mlflow_ui.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it has workers
        process.wait()


def link_in(text: str) -> str:
    (link,) = re.findall(rf"{UI}/#/compare-runs\S+", text.rpartition("compare with")[2])
    return link


def runs_of(outputs: Path, method: str) -> list[Any]:
    """The runs of a method on the embedded data, the latest first."""
    client = mlflow_client(outputs)
    experiment = client.get_experiment_by_name("synthetic_roads").experiment_id
    found = client.search_runs([experiment], f"tags.method = '{method}'")
    return [run for run in found if "mlflow.parentRunId" not in run.data.tags]


def test_the_methods_on_one_data_set_stand_in_one_experiment(study_outputs, printed) -> None:
    (run,) = runs_of(study_outputs, "query_only")
    tags = run.data.tags
    assert (tags["data"], tags["backbone"], tags["seed"]) == ("synthetic_roads", "tiny", "0")
    assert tags["protocol"] == "default"
    assert run.info.run_name == "query_only-0"
    saved = metrics_of(only_run(study_outputs, "query_only"))["metrics"]
    for benchmark in ("synth_anomaly", "synth_obstacle"):
        own = run.data.metrics[f"ap/{benchmark}"]
        assert own == saved[f"{benchmark}/anomaly_head/ap"]


def test_the_printed_link_compares_the_latest_run_of_each_method(
    study_outputs, printed, served, browser: Any
) -> None:
    page = browser.new_page(viewport={"width": 1600, "height": 2400})
    page.goto(link_in(printed).replace(UI, served))
    ap = page.get_by_text("ap/synth_anomaly", exact=True)
    ap.last.wait_for(timeout=60_000)
    text = page.locator("body").inner_text()
    for name in ("eim_oe-1", "baseline-0", "query_only-0"):
        assert name in text, name
    assert "eim_oe-0" not in text, "of each method the latest run alone"
    numbers = [float(number) for number in re.findall(r"(?<![\d.])0\.\d+(?![\d.])", text)]
    for name in ("baseline", "query_only"):
        run = runs_of(study_outputs, name)[0]
        for benchmark in ("synth_anomaly", "synth_obstacle"):
            wanted = pytest.approx(run.data.metrics[f"ap/{benchmark}"], abs=6e-4)
            assert any(number == wanted for number in numbers), (name, benchmark, text)
    page.close()
