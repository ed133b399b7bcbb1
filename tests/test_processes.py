"""Several processes, or batches a step, train what one process with one large batch trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eomt_exp.contracts import Batch, Target
from eomt_exp.tracking.metrics_file import read_journal
from tests.command_line import ROOT, SMALL, Outcome

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# No random point and no random mask, which would be others for an image in another batch.
ALIKE = (
    *(*SMALL, "start_from=null", "benchmark=none", "evaluator.known_classes=false"),
    *("recipe.masked_attention=false", "recipe.num_points=256", "recipe.validate_every=0"),
    *("trainer.precision=no", "trainer.log_every=1", "trainer.epochs=2", "tracking=none"),
)


def started(*words: str, processes: int = 1, module: str = "tests.fixed_points") -> Outcome:
    """A command, of eomt_exp as a module of the tests has changed it, in one process or two."""
    group = TORCHRUN if processes == 2 else ()
    done = subprocess.run(
        [sys.executable, *group, "-m", module, *words], cwd=ROOT, text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, timeout=500,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def curve(folder: Path) -> list[dict[str, float]]:
    """The losses, and the norm of the gradient, of each step."""
    lines = [line for line in read_journal(folder / "metrics.jsonl") if "train/total" in line]
    return [
        {k: v for k, v in line.items() if k.startswith("train/") and k not in SPEED}
        for line in lines
    ]


SPEED = ("train/images_per_second", "train/data_wait", "train/peak_memory_gb")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["eim_oe", "uncertainty"])
def test_two_processes_train_as_one_with_twice_the_batch(experiment: str, tmp_path: Path) -> None:
    starts = {"one": (1, 4, 1), "two": (2, 2, 1), "both": (2, 1, 2)}  # processes, batch, accumulate
    # An anomaly head's states follow from predictions: how many there are is not known before.
    names = ("one", "two") if experiment == "uncertainty" else tuple(starts)
    curves = {}
    for name in names:
        processes, batch_size, accumulate = starts[name]
        sizes = (f"trainer.batch_size={batch_size}", f"trainer.accumulate={accumulate}")
        done = started(f"+experiment={experiment}", *ALIKE, *sizes, "trainer.ema=0.9",
                       f"hydra.run.dir={tmp_path / name}", processes=processes)  # fmt: skip
        assert done.code == 0, done.err
        curves[name] = curve(tmp_path / name)
    assert len(curves["one"]) == 8
    for name in names[1:]:
        for step, wanted in zip(curves[name], curves["one"], strict=True):
            assert step == pytest.approx(wanted, rel=1e-5), name


@pytest.mark.slow
def test_processes_that_share_the_weights_train_the_same_and_resume_exactly(tmp_path: Path) -> None:
    """FSDP, with two processes on CPUs in place of GPUs, which Accelerate has no mode for."""
    typed = ("+experiment=semantic", *ALIKE, "data.train.length=8", "trainer.batch_size=2",
             "recipe.validate_every=1")  # fmt: skip
    curves = {}
    for name, module in (("ddp", "tests.fixed_points"), ("fsdp", "tests.sharded_on_cpu")):
        done = started(*typed, f"trainer.parallel={name}", f"hydra.run.dir={tmp_path / name}",
                       processes=2, module=module)  # fmt: skip
        assert done.code == 0, done.err
        curves[name] = curve(tmp_path / name)
    assert len(curves["ddp"]) == 4
    for step, wanted in zip(curves["fsdp"], curves["ddp"], strict=True):
        assert step == pytest.approx(wanted, rel=1e-5)
    folder = tmp_path / "fsdp"
    whole = load_file(folder / "model.safetensors")
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints/step-00000004")
    done = started(*typed, "trainer.parallel=fsdp", f"hydra.run.dir={folder}",
                   processes=2, module="tests.sharded_on_cpu")  # fmt: skip
    assert "going on with" in done.out, done.err
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in whole.items())


LATE = """
import os, sys, time
import torch
from eomt_exp import cli

cli._prepare_ranks()
group = torch.distributed.group.WORLD  # as a mesh of FSDP keeps it
if os.environ["RANK"] == "0":
    time.sleep(1)
torch.distributed.broadcast(torch.zeros(1), 0, async_op=True)

class Lingering:
    def __del__(self):
        time.sleep(3)

sys.lingering = Lingering()  # the interpreter is being taken down when rank 0's tensor comes
cli._part_ranks()
"""


@pytest.mark.slow
def test_a_collective_that_ends_after_the_run_aborts_no_process(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE)
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(script)], cwd=ROOT, capture_output=True, text=True,
        timeout=300, env={**os.environ, "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_too_few_images_for_all_processes_are_refused(tmp_path: Path) -> None:
    done = started("+experiment=semantic", *ALIKE, "recipe.batch_size=16", "trainer=ddp_cpu",
                   f"hydra.run.dir={tmp_path / 'run'}", processes=2, module="eomt_exp")  # fmt: skip
    assert done.code != 0
    assert "of which there are 2, are more than the 16 training images" in done.err
    assert not (tmp_path / "run").exists()


def test_pieces_of_a_batch_keep_the_copies_of_their_samples() -> None:
    def target(label: int, copy_of: int = -1) -> Target:
        nothing = torch.zeros(1, 1)
        return Target(
            nothing[None] > 0, torch.tensor([label]), nothing.byte(), nothing > 0, copy_of
        )

    shown = [target(0), target(1), target(2), target(3), target(4, 1), target(5, 2), target(6, 3)]
    batch = Batch(torch.arange(7.0)[:, None], shown, [*"abcdefg"])
    assert batch.pieces(4) == [batch]
    found = batch.pieces(2)
    assert [piece.images.flatten().tolist() for piece in found] == [[0, 1, 4], [2, 3, 5, 6]]
    assert [[one.copy_of for one in piece.targets] for piece in found] == [
        [-1, -1, 1],
        [-1, -1, 0, 1],
    ]
    assert [piece.names for piece in found] == [[*"abe"], [*"cdfg"]]
