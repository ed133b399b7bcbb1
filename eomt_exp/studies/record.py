"""What a study shows and leaves behind: table, MLflow's parent run, pictures, the winner's file."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from optuna.trial import FrozenTrial

from eomt_exp.engine.seen_images import FILE_NAME as SEEN
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.studies.best import command_of, keep_only, write_best
from eomt_exp.studies.ledger import Ledger, Ticket
from eomt_exp.studies.own_settings import own_settings
from eomt_exp.studies.parent_run import NullStudyRun, StudyRun, compare_link
from eomt_exp.studies.plan import Plan
from eomt_exp.studies.plots import draw
from eomt_exp.studies.row import Row
from eomt_exp.studies.spread import print_spread
from eomt_exp.studies.table import StudyTable
from eomt_exp.studies.tally import folder_of

_log = logging.getLogger(__name__)
_COMPARED = 5  # runs that the link opens side by side
# What a look at validation images tells of them: the study has chosen by it.
_LOOKED_AT = ("validation", "selection", "tuning")


class Record:
    """The outside of a running study, as a context manager around its loop."""

    def __init__(self, plan: Plan, ledger: Ledger, at_once: int) -> None:
        self.plan, self.ledger = plan, ledger
        settings = plan.settings
        self.names = tuple(settings.directions)
        self.table = StudyTable(
            settings.directions, settings.n_trials, at_once, name=settings.study
        )
        self.mlflow = _parent_run(plan, ledger)

    @property
    def parent_run_id(self) -> str | None:
        """MLflow's id of the study, None without MLflow."""
        return self.mlflow.run_id

    def __enter__(self) -> Record:
        self.mlflow.__enter__()
        settings, rows = self.plan.settings, self.ledger.rows()
        self.mlflow.describe(
            sampler=settings.sampler,
            pruner=settings.pruner,
            objective=settings.directions,
            n_trials=settings.n_trials,
            space=self.plan.space.fingerprint(),
        )
        self.mlflow.reap(row.folder for row in rows)
        self.table.start(rows)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, Exception):
                self.table.finish(self.ledger.rows())
        except Exception as other:  # the storage itself may be why the study ends
            _log.warning("no table of the study: %s: %s", type(other).__name__, other)
        finally:
            self.mlflow.__exit__(kind, error, trace)

    def ended(self, ticket: Ticket) -> None:
        """A trial came to whatever end; one that will be tried again is not shown."""
        self._note_images(ticket.folder)
        row = next((row for row in self.ledger.rows() if row.number == ticket.number), None)
        if row is None:
            print(f"trial {ticket.number} did not come to its end; it is tried again.", flush=True)
            return
        self.table.add(row)
        best = self.winners()[:1] if len(self.names) == 1 else []
        self.mlflow.trial_done(
            row.number,
            self._named(row.values),
            self._named(best[0].values) if best else None,
            row.state,
        )

    def winners(self) -> list[FrozenTrial]:
        """The best trial, or the Pareto front; empty before a trial is complete and feasible."""
        study = self.ledger.study
        if len(self.names) > 1:
            return list(study.best_trials)
        try:
            return [study.best_trial]  # the best one that keeps all constraints
        except ValueError:
            return []

    def finish(self) -> None:
        """Tables, pictures, files, and what to type next."""
        rows, winners = self.ledger.rows(), self.winners()
        self.table.finish(rows)
        is_over_seeds = "seed" in self.plan.space.names
        if is_over_seeds:
            print_spread(self._metrics(), "seed")
        files = [] if is_over_seeds else self._write_winners(winners)
        pictures = self._draw()
        self.mlflow.finish(
            pictures,
            files,
            None if is_over_seeds else self._best(winners),
            Counter(row.state for row in rows),
        )
        self._say(rows, files, pictures, is_over_seeds)

    def _named(self, values: Sequence[float] | None) -> dict[str, float] | None:
        return None if not values else dict(zip(self.names, values, strict=False))

    def _metrics(self) -> list[dict[str, float]]:
        trials = {trial.number: trial for trial in self.ledger.study.get_trials(deepcopy=False)}
        return [trials[row.number].user_attrs.get("metrics", {}) for row in self.ledger.rows()]

    def _write_winners(self, winners: Sequence[FrozenTrial]) -> list[Path]:
        plan, study = self.plan, self.plan.settings.study
        chosen, settings = own_settings(plan)
        files = [
            write_best(
                plan.folder,
                study,
                plan.cfg.hydra.runtime.choices.get("experiment"),
                [*chosen, *plan.fixed, *plan.search_path],
                self._named(trial.values) or {},
                plan.space.words(trial.params),
                lambda key: plan.options(key) is not None,
                settings=settings,
                number=trial.number,
                on_front=len(self.names) > 1,
            )
            for trial in winners
        ]
        keep_only(plan.folder, study, files)
        return files

    def _best(self, winners: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        if not winners:
            return None
        best = winners[0]
        values = self._named(best.values)
        return {
            "trial": best.number,
            "folder": folder_of(best),
            "value": best.value if len(self.names) == 1 else values,
            "params": best.params,
        }

    def _draw(self) -> list[Path]:
        """Pictures are worth a warning, not a study."""
        try:
            return draw(self.ledger.study, self.plan.folder / "plots", self.names)
        except Exception as error:
            _log.warning("no pictures of the study: %s: %s", type(error).__name__, error)
            return []

    def _say(
        self,
        rows: Sequence[Row],
        files: Sequence[Path],
        pictures: Sequence[Path],
        is_over_seeds: bool,
    ) -> None:
        complete = [row for row in rows if row.state == "complete"]
        folders = [str(self.plan.folder / row.folder) for row in complete]
        if is_over_seeds and folders:
            word = shlex.quote(f"checkpoint=[{','.join(folders)}]")
            print(f"leaderboard: python -m eomt_exp task=evaluate {word}")
        for file in files[:_COMPARED]:
            print(f"run the winner: {command_of(file, [*self.plan.fixed, *self.plan.search_path])}")
        if pictures:
            print(f"pictures: {pictures[0]}")
        way = -1 if next(iter(self.plan.settings.directions.values())) == "maximize" else 1
        complete.sort(key=lambda row: way * (row.values or (0.0,))[0])
        ids = self.mlflow.run_ids(row.folder for row in complete[:_COMPARED])
        if len(ids) > 1 and self.mlflow.experiment_id:
            print(f"compare them (make ui): {compare_link(ids, self.mlflow.experiment_id)}")
        points = self.plan.space.num_points()
        if self.plan.settings.sampler.get("name") == "grid" and points > len(rows):
            print(
                f"{len(rows)} of the grid's {points} points; all: hydra.sweeper.n_trials={points}"
            )
        if self.ledger.open_elsewhere():
            print("other controllers are still at trials of this study.")

    def _note_images(self, folder: str) -> None:
        """The study's record of the images it chose by; whoever uses the winner has seen them."""
        if not (self.plan.folder / folder / SEEN).is_file():
            return
        found, mine = SeenImages.load(self.plan.folder / folder), SeenImages()
        if (self.plan.folder / SEEN).is_file():
            mine.include(SeenImages.load(self.plan.folder))
        for use in _LOOKED_AT:
            if use in found.uses:
                mine.add("tuning", found.uses[use])
        mine.save(self.plan.folder)


def _parent_run(plan: Plan, ledger: Ledger) -> StudyRun:
    tracking = plan.cfg.tracking
    if not tracking.enabled:
        return NullStudyRun(plan.folder)
    return StudyRun(
        uri=tracking.uri,
        experiment=tracking.experiment,
        artifacts=tracking.artifacts,
        study_dir=plan.folder,
        name=plan.settings.study,
        tags=dict(tracking.tags),
        others_open=lambda: _others_are_at(ledger),
    )


def _others_are_at(ledger: Ledger) -> bool:
    try:
        return ledger.open_elsewhere() > 0
    except Exception as error:  # a storage that is away: the run is to be closed all the same
        _log.warning("nobody knows who else is at the study: %s", error)
        return False
