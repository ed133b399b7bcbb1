"""The same study under every launcher: two trials that run beside each other, one result."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.command_line import ROOT, wait_for
from tests.sweep_commands import QUICK_STUDY, Command, finished, points, recorded, trials_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes through /proc"),
]
RATES = ("hydra/sweeper/sampler=grid", "optim.lr=choice(1e-4,2e-4,4e-4,8e-4)")


def assert_whole(
    study_outputs: Path, study: str, n_trials: int, storage: str | None = None
) -> None:
    """That a study has its trials, each once, and MLflow has them too."""
    trials = trials_of(study_outputs / "studies" / study, storage)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * n_trials
    assert len(points(trials)) == n_trials
    found = recorded(study_outputs, study)
    assert found.parent.info.status == "FINISHED"
    assert len(found.children) == n_trials
    assert {run.data.tags["mlflow.parentRunId"] for run in found.children} == {
        found.parent.info.run_id
    }


# launcher: (module of its plugin, extra of pyproject.toml, overrides)
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
def test_a_launcher_runs_two_trials_beside_each_other(study_outputs, launcher: str) -> None:
    plugin, extra, overrides = OTHERS[launcher]
    if plugin:
        reason = f'needs the extra {extra}: pip install -e ".[{extra}]"'
        pytest.importorskip(f"hydra_plugins.{plugin}", reason=reason)
    command = (*QUICK_STUDY, *RATES, "trainer.epochs=1", f"hydra/launcher={launcher}", *overrides,
               f"hydra.sweeper.study=by_{launcher}", "hydra.sweeper.n_trials=2")  # fmt: skip
    with Command(study_outputs, *command) as started:
        text = finished(started)
    assert_whole(study_outputs, f"by_{launcher}", 2)
    assert "2 at once" in text
    children = recorded(study_outputs, f"by_{launcher}").children
    assert len({run.data.tags["pid"] for run in children}) == 2, "one process had both"


SERVER = """
import sys
from optuna.storages import run_grpc_proxy_server
from eomt_exp.studies.storage import open_storage
run_grpc_proxy_server(open_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def server(study_outputs: Path) -> Iterator[str]:
    """The address of a storage that only a server can reach."""
    pytest.importorskip("grpc", reason='needs the extra grpc: pip install -e ".[grpc]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, f"journal://{study_outputs}/served.log", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(answers, 60)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_two_controllers_share_a_study_behind_a_server(study_outputs, server: str) -> None:
    overrides = (*QUICK_STUDY, *RATES, "trainer.epochs=1", f"hydra.sweeper.storage={server}",
             "hydra.sweeper.study=served", "hydra.sweeper.n_trials=4")  # fmt: skip
    with Command(study_outputs, *overrides) as one, Command(study_outputs, *overrides) as other:
        finished(one)
        finished(other)
    assert_whole(study_outputs, "served", 4, server)
    children = recorded(study_outputs, "served").children
    assert len({run.data.tags["pid"] for run in children}) == 2, "one did all the work"
    assert not (study_outputs / "studies" / "served" / "study.log").exists()
