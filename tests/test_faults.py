"""Each fault of a machine ends in one clear line, and nothing that was finished is lost.

`make faults` plays them and prints what happened; as tests they are slow.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from eomt_exp.contracts import Sample, Target, UserError
from eomt_exp.data.loader import training_loader
from eomt_exp.data.shared_cache import SharedCache
from eomt_exp.engine.checkpoint import newest_whole, states
from eomt_exp.engine.trainer import Trainer
from eomt_exp.machine_faults import explained
from tests.bright_anomalies import BrightAnomalies
from tests.command_line import SMALL, Outcome, metrics_of, only_run, run_aside, start, wait_for
from tests.test_cli import make_camvid
from tests.test_resume import last_step

QUICK = ("+experiment=semantic", *SMALL, "benchmark=none", "evaluator.known_classes=false",
         "recipe.semantic_epochs=3", "recipe.validate_every=0", "scorer=[msp]", "score=msp",
         "trainer.save_every=2", "trainer.log_every=1", "trainer.device=cpu")  # fmt: skip
STEPS = 12


def command(outputs: Path, *words: str) -> tuple[str, ...]:
    tracking = () if any("tracking" in word for word in words) else ("tracking=none",)
    return (*QUICK, *tracking, f"paths.outputs={outputs}", *words)


def checkpoints(outputs: Path) -> Path:
    return only_run(outputs, "semantic") / "checkpoints"


def broken_off(outputs: Path) -> None:
    """Leave a run with two states, of steps 4 and 6."""
    unhurt = Trainer._step

    def step(trainer: Trainer, batch: object) -> object:
        if trainer.progress.step == 7:
            raise RuntimeError("as suddenly as kill -9")
        return unhurt(trainer, batch)

    with mock.patch.object(Trainer, "_step", step):
        run_aside(*command(outputs))
    assert [state.name[-1] for state in states(checkpoints(outputs))] == ["4", "6"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, which is how a disk that is full looks to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=action)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def full_disk(outputs: Path) -> Outcome:
    """no space to write"""
    broken_off(outputs)
    with largest_file(50_000):
        outcome = run_aside(*command(outputs))
    assert newest_whole(checkpoints(outputs)).name.endswith("6")
    return outcome


def impossible_folder(outputs: Path) -> Outcome:
    """Not a directory"""
    outputs.write_text("a file")
    return run_aside(*command(outputs / "below"))


def locked_database(outputs: Path) -> Outcome:
    """database is locked.*tracking=none"""
    outputs.mkdir()
    with closing(sqlite3.connect(outputs / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        return run_aside(*command(outputs, "+tracking.tags.x=y"))


def dead_worker(outputs: Path) -> Outcome:
    """loads images has died"""

    def kill() -> None:
        wait_for(lambda: last_step(outputs / "semantic") >= 5)
        psutil.Process().children()[0].kill()

    with meanwhile(kill):
        outcome = run_aside(*command(outputs, "trainer.num_workers=2", "trainer.epochs=999"))
    assert newest_whole(checkpoints(outputs))
    return outcome


def small_shared_memory(outputs: Path) -> Outcome:
    """shared memory .* too small.*trainer.num_workers=0"""
    with largest_file(50_000):
        return run_aside(*command(outputs, "trainer.num_workers=2"))


def diverging_loss(outputs: Path) -> Outcome:
    """not finite at step.*bad_batch_0.safetensors"""
    outcome = run_aside(*command(outputs, "optim.lr=4e9"))
    assert (only_run(outputs, "semantic") / "bad_batch_0.safetensors").is_file()
    return outcome


def bad_weights(outputs: Path) -> Outcome:
    """the weights hold NaN in class_head.bias"""
    assert run_aside(*command(outputs)).code == 0
    folder = only_run(outputs, "semantic")
    weights = load_file(folder / "model.safetensors")
    weights["class_head.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    return run_aside("task=evaluate", f"checkpoint={folder}", f"paths.outputs={outputs}",
                     "benchmark.synth_anomaly.length=2", "tracking=none")  # fmt: skip


def out_of_memory(outputs: Path) -> Outcome:
    """trainer.batch_size=4: 2 fit. Type trainer.batch_size=2 trainer.accumulate=2"""
    unhurt = Trainer._terms

    def terms(trainer: Trainer, model: torch.nn.Module, batch: object) -> object:
        if len(batch.images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return unhurt(trainer, model, batch)

    with mock.patch.object(Trainer, "_terms", terms):
        return run_aside(*command(outputs))


def cut_image(outputs: Path) -> Outcome:
    """1.jpg.*on_broken=skip"""
    broken = make_camvid(outputs / "camvid") / "train" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:-400])
    words = [word for word in command(outputs) if not word.startswith("debug")]
    return run_aside(*words, "data=camvid", f"paths.camvid={outputs / 'camvid'}",
                     "recipe.batch_size=2")  # fmt: skip


def damaged_state(outputs: Path) -> Outcome:
    """step-00000006/model.safetensors is damaged"""
    broken_off(outputs)
    os.truncate(states(checkpoints(outputs))[-1] / "model.safetensors", 1000)
    outcome = run_aside(*command(outputs))
    assert "going on with" in outcome.out
    assert "step-00000004" in outcome.out
    return outcome


def server_gone(outputs: Path) -> Outcome:
    """metrics never reached MLflow; see"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outputs.mkdir()
    store = f"sqlite:///{outputs}/server.db"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", port, "--workers", "1",
         "--backend-store-uri", store],
        cwd=outputs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )  # fmt: skip

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def kill() -> None:
        try:
            wait_for(lambda: last_step(outputs / "semantic") >= 2)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    with meanwhile(kill):
        wait_for(answers)
        outcome = run_aside(*command(outputs, f"tracking.uri=http://127.0.0.1:{port}"))
    assert last_step(outputs / "semantic") == STEPS
    return outcome


def closed_pipe(outputs: Path) -> Outcome:
    """nobody reads the output any more; the command goes on"""
    process = start(*command(outputs), stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    return Outcome(process.wait(), first, err)


# The docstring of each says what it has to print.
ENDS = (full_disk, impossible_folder, locked_database, dead_worker, small_shared_memory,
        diverging_loss, bad_weights, out_of_memory, cut_image)  # fmt: skip
GOES_ON = (damaged_state, server_gone, closed_pipe)


@pytest.mark.parametrize(
    ("error", "needle"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/model.bin"), "(/x/model.bin)"),
        (RuntimeError("PytorchStreamWriter failed writing file data/2: file write failed"), "room"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied (/x)"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "num_workers=0"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), None),
        (RuntimeError("shapes do not fit"), None),
    ],
)
def test_what_is_the_machines_fault_is_explained_and_a_bug_is_not(error, needle) -> None:
    text = explained(error)
    assert text is None if needle is None else needle in str(text)


class Zeros(Dataset[Sample]):
    """Images of 48 KiB."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.zeros(3, 64, 64), Target(*[torch.zeros(1)] * 4), str(index))


def test_a_batch_that_cannot_be_handed_over_is_an_error_and_no_wait() -> None:
    loader = training_loader(Zeros(), batch_size=1, num_workers=1, seed=0)
    with largest_file(1000), pytest.raises(UserError, match=r"shared memory.*num_workers=0"):
        next(iter(loader))


def test_images_that_no_room_is_left_for_are_not_cached(caplog: pytest.LogCaptureFixture) -> None:
    with largest_file(1000):
        cached = SharedCache(BrightAnomalies())
    assert not cached.is_on
    assert "cache is off: unable to resize file" in caplog.text
    assert cached[0].image.any()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_leaves_signals_to_the_main_process(number: signal.Signals) -> None:
    others = {*multiprocessing.active_children()}
    batches = iter(training_loader(Zeros(), batch_size=1, num_workers=1, seed=0))
    next(batches)
    (worker,) = {*multiprocessing.active_children()} - others
    os.kill(worker.pid, number)  # from its parent, SIGTERM does end it
    ends = number == signal.SIGTERM
    worker.join(20 if ends else 0.2)
    assert worker.is_alive() is not ends
    if ends:
        return
    other = f"import os; os.kill({worker.pid}, {int(signal.SIGTERM)})"
    subprocess.run([sys.executable, "-c", other], check=True)
    assert len(list(batches)) == 7


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*ENDS, *GOES_ON], ids=lambda fault: fault.__name__)
def test_a_fault_is_one_clear_line_and_loses_nothing(fault, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    outcome = fault(tmp_path / "out")
    text = " ".join((outcome.out + outcome.err).split())
    assert re.search(fault.__doc__, text), text
    assert "Traceback" not in text
    assert len(re.findall("^error: ", outcome.err, re.MULTILINE)) == (fault in ENDS), outcome.err
    assert (outcome.code == 0) == (fault in GOES_ON), text
    if fault in GOES_ON:
        assert metrics_of(only_run(tmp_path / "out", "semantic")) is not None


def main() -> None:
    """Play all faults and print a table."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    for fault in (*ENDS, *GOES_ON):
        with tempfile.TemporaryDirectory() as folder:
            outcome = fault(Path(folder) / "out")
        lines = (outcome.out + outcome.err).splitlines()
        said = next((line for line in lines if re.search(fault.__doc__, line)), "(nothing)")
        name = fault.__name__.replace("_", " ")
        print(f"{name:22} exit {outcome.code}  {textwrap.shorten(said, 160)}", flush=True)


if __name__ == "__main__":
    main()
