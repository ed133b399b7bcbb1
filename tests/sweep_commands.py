"""Studies as tests start, stop and read them: whole commands, on scenes of 32 x 64 pixels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

import optuna
from optuna.trial import FrozenTrial, TrialState

from eomt_exp.studies.storage import open_storage
from eomt_exp.tracking.metrics_file import read_journal
from tests.command_line import PATIENCE, ROOT, SMALL, Outcome, mlflow_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MARK = "EOMT_TEST_MARK"  # in the environment of a command and of all that it starts

# ++: the backbones of a study differ in what they override.
SMALL_STUDY = tuple(one.replace("+backbone", "++backbone") for one in SMALL)
# The cheapest trials there are: nothing is trained before them, and they have one score.
QUICK_STUDY = (
    *("-m", "+experiment=semantic", "hydra/sweeper=optuna", *SMALL),
    *("scorer=[msp]", "score=msp", "evaluator.known_classes=false", "trainer.validate_every=1"),
    *("benchmark=none", "benchmark@tuning=pasted_validation"),
    "hydra.sweeper.objective=[maximize val/ap]",
)


class Command:
    """`python -m eomt_exp` in a process of its own; as a context manager it leaves none behind."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.mark = uuid4().hex
        self.log = folder / f"{self.mark}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eomt_exp", *overrides],
                cwd=ROOT,
                env={**os.environ, MARK: self.mark},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.family():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    @property
    def text(self) -> str:
        """What it has printed, on either stream."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def family(self) -> list[int]:
        """It and all processes below it, whoever their parent is by now; the dead are not."""
        needle = f"{MARK}={self.mark}".encode()
        return [int(p.name) for p in Path("/proc").glob("[0-9]*") if needle in _read(p, "environ")]

    def jobs(self) -> list[int]:
        """The processes that hydra/launcher=process started."""
        return [
            pid
            for pid in self.family()
            if b"eomt_exp.worker" in _read(Path("/proc", str(pid)), "cmdline")
        ]


def run_beside(folder: Path, *overrides: str) -> Outcome:
    """A whole command in a process of its own: some launchers leave pools of theirs behind."""
    with Command(folder, *overrides) as command:
        code = command.wait()
    return Outcome(code, command.text, command.text)


def finished(command: Command) -> str:
    """What a command printed that came to a good end."""
    code = command.wait()
    assert code == 0, command.text
    return command.text


def is_training(folder: Path) -> bool:
    """Whether a run is past its first epoch and before its end."""
    return bool(list(folder.glob("checkpoints/step-*"))) and not (folder / "metrics.json").exists()


def trials_of(folder: Path, storage: str | None = None) -> list[FrozenTrial]:
    """All trials of a study by its folder, by number."""
    storage = storage or f"journal://{folder / 'study.log'}"
    study = optuna.load_study(study_name=folder.name, storage=open_storage(storage))
    return study.get_trials()


def ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that have a result."""
    return [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def points(trials: Sequence[FrozenTrial]) -> set[str]:
    """The distinct points of some trials."""
    return {json.dumps(trial.params, sort_keys=True) for trial in trials}


def validated_steps(folder: Path) -> list[int]:
    """The steps after which a run was validated, as its metrics.jsonl has them."""
    return [int(x["step"]) for x in read_journal(folder / "metrics.jsonl") if "val/miou" in x]


class Recorded(NamedTuple):
    """What MLflow has of a study."""

    client: MlflowClient
    parents: list[Run]
    children: list[Run]

    @property
    def parent(self) -> Run:
        """The one that there should be."""
        (run,) = self.parents
        return run

    def artifacts(self, folder: str) -> set[str]:
        """Names of the parent's files."""
        found = self.client.list_artifacts(self.parent.info.run_id, folder)
        return {Path(one.path).name for one in found}


def recorded(outputs: Path, study: str) -> Recorded:
    """Of the study of that name."""
    client = mlflow_client(outputs)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    sweeps = [run for run in runs if run.data.tags.get("eomt.kind") == "sweep"]
    parents = [run for run in sweeps if run.info.run_name == study]
    children = [run for run in runs if run.data.tags.get("optuna.study") == study]
    return Recorded(client, parents, children)


def _read(process: Path, file: str) -> bytes:
    try:
        return (process / file).read_bytes()
    except OSError:  # gone, or somebody else's
        return b""
