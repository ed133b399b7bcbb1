"""The same study under every launcher: two trials that run beside each other, one result."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.sweep_commands import (
    QUICK_STUDY,
    ROOT,
    Command,
    finished,
    outputs_in,
    points,
    recorded,
    trials_of,
    wait_for,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes through /proc"),
]
RATES = ("hydra/sweeper/sampler=grid", "optim.lr=choice(1e-4,2e-4,4e-4,8e-4)")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for the module: MLflow's tables are made once."""
    yield from outputs_in(tmp_path_factory)


def assert_whole(outputs: Path, study: str, n_trials: int, storage: str | None = None) -> list:
    """That a study has its trials, each once, and MLflow has them too."""
    trials = trials_of(outputs / "studies" / study, storage)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * n_trials
    assert len(points(trials)) == n_trials
    found = recorded(outputs, study)
    assert found.parent.info.status == "FINISHED"
    assert len(found.children) == n_trials
    assert {run.data.tags["mlflow.parentRunId"] for run in found.children} == {
        found.parent.info.run_id
    }
    return trials


# launcher: (module of its plugin, extra of pyproject.toml, words)
OTHERS = {
    "process": (None, "", ("hydra.launcher.slots=2",)),
    "joblib": ("hydra_joblib_launcher", "joblib",
               ("hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2")),
    "submitit_local": ("hydra_submitit_launcher", "submitit", ("hydra.sweeper.n_jobs=2",)),
    "ray": ("hydra_ray_launcher", "ray",
            ("hydra.sweeper.n_jobs=2", "+hydra.launcher.ray.init.num_cpus=2",
             "+hydra.launcher.ray.init.include_dashboard=false")),
}  # fmt: skip


@pytest.mark.parametrize("launcher", OTHERS)
def test_a_launcher_runs_two_trials_beside_each_other(outputs, launcher: str) -> None:
    plugin, extra, words = OTHERS[launcher]
    if plugin:
        reason = f'needs the extra {extra}: pip install -e ".[{extra}]"'
        pytest.importorskip(f"hydra_plugins.{plugin}", reason=reason)
    command = (*QUICK_STUDY, *RATES, "trainer.epochs=1", f"hydra/launcher={launcher}", *words,
               f"hydra.sweeper.study=by_{launcher}", "hydra.sweeper.n_trials=2")  # fmt: skip
    with Command(outputs, *command) as started:
        text = finished(started)
    assert_whole(outputs, f"by_{launcher}", 2)
    assert "2 at once" in text
    children = recorded(outputs, f"by_{launcher}").children
    assert len({run.data.tags["pid"] for run in children}) == 2, "one process had both"


SERVER = """
import sys
from optuna.storages import run_grpc_proxy_server
from eomt_exp.studies.storage import open_storage
run_grpc_proxy_server(open_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def server(outputs: Path) -> Iterator[str]:
    """The address of a storage that only a server can reach."""
    pytest.importorskip("grpc", reason='needs the extra grpc: pip install -e ".[grpc]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", SERVER, f"journal://{outputs}/served.log", str(port)]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(answers, 60)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_two_controllers_share_a_study_behind_a_server(outputs, server: str) -> None:
    words = (*QUICK_STUDY, *RATES, "trainer.epochs=1", f"hydra.sweeper.storage={server}",
             "hydra.sweeper.study=served", "hydra.sweeper.n_trials=4")  # fmt: skip
    with Command(outputs, *words) as one, Command(outputs, *words) as other:
        finished(one)
        finished(other)
    trials = assert_whole(outputs, "served", 4, server)
    assert len({t.user_attrs["owner"]["pid"] for t in trials}) == 2, "one did all the work"
    assert not (outputs / "studies" / "served" / "study.log").exists()
