"""What a study's pages show in a browser: MLflow's comparison of its best runs, and study.html."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Outcome, run_aside
from tests.sweep_commands import QUICK_STUDY, outputs_in, wait_for

pytestmark = pytest.mark.slow
OURS = "http://127.0.0.1:5000"  # where `make ui` shows MLflow, and the printed link leads


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of this module's one study."""
    yield from outputs_in(tmp_path_factory)


@pytest.fixture(scope="module")
def study(outputs: Path) -> Outcome:
    """Three trials of different rates."""
    words = ("optim.lr=tag(log, interval(1e-4, 1e-2))", "trainer.epochs=1",
             "hydra.sweeper.study=seen", "hydra.sweeper.n_trials=3")  # fmt: skip
    done = run_aside(*QUICK_STUDY, *words)
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system's packages."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"needs one of {', '.join(names)}: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(outputs: Path, study: Outcome) -> Iterator[str]:
    """Where MLflow's pages of that study are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["ui", "--backend-store-uri", f"sqlite:///{outputs}/mlflow.db", "--host", "127.0.0.1",
             "--port", str(port), "--workers", "1"]  # fmt: skip
    with (outputs / "mlflow_ui.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def answers() -> bool:
        assert process.poll() is None, (outputs / "mlflow_ui.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(answers, 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it has workers
        process.wait()


def test_the_printed_link_compares_the_best_runs(study, served: str, browser) -> None:
    (line,) = (line for line in study.out.splitlines() if f"{OURS}/#/compare-runs" in line)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(line[line.index(OURS) :].strip().replace(OURS, served))
    plot = page.locator(".parcoords")
    page.get_by_text("Parallel Coordinates Plot").wait_for(timeout=60_000)
    plot.first.wait_for(timeout=60_000)
    # MLflow begins with the parameters that differ and the first metric there is.
    metrics = page.get_by_role("combobox").nth(1)
    metrics.click()
    metrics.fill("val/ap")
    metrics.press("Enter")
    metrics.press("Escape")
    titles = page.locator(".parcoords .axis-title")
    titles.get_by_text("val/ap", exact=True).wait_for(timeout=10_000)
    assert {"optim.lr", "val/ap"} <= set(titles.all_text_contents())
    names = page.get_by_text("trial-00")
    assert names.count() >= 3
    page.close()


def test_the_page_of_a_study_draws_its_plots_without_a_network(study, outputs, browser) -> None:
    file = outputs / "studies" / "seen" / "plots" / "study.html"
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url)
            if request.url[:4] == "http" else None)  # fmt: skip
    page.goto(file.as_uri())
    page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=30_000)
    sections = page.locator("section")
    drawn = page.locator("section:has(.js-plotly-plot .main-svg)")
    without = page.locator("section", has_text="Not drawn:")
    assert sections.count() == drawn.count() + without.count()
    titles = " ".join(drawn.locator("h2").all_inner_texts())
    for wanted in ("val/ap over the study", "Which parameters matter", "Trials as lines"):
        assert wanted in titles
    assert page.locator("table tbody tr").count() == 3
    points = page.locator("section").first.locator(".scatterlayer .point")
    assert points.count() >= 3, "a point a trial"
    page.close()
    assert complaints == []
