"""Trains a model: Accelerate for devices and processes, our schedule, resumable at any epoch.

A run is a function of its seed: augmentation depends on (seed, epoch, index) alone, and the random
state is part of a checkpoint, so a resumed run goes on exactly as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from eomt_exp.contracts import Batch, CheckpointError, Loss, Model, TrainingError
from eomt_exp.engine import checkpoint
from eomt_exp.engine.optim import annealing_steps, make_optimizer, mask_probs, set_rates
from eomt_exp.engine.progress import Progress, progress
from eomt_exp.engine.throughput import Throughput
from eomt_exp.engine.weight_average import WeightAverage
from eomt_exp.schema import OptimConfig, Parallel, TrainerConfig
from eomt_exp.tracking.run import Tracker

TRACE = "trace.json"  # of trainer.profile_steps, in the run folder


@dataclass
class TrainingProgress:
    """Says where a run stands, and what must stay the same for it to go on; kept in checkpoints."""

    epoch: int
    step: int
    total_steps: int
    processes: int


def allow_graphs(num_blocks: int) -> None:
    """Let torch.compile keep a graph for every state of the annealing, in training and evaluation.

    There are about 3 per block. Beyond torch's limit of 8 it would go on uncompiled, with no more
    than a warning.
    """
    from torch._dynamo import config  # slow to import, and seldom wanted

    config.recompile_limit = max(config.recompile_limit, 8 * num_blocks + 8)


def profiler(steps: int | None, file: Path) -> AbstractContextManager[Any]:
    """Trace so many steps after the first three, for chrome://tracing or Perfetto; None: nothing.

    The profiler wants to be told of each step.
    """
    if steps is None:
        return nullcontext()
    from torch import profiler  # slow to import, and seldom wanted

    return profiler.profile(
        schedule=profiler.schedule(skip_first=2, wait=0, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(file)),
    )


def all_of(value: Tensor) -> Tensor:
    """Return a tensor of which, under FSDP, each process has a part; the others must ask too."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


class Trainer:
    """Trains `model` in place; with trainer.ema, it ends up with the average of its weights.

    `validate(epoch)` gives metrics after an epoch, every validate_every epochs and after the last.
    `after_validation(metrics, epoch, step)` may raise; what was trained is saved by then.
    `last_validation()` gives the last metrics of an earlier try. The loader's data set must have
    `set_epoch`.
    """

    def __init__(
        self,
        *,
        name: str,
        accelerator: Accelerator,
        model: Model,
        losses: dict[str, Loss],
        loader: DataLoader[Batch],
        optim: OptimConfig,
        settings: TrainerConfig,
        folder: Path,
        tracker: Tracker,
        validate: Callable[[int], dict[str, float]],
        after_validation: Callable[[dict[str, float], int, int], None],
        last_validation: Callable[[], dict[str, float]],
    ) -> None:
        self.name, self.accelerator, self.losses = name, accelerator, losses
        self.dataset: Any = loader.dataset
        self.optim, self.settings, self.folder, self.tracker = optim, settings, folder, tracker
        self.validate = validate
        self.after_validation, self.last_validation = after_validation, last_validation
        blocks = model.num_blocks
        if settings.compile:
            allow_graphs(blocks)
            model.compile()  # in place, so the names of its weights stay
        self.whole = model
        if settings.parallel is Parallel.fsdp:
            model = deepcopy(model)  # of which each process then keeps a part
        self.model, self.optimizer, self.loader = accelerator.prepare(
            model, make_optimizer(model, optim), loader
        )
        self.average = WeightAverage(accelerator, model, settings.ema) if settings.ema else None
        self.steps_per_epoch = len(self.loader)
        a_step = settings.batch_size * settings.accumulate * accelerator.num_processes
        self.speed = Throughput(a_step, accelerator.device)
        if settings.images_per_epoch is not None:
            wanted = max(settings.images_per_epoch // a_step, 1)
            self.steps_per_epoch = min(wanted, self.steps_per_epoch)
        self.total_steps = self.steps_per_epoch * settings.epochs
        self.annealing = annealing_steps(optim.mask_annealing, self.total_steps, blocks)
        self.progress = TrainingProgress(0, 0, self.total_steps, accelerator.num_processes)

    def fit(self) -> Model:
        """Train to the end, from the last checkpoint where there is one.

        Returns the model without what Accelerate wraps around it.
        """
        self._resume()
        if self.progress.epoch and self._validates_now() and (last := self.last_validation()):
            # The earlier try may have been killed between its checkpoint and this call.
            self.after_validation(last, self.progress.epoch, self.progress.step)
        is_first = self.accelerator.is_main_process
        traced = self.settings.profile_steps if is_first else None
        with (
            progress(
                self.total_steps, f"train {self.name}", self.progress.step, enabled=is_first
            ) as bar,
            profiler(traced, self.folder.parent / TRACE) as self.profiler,
            torch.autograd.set_detect_anomaly(self.settings.detect_anomaly),
        ):
            while self.progress.epoch < self.settings.epochs:
                self._epoch(bar)
                self.progress.epoch += 1
                found = self._validated() if self._validates_now() else None
                if found is not None:
                    self.tracker.log_metrics(found, self.progress.step)
                # Numbers first: a checkpoint must never be ahead of the metrics it continues.
                self.tracker.flush()
                state, keep = asdict(self.progress), self.settings.keep_checkpoints
                checkpoint.save_state(
                    self.accelerator, self.folder, self.progress.step, state, keep
                )
                if found is not None:
                    self.after_validation(found, self.progress.epoch, self.progress.step)
        if self.average:
            self.average.swap()
        return self._gathered()

    def _validated(self) -> dict[str, float]:
        with self.average.in_force() if self.average else nullcontext():
            self._gathered()
            return self.validate(self.progress.epoch)

    def _gathered(self) -> Model:
        """Return the model as it is trained so far, whole in each process."""
        bare: Model = self.accelerator.unwrap_model(self.model)
        if self.settings.parallel is not Parallel.fsdp:
            return bare
        state = {name: all_of(value) for name, value in bare.state_dict().items()}
        self.whole.to(self.accelerator.device).load_state_dict(state)
        return self.whole

    def _validates_now(self) -> bool:
        every, epoch = self.settings.validate_every, self.progress.epoch
        return every > 0 and (epoch % every == 0 or epoch == self.settings.epochs)

    def _resume(self) -> None:
        states = checkpoint.states(self.folder)
        if states:
            if self.accelerator.is_main_process:
                print(f"going on with {self.folder.parent} from {states[-1].name}", flush=True)
            saved = TrainingProgress(**checkpoint.load_state(self.accelerator, states[-1]))
            now = self.progress
            if (saved.total_steps, saved.processes) != (now.total_steps, now.processes):
                raise CheckpointError(
                    f"{states[-1]} is of a run of {saved.total_steps} steps in {saved.processes} "
                    f"processes, this one has {now.total_steps} in {now.processes}: their paths "
                    "differ. Start it as before, or afresh with resume=false."
                )
            self.progress = saved
        # Without a state everything is done again, so nothing may stay in the curves.
        self.tracker.rewind(self.progress.step if states else -1)

    def _epoch(self, bar: Progress) -> None:
        self.dataset.set_epoch(self.progress.epoch)
        self.loader.set_epoch(self.progress.epoch)
        self.model.train()
        sums: dict[str, Tensor] = {}
        seen = 0
        for batch in self.speed.waits(self.loader):
            terms = self._step(batch)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            seen += 1
            self.progress.step += 1
            if self.average:
                self.average.update(self.progress.step)
            if self.profiler:
                self.profiler.step()
            last = self.progress.step % self.steps_per_epoch == 0
            if self.progress.step % self.settings.log_every == 0 or last:
                total = self._log(sums, seen)
                sums, seen = {}, 0
                bar.advance(0, loss=total)
            bar.advance(1)
            if last and self.settings.images_per_epoch is not None:
                self.loader.end()  # Accelerate would go on taking the loader for the active one
                break

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        """Make one optimiser step; return the terms and the norm of the gradient before clipping.

        `trainer.accumulate` pieces of the batch are computed one after the other. Gradient and
        terms are as if it were one, as far as losses can tell beforehand what they divide by.
        """
        model: Model = self.accelerator.unwrap_model(self.model)
        if model.anneals:
            model.set_mask_probs(mask_probs(self.progress.step, self.annealing))
        pieces = batch.pieces(self.settings.batch_size)
        for loss in self.losses.values():
            loss.begin_step([piece.targets for piece in pieces])
        sums: dict[str, Tensor] = {}
        for piece in pieces:
            is_last = piece is pieces[-1]
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                for name, value in self._terms(piece, len(pieces)).items():
                    sums[name] = sums[name] + value if name in sums else value
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.settings.clip_grad_norm
        )
        set_rates(self.optimizer, self.optim, self.progress.step, self.total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums | {"grad_norm": all_of(norm.detach())}

    def _terms(self, batch: Batch, num_pieces: int) -> dict[str, Tensor]:
        """Add the gradient of one piece of a step; return its share of the terms and their total.

        Raises TrainingError for a loss that is not finite.
        """
        output = self.model(batch.images)
        terms: dict[str, Tensor] = {}
        for loss in self.losses.values():
            terms |= loss(output, batch.targets)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name}={float(term.detach()):.3g}" for name, term in terms.items())
            raise TrainingError(
                f"the loss is not finite at step {self.progress.step} ({values}); "
                "try a lower optim.lr or trainer.precision=no."
            )
        self.accelerator.backward(total / num_pieces)
        return {
            name: term.detach() / num_pieces for name, term in (terms | {"total": total}).items()
        }

    def _log(self, sums: dict[str, Tensor], seen: int) -> float:
        """Log the means since the last log, over all processes; return the total's."""
        values = self.accelerator.reduce(torch.stack([v.float() for v in sums.values()]), "mean")
        means = {f"train/{n}": v / seen for n, v in zip(sums, values.tolist(), strict=True)}
        rates = {g["stage"]: g["lr"] for g in self.optimizer.param_groups}  # last group of a stage
        rates = {f"lr/{stage}": rate for stage, rate in rates.items()}
        self.tracker.log_metrics(means | rates | self.speed.read(seen), self.progress.step)
        return means["train/total"]
