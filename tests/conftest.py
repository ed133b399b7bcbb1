"""Fixtures that many tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir

from eomt_exp import cli
from eomt_exp.paths import asset_dir


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of outputs of a test's commands, on a machine without data sets."""
    for name in ("EOMT_CAMVID", "EOMT_ROAD_ANOMALY", "EOMT_OUTLIER_OBJECTS", "EOMT_DEIT_TINY",
                 "MLFLOW_TRACKING_URI"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EOMT_OUTPUTS", str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture
def hydra_at_conf() -> Iterator[None]:
    """Lets Hydra compose from conf/."""
    cli.register()
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of one MLflow database for a module: to make a new one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def study_outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of outputs for a module: its commands find it in EOMT_OUTPUTS, as users' may.

    One for all, since MLflow's tables and the semantic EoMT are made once. One thread each: models
    as small as these lose by more, and several at once by a lot.
    """
    folder, threads = tmp_path_factory.mktemp("outputs"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EOMT_OUTPUTS", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("MLFLOW_TRACKING_URI", "EOMT_TRIAL", "EOMT_RESULT"):
            patch.delenv(name, raising=False)
        torch.set_num_threads(1)
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
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
