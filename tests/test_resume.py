"""A training that was broken off goes on as if it had not been, and says what broke it off."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from eomt_exp.contracts import Loss, OutOfMemory, Part, Sample, Target, TrainingError
from eomt_exp.data.loader import training_loader
from eomt_exp.engine.checkpoint import states
from eomt_exp.engine.device import forget_accelerator, make_accelerator, seed_everything
from eomt_exp.engine.trainer import Trainer
from eomt_exp.schema import OnBadLoss, OptimConfig, Precision, TrainerConfig
from eomt_exp.signals import StopSignals, stop_signals
from eomt_exp.tasks.validation import last_validation
from eomt_exp.tracking.metrics_file import read_journal
from eomt_exp.tracking.run import Tracker
from tests.command_line import ROOT, SMALL, only_run, own_process_state, wait_for

IMAGES, BATCH, EPOCHS = 10, 2, 3
STEPS = IMAGES // BATCH
OPTIM = OptimConfig(
    lr=0.1, weight_decay=0.1, backbone_lr_factor=1.0, layer_decay=1.0, decay_joint_blocks=True,
    head_warmup=0.1, backbone_warmup=0.1, poly_power=0.9,
)  # fmt: skip


class Noise(Dataset[Sample]):
    """Images that are a function of epoch and index, as those of a TrainingSet are."""

    def __init__(self) -> None:
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch[0] = epoch

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Sample:
        drawn = torch.Generator().manual_seed(100 * int(self.epoch) + index)
        target = Target(*(torch.full((1,), index) for _ in range(4)))
        return Sample(torch.rand(3, 2, 2, generator=drawn), target, f"{index}.png")


class Toy(nn.Module):
    """Enough of a model to be trained; its dropout draws from torch's own random state."""

    num_blocks, anneals = 0, False

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Dropout(), nn.Linear(4, 1))

    def parts(self) -> list[Part]:
        return [Part("toy", "head", 0, tuple(self.parameters()))]

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Square(Loss):
    """A loss to which something happens at one of its calls, counted from 1."""

    needs_anomalies = False

    def __init__(self, at: int = 0, happens: Any = None) -> None:
        self.at, self.happens, self.calls = at, happens, 0

    def __call__(self, output: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        self.calls += 1
        factor = self.happens(targets) if self.calls == self.at else None
        return {"square": output.square().mean() * (1.0 if factor is None else factor)}


def terminated(targets: list[Target]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def killed(targets: list[Target]) -> None:
    raise RuntimeError("as suddenly as kill -9")


def train(folder: Path, loss: Square, validate: Any = None, **changes: Any) -> dict[str, Tensor]:
    """Train, or go on in the folder; return the weights."""
    settings = TrainerConfig(**{
        "epochs": EPOCHS, "batch_size": BATCH, "accumulate": 1, "num_workers": 0,
        "precision": Precision.no, "device": "cpu", "compile": False, "clip_grad_norm": 1.0,
        "log_every": 2, "validate_every": int(validate is not None), "keep_checkpoints": 2,
        **changes,
    })  # fmt: skip
    seed_everything(0)
    accelerator = make_accelerator(settings)
    try:
        with own_process_state(()):
            signal.signal(signal.SIGTERM, stop_signals.handle)
            trainer = Trainer(
                name="toy", accelerator=accelerator, model=Toy(), losses={"square": loss},
                loader=training_loader(
                    Noise(), BATCH * settings.accumulate, settings.num_workers, 0
                ),
                optim=OPTIM, settings=settings, folder=folder / "checkpoints",
                tracker=Tracker(folder), validate=validate, after_validation=lambda *_: None,
                last_validation=lambda: last_validation(folder),
            )  # fmt: skip
            return {name: value.clone() for name, value in trainer.fit().state_dict().items()}
    finally:
        forget_accelerator(accelerator)


def is_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # most of the time of a training as small


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(tmp_path_factory.mktemp("unbroken"), Square())


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_the_step_it_comes_in(tmp_path, unbroken, workers: int) -> None:
    at = STEPS + 3  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Square(at, terminated), num_workers=workers)
    assert states(tmp_path / "checkpoints")[-1].name == f"step-{at:08d}"
    rest = Square()
    assert is_equal(train(tmp_path, rest, num_workers=workers), unbroken)
    assert rest.calls == EPOCHS * STEPS - at


@pytest.mark.parametrize("every", [None, 2])
def test_a_kill_goes_back_to_the_last_state(tmp_path, unbroken, every: int | None) -> None:
    with pytest.raises(RuntimeError, match="kill"):
        train(tmp_path, Square(2 * STEPS, killed), save_every=every)
    rest = Square()
    assert is_equal(train(tmp_path, rest, save_every=every), unbroken)
    assert rest.calls == 2 * STEPS if every is None else rest.calls == EPOCHS * STEPS - 8
    logged = [line["step"] for line in read_journal(tmp_path / "metrics.jsonl")]
    assert logged == sorted(set(logged))


def test_a_validation_that_is_killed_costs_no_training(tmp_path, unbroken) -> None:
    validated: list[int] = []

    def validate(epoch: int) -> dict[str, float]:
        validated.append(epoch)
        if validated == [1, 2]:
            raise RuntimeError("as suddenly as kill -9")
        return {"val/ap": float(epoch)}

    with pytest.raises(RuntimeError, match="kill"):
        train(tmp_path, Square(), validate)
    rest = Square()
    assert is_equal(train(tmp_path, rest, validate), unbroken)
    assert (rest.calls, validated) == (STEPS, [1, 2, 2, 3])


def test_with_accumulated_gradients_it_stops_between_two_steps(tmp_path) -> None:
    whole = train(tmp_path / "whole", Square(), accumulate=2)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Square(STEPS + 1, terminated), accumulate=2)
    assert is_equal(train(tmp_path / "cut", Square(), accumulate=2), whole)


def test_a_damaged_state_is_named_and_the_one_before_is_used(tmp_path, unbroken, caplog) -> None:
    for harm in (lambda path: os.truncate(path, 100), Path.unlink, lambda path: flip(path)):
        folder = tmp_path / str(len(caplog.records))
        with pytest.raises(RuntimeError, match="kill"):
            train(folder, Square(2 * STEPS + 1, killed))
        _, newer = states(folder / "checkpoints")
        harm(newer / "model.safetensors")
        rest = Square()
        assert is_equal(train(folder, rest), unbroken)
        assert rest.calls == (EPOCHS - 1) * STEPS
        assert str(newer / "model.safetensors") in caplog.records[-1].getMessage()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_loss_that_is_nan_stops_and_leaves_its_batch(tmp_path) -> None:
    seen: list[Target] = []

    def is_nan(targets: list[Target]) -> float:
        seen.extend(targets)
        return float("nan")

    with pytest.raises(TrainingError, match=r"not finite at step 3 .*square=nan.*on_bad_loss=skip"):
        train(tmp_path, Square(4, is_nan))
    path = tmp_path / "bad_batch_0.safetensors"
    batch = load_file(path)
    assert batch["images"].shape == (BATCH, 3, 2, 2)
    assert [int(batch[f"{i}.masks"]) for i in range(BATCH)] == [int(t.masks) for t in seen]
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["names"]) == [f"{int(t.masks)}.png" for t in seen]


@pytest.mark.parametrize("value", [float("nan"), 1e30])  # the latter explodes in the gradient
def test_a_bad_step_is_left_out_by_choice(tmp_path, caplog, value: float) -> None:
    weights = train(tmp_path, Square(4, lambda _: value), on_bad_loss=OnBadLoss.skip)
    assert all(weight.isfinite().all() for weight in weights.values())
    assert "Skipped" in caplog.text
    assert read_journal(tmp_path / "metrics.jsonl")[-1]["step"] == EPOCHS * STEPS


def test_weights_that_make_each_loss_bad_end_a_training_that_skips(tmp_path) -> None:
    loss = Square()
    loss.__class__ = type("Nan", (Square,), {
        "__call__": lambda self, output, targets: {"nan": output.mean() * float("nan")}
    })  # fmt: skip
    with pytest.raises(TrainingError, match="gives up after 10 in a row"):
        train(tmp_path, loss, on_bad_loss=OnBadLoss.skip)


@pytest.mark.parametrize("fits", [1, 0])
def test_out_of_memory_says_what_fits(tmp_path, fits: int) -> None:
    class Large(Square):
        def __call__(self, output: Tensor, targets: list[Target]) -> dict[str, Tensor]:
            if len(targets) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().__call__(output, targets)

    wanted = "1 fit.*batch_size=1 trainer.accumulate=2" if fits else "not even one image fits"
    with pytest.raises(OutOfMemory, match=wanted):
        train(tmp_path, Large())


def test_a_signal_within_held_blocks_interrupts_after_the_outermost() -> None:
    signals, done = StopSignals(), []

    def work() -> None:
        with signals.held():
            with signals.held():
                signals.handle(signal.SIGTERM, None)
            done.append("the inner one")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the inner one"]
    assert signals.exit_code == 143


LONG = ("+experiment=semantic", *SMALL, "recipe.semantic_epochs=3", "recipe.validate_every=1",
        "data.train.length=24", "scorer=[msp]", "score=msp", "trainer.save_every=2",
        "trainer.log_every=1", "trainer.device=cpu")  # fmt: skip


def begin(processes: int, *words: str) -> subprocess.Popen[str]:
    """Start a command in so many processes."""
    ranks = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    command = [sys.executable, *(ranks if processes > 1 else ()), "-m", "eomt_exp", *words]
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_stopped_or_killed_within_an_epoch_the_weights_are_equal_to_the_bit(
    outputs: Path, tmp_path: Path, capfd, processes: int, workers: int
) -> None:
    words = (*LONG, f"trainer.num_workers={workers}")

    def weights_of(folder: Path) -> dict[str, Tensor]:
        begin(processes, *words, f"paths.outputs={folder}").communicate(timeout=600)
        (found,) = folder.glob("semantic/*/model.safetensors")
        return load_file(found)

    whole = weights_of(tmp_path / "whole")
    steps, journal = 3 * 24 // 4 // processes, outputs / "semantic"
    for number, at in ((signal.SIGTERM, steps // 3 + 1), (signal.SIGKILL, 2 * steps // 3 + 1)):
        process = begin(processes, *words, f"paths.outputs={outputs}")
        wait_for(lambda at=at: last_step(journal) >= at)
        family = psutil.Process(process.pid).children(recursive=True)
        for member in (process, *family):  # all at once, as Slurm does: loader workers have it too
            member.send_signal(number)
        text, _ = process.communicate(timeout=120)
        assert process.returncode != 0, text
        if (number, processes) == (signal.SIGTERM, 1):
            assert process.returncode == 143, text
            assert "stopped; the same command goes on" in text
            saved = states(only_run(outputs, "semantic") / "checkpoints")[-1].name
            assert int(saved[5:]) >= at
    assert is_equal(weights_of(outputs), whole)


def last_step(runs: Path) -> int:
    lines = [line["step"] for path in runs.glob("*/metrics.jsonl") for line in read_journal(path)]
    return max(lines, default=0)
