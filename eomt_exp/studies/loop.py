"""The loop of a study: ask, launch, tell; one by one, in batches, or a trial a free slot."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from eomt_exp.cli import status_of, was_told_to_stop
from eomt_exp.studies.ledger import Ledger, Ticket
from eomt_exp.studies.rules import Constraint
from eomt_exp.studies.settings import StudyError

WAIT_SECONDS = 1.0  # between two looks, so that Ctrl-C is heard
_log = logging.getLogger(__name__)
_SHOWN = 600  # characters of an error that are kept with its trial
# What another try may mend; a wrong value fails for ever.
_WORTH_A_RETRY = ("crashed", "out_of_memory")


class JobLost(RuntimeError):
    """The launcher cannot say what became of a job; it may not be the job's fault."""

    kind = "crashed"


class Loop:
    """Runs trials until the ledger has none left; `overrides(ticket)` are the words of its job.

    `ended(ticket)` is called after each end, whatever it was.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        launcher: Any,
        at_once: int,
        overrides: Callable[[Ticket], list[str]],
        objective: Sequence[str],
        constraints: Mapping[str, Constraint],
        ended: Callable[[Ticket], None],
    ) -> None:
        self.ledger, self.launcher, self.at_once = ledger, launcher, at_once
        self.overrides, self.objective, self.constraints = overrides, objective, constraints
        self.ended = ended

    def run(self) -> None:
        """To the end of the budget; KeyboardInterrupt ends the jobs that run."""
        logging.getLogger("hydra").setLevel(logging.WARNING)  # it would repeat all overrides
        if getattr(self.launcher, "is_thread_safe", False):
            self._slot_by_slot()
        else:
            self._in_batches()

    def _in_batches(self) -> None:
        while tickets := self._claim(self.at_once):
            for ticket, job in zip(tickets, self._launch(tickets), strict=True):
                self._settle(ticket, job)
                del job  # and with it the model in the frames of an exception

    def _slot_by_slot(self) -> None:
        """A slot that is free takes the next trial, whatever the others are at."""
        running: dict[Future[Sequence[JobReturn]], Ticket] = {}
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                while True:
                    for ticket in self._claim(self.at_once - len(running)):
                        running[pool.submit(self._launch, [ticket])] = ticket
                    if not running:
                        return
                    done, _ = wait(running, WAIT_SECONDS, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._settle(running.pop(future), future.result()[0])
            except BaseException:
                self.launcher.stop()  # or the pool would wait for its jobs to come to their end
                raise

    def _launch(self, tickets: Sequence[Ticket]) -> Sequence[JobReturn]:
        """What became of their jobs; a launcher that breaks, as with its node, breaks them all."""
        words = [self.overrides(ticket) for ticket in tickets]
        try:
            return self.launcher.launch(words, initial_job_idx=tickets[0].number)
        except Exception as error:
            _log.warning("the launcher failed: %s: %s", type(error).__name__, error)
            lost = JobReturn(status=JobStatus.FAILED)
            lost.return_value = JobLost(f"{type(error).__name__}: {error}")
            return [lost] * len(tickets)

    def _claim(self, free: int) -> list[Ticket]:
        tickets: list[Ticket] = []
        while len(tickets) < free and (ticket := self.ledger.claim()) is not None:
            tickets.append(ticket)
        return tickets

    def _settle(self, ticket: Ticket, job: JobReturn) -> None:
        if was_told_to_stop():  # the job's own end is then no news of it
            raise KeyboardInterrupt
        result = job._return_value
        if isinstance(result, BaseException):
            # Its frames hold the model, which must be gone before the next one comes.
            result.__traceback__ = result.__context__ = result.__cause__ = None
        if job.status is JobStatus.COMPLETED:
            self._complete(ticket, result)
        elif type(result).__name__ == "TrialPruned":
            self.ledger.prune(ticket)
        else:
            self._fail(ticket, result)
        self.ended(ticket)

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        kind = kind_of(error)
        if kind == "refused" and not self.ledger.has_results:
            # The next ones would fare the same, and that can be known now.
            self.ledger.refuse(ticket, _shortened(str(error)))
            raise StudyError(f"the study ends with its first trial: {error}")
        reason = _shortened(f"{type(error).__name__}: {error}")
        self.ledger.fail(ticket, reason, retry=kind in _WORTH_A_RETRY)

    def _complete(self, ticket: Ticket, result: Any) -> None:
        metrics = {str(k): float(v) for k, v in result.items()} if isinstance(result, dict) else {}
        missing = [name for name in (*self.objective, *self.constraints) if name not in metrics]
        if missing:
            found = ", ".join(sorted(metrics)) or "no metrics at all"
            reason = (
                f"the trial gave no {', '.join(missing)}; it gave {found}. "
                "Name one of these in hydra.sweeper.objective."
            )
            self.ledger.fail(ticket, reason, retry=False)
            return
        self.ledger.complete(
            ticket,
            [metrics[name] for name in self.objective],
            constraints={k: c.violation(metrics[k]) for k, c in self.constraints.items()},
            # JSON has no NaN, and a storage may insist on that.
            attrs={"metrics": {k: v for k, v in metrics.items() if math.isfinite(v)}},
        )


def _shortened(text: str) -> str:
    """What happened stands first, and why in the last lines of a log."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 3]} … {text[-_SHOWN * 2 // 3 :]}"


def kind_of(error: BaseException) -> str:
    """crashed, out_of_memory, refused or failed: what became of a job that gave no result."""
    kind = getattr(error, "kind", None)  # of JobFailed, from a process of its own
    return str(kind) if kind is not None else status_of(error)
