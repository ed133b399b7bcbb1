"""Trains a model: Accelerate for devices and processes, our schedule, resumable at any step.

A run is a function of its seed: augmentation depends on (seed, epoch, index) alone, and the random
state is part of a checkpoint, so a resumed run goes on exactly as one that was never stopped.
"""

from __future__ import annotations

import logging
import math
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

from eomt_exp.contracts import (
    Batch,
    CheckpointError,
    Loss,
    Model,
    OutOfMemory,
    TrainingError,
    is_out_of_memory,
)
from eomt_exp.engine import checkpoint
from eomt_exp.engine.device import agreed
from eomt_exp.engine.optim import annealing_steps, make_optimizer, mask_probs, set_rates
from eomt_exp.engine.progress import Progress, progress
from eomt_exp.engine.step_errors import NotFinite, images_that_fit, save_batch
from eomt_exp.engine.throughput import Throughput
from eomt_exp.engine.weight_average import WeightAverage
from eomt_exp.schema import OnBadLoss, OptimConfig, Parallel, TrainerConfig
from eomt_exp.signals import stop_signals
from eomt_exp.tracking.run import Tracker

TRACE = "trace.json"  # of trainer.profile_steps, in the run folder
_MOST_SKIPPED = 10  # steps in a row: after so many the weights are at fault, and no batch
_log = logging.getLogger(__name__)


@dataclass
class TrainingProgress:
    """Says where a run stands, and what must stay the same for it to go on; kept in checkpoints."""

    epoch: int  # those trained and, where that is due, validated
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
        self._skipped = 0  # steps in a row

    def fit(self) -> Model:
        """Train to the end, from the last checkpoint where there is one.

        Returns the model without what Accelerate wraps around it. A signal to stop raises
        KeyboardInterrupt at the end of the training step it comes in, which is saved.
        """
        self._resume()
        epoch, begun = divmod(self.progress.step, self.steps_per_epoch)
        if not begun and (last := self.last_validation()):
            # The earlier try was killed after it had logged these, maybe before it went on.
            self.progress.epoch = epoch
            self.after_validation(last, epoch, self.progress.step)
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
                with stop_signals.held():
                    self._epoch(bar)
                self.progress.epoch += 1
                found = self._validated() if self._validates_now() else None
                if found is not None:
                    self.tracker.log_metrics(found, self.progress.step)
                    self.tracker.flush()
                if is_first:
                    checkpoint.update_progress(self.folder, asdict(self.progress))
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
        is_first = self.accelerator.is_main_process
        state = agreed(checkpoint.newest_whole(self.folder) if is_first else None)
        if state:
            if is_first:
                print(f"going on with {self.folder.parent} from {state.name}", flush=True)
            saved = TrainingProgress(**checkpoint.load_state(self.accelerator, state))
            now = self.progress
            if (saved.total_steps, saved.processes) != (now.total_steps, now.processes):
                raise CheckpointError(
                    f"{state} is of a run of {saved.total_steps} steps in {saved.processes} "
                    f"processes, this one has {now.total_steps} in {now.processes}: their paths "
                    "differ. Start it as before, or afresh with resume=false."
                )
            self.progress = saved
        # Without a state everything is done again, so nothing may stay in the curves.
        self.tracker.rewind(self.progress.step if state else -1)

    def _save(self) -> None:
        # Numbers first: a checkpoint must never be ahead of the metrics it continues.
        self.tracker.flush()
        state, keep = asdict(self.progress), self.settings.keep_checkpoints
        checkpoint.save_state(self.accelerator, self.folder, self.progress.step, state, keep)

    def _epoch(self, bar: Progress) -> None:
        """Train what is left of an epoch, and save."""
        done = self.progress.step - self.progress.epoch * self.steps_per_epoch
        if done == self.steps_per_epoch:  # killed while it was validated
            return
        self.dataset.set_epoch(self.progress.epoch)
        self.loader.set_epoch(self.progress.epoch)
        loader = self.loader
        if done:
            loader = self.accelerator.skip_first_batches(loader, done)
        self.model.train()
        sums: dict[str, Tensor] = {}
        seen = 0
        for batch in self.speed.waits(loader):
            terms = self._step_or_reason(batch)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            seen += bool(terms)
            self.progress.step += 1
            if self.average:
                self.average.update(self.progress.step)
            if self.profiler:
                self.profiler.step()
            last = self.progress.step % self.steps_per_epoch == 0
            must_stop = self._any_process(bool(stop_signals))
            every = self.settings.save_every
            saves = last or must_stop or (every and self.progress.step % every == 0)
            if seen and (saves or self.progress.step % self.settings.log_every == 0):
                total = self._log(sums, seen)
                sums, seen = {}, 0
                bar.advance(0, loss=total)
            bar.advance(1)
            if saves:
                self._save()
            if must_stop:
                raise KeyboardInterrupt
            if last and self.settings.images_per_epoch is not None:
                loader.end()  # Accelerate would go on taking the loader for the active one
                break

    def _any_process(self, claim: bool) -> bool:
        """Return whether it is so in any process, for what all must do at the same step."""
        if self.accelerator.num_processes == 1:
            return claim
        count = torch.tensor(float(claim), device=self.accelerator.device)
        return bool(self.accelerator.reduce(count, "sum"))

    def _step_or_reason(self, batch: Batch) -> dict[str, Tensor]:
        """Make a step; {} for one that is left out. TrainingError, with what to do, for others."""
        try:
            terms = self._step(batch)
        except NotFinite as error:
            self._leave_out(batch, str(error))
            return {}
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            self._skipped = 0
            return terms
        # Not inside the except: the error would keep what fills the memory.
        raise self._out_of_memory(batch)

    def _leave_out(self, batch: Batch, reason: str) -> None:
        """Keep a batch whose step has gone wrong; raise TrainingError unless it may be skipped."""
        self.optimizer.zero_grad()
        if self.accelerator.scaler:
            self.accelerator.scaler.update()  # it has looked at the gradient, and wants to hear on
        self._skipped += 1
        file = self.folder.parent / f"bad_batch_{self.accelerator.process_index}.safetensors"
        save_batch(batch, file)
        found = f"{reason}; its batch is in {file}: {', '.join(batch.names)}"
        if self.settings.on_bad_loss is OnBadLoss.skip and self._skipped < _MOST_SKIPPED:
            _log.warning("Skipped: %s.", found)
            return
        raise TrainingError(
            f"{found}. Try a lower optim.lr or trainer.precision=no, or, for a few bad batches, "
            f"trainer.on_bad_loss=skip, which gives up after {_MOST_SKIPPED} in a row."
        )

    def _out_of_memory(self, batch: Batch) -> OutOfMemory:
        size, model = self.settings.batch_size, self.accelerator.unwrap_model(self.model)
        # AdamW's two moments are made at the end of its first step.
        trained = [] if self.optimizer.state else [p for p in model.parameters() if p.requires_grad]
        moments = 2 * sum(p.nbytes for p in trained)
        fits = images_that_fit(
            model, batch, size, moments, lambda part: self._terms(model, part)["total"]
        )
        advice = "not even one image fits. Type a smaller data.image_size or backbone"
        if fits:
            accumulate = math.ceil(size * self.settings.accumulate / fits)
            advice = f"{fits} fit. Type trainer.batch_size={fits} trainer.accumulate={accumulate}"
        return OutOfMemory(
            f"out of memory at step {self.progress.step}, trainer.batch_size={size}: {advice}."
        )

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
                terms = self._terms(self.model, piece)
                self.accelerator.backward(terms["total"] / len(pieces))
            for name, term in terms.items():
                share = term.detach() / len(pieces)
                sums[name] = sums[name] + share if name in sums else share
        norm = all_of(
            self.accelerator.clip_grad_norm_(
                self.model.parameters(), self.settings.clip_grad_norm
            ).detach()
        )
        self._check_finite(sums, norm)
        set_rates(self.optimizer, self.optim, self.progress.step, self.total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums | {"grad_norm": norm}

    def _terms(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the loss's terms and their total, of one piece of a step."""
        output = model(batch.images)
        terms: dict[str, Tensor] = {}
        for loss in self.losses.values():
            terms |= loss(output, batch.targets)
        return terms | {"total": torch.stack([term.float() for term in terms.values()]).sum()}

    def _check_finite(self, terms: dict[str, Tensor], norm: Tensor) -> None:
        """Raise NotFinite, in all processes, where loss or gradient are not finite in any.

        Not before the gradient, by which every process has a part in the step: whoever left it
        earlier would have the others wait. In fp16 it overflows now and then; such steps are left
        out by its scaler.
        """
        values = terms if self.accelerator.scaler else terms | {"gradient": norm}
        numbers = torch.stack([value.float() for value in values.values()])
        if self._any_process(not torch.isfinite(numbers.sum())):
            pairs = zip(values, numbers.tolist(), strict=True)
            listed = ", ".join(f"{name}={number:.3g}" for name, number in pairs)
            raise NotFinite(f"the loss is not finite at step {self.progress.step} ({listed})")

    def _log(self, sums: dict[str, Tensor], seen: int) -> float:
        """Log the means since the last log, over all processes; return the total's."""
        values = self.accelerator.reduce(torch.stack([v.float() for v in sums.values()]), "mean")
        means = {f"train/{n}": v / seen for n, v in zip(sums, values.tolist(), strict=True)}
        rates = {g["stage"]: g["lr"] for g in self.optimizer.param_groups}  # last group of a stage
        rates = {f"lr/{stage}": rate for stage, rate in rates.items()}
        self.tracker.log_metrics(means | rates | self.speed.read(seen), self.progress.step)
        return means["train/total"]
