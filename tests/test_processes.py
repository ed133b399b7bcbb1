"""Several processes, or batches a step, train what one process with one large batch trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eomt_exp.tracking.metrics_file import read_journal
from tests.command_line import ROOT, SMALL, Outcome

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# No random point and no random mask, which would be others for an image in another batch.
ALIKE = (
    *(*SMALL, "start_from=null", "benchmark=none", "evaluator.known_classes=false"),
    *("recipe.masked_attention=false", "recipe.num_points=256", "recipe.validate_every=0"),
    *("trainer.precision=no", "trainer.log_every=1", "trainer.epochs=2", "tracking=none"),
)


def started(*words: str, processes: int = 1, **environment: str) -> Outcome:
    """A command of tests/fixed_points.py in one process or two."""
    group = TORCHRUN if processes == 2 else ()
    done = subprocess.run(
        [sys.executable, *group, "-m", "tests.fixed_points", *words], cwd=ROOT, text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", **environment},
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
