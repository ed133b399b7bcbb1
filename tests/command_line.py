"""`python -m eomt_exp …` inside the test process: torch is imported once, not once a test."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hydra.core.hydra_config import HydraConfig

from eomt_exp import cli
from eomt_exp.paths import database_address
from eomt_exp.signals import stop_signals

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 240.0  # seconds; two cores may be busy with other things
# Small enough to train and evaluate in seconds; real parts throughout.
SMALL = (
    "debug=fast",
    "data.image_size=[32,64]",
    "backbone.overrides.depth=3",
    "+backbone.overrides.embed_dim=48",
    "+backbone.overrides.num_heads=3",
    "backbone.embed_dim=48",
    "recipe.num_queries=6",
    "recipe.num_points=64",
    "trainer.num_workers=0",
    "evaluator.bits=17",
    "evaluator.resamples=20",
    "evaluator.figures=0",
)


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@contextmanager
def own_process_state(words: tuple[str, ...]) -> Iterator[None]:
    """sys.argv, handlers and signals as a command finds them, and as they were afterwards."""
    argv = sys.argv
    on_signal = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = ["eomt_exp", *words]
    try:
        yield
    finally:
        sys.argv = argv
        for number, handler in on_signal.items():
            signal.signal(number, handler)
        root.handlers[:], root.level = handlers, level
        stop_signals.clear()
        HydraConfig.instance().cfg = None  # an interrupted Hydra leaves it behind


def run(capfd: pytest.CaptureFixture[str], *words: str) -> Outcome:
    """Run a command to its end."""
    capfd.readouterr()
    code = _code(words)
    out, err = capfd.readouterr()
    return Outcome(code, out, err)


def run_aside(*words: str) -> Outcome:
    """The same for a fixture of a whole module, which cannot have capfd."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = _code(words)
    return Outcome(code, out.getvalue(), err.getvalue())


def _code(words: tuple[str, ...]) -> int:
    with own_process_state(words):
        try:
            cli.main()
        except SystemExit as ending:
            return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


def start(*words: str, stderr: int = subprocess.STDOUT) -> subprocess.Popen[str]:
    """The same command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "eomt_exp", *words], cwd=ROOT, env={**os.environ},
        stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Until it is true; it is an error if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def mlflow_client(outputs: Path) -> MlflowClient:
    """The client of a folder's database."""
    from mlflow import MlflowClient

    return MlflowClient(database_address(str(outputs)))


def mlflow_run(outputs: Path, folder: Path) -> Run:
    """What MLflow has of the run in a folder."""
    return mlflow_client(outputs).get_run((folder / "mlflow_run_id").read_text().strip())


def only_run(outputs: Path, experiment: str) -> Path:
    """The one run folder of an experiment."""
    (folder,) = (path.parent for path in (outputs / experiment).glob("*/config.yaml"))
    return folder


def metrics_of(folder: Path) -> dict:
    """metrics.json."""
    return json.loads((folder / "metrics.json").read_text())
