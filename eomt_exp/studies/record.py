"""Shows a study and writes what it leaves: table, MLflow's parent run, pictures, the winner."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from eomt_exp.engine.seen_images import FILE_NAME as SEEN
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.paths import ui_steps
from eomt_exp.studies.ledger import ClaimedTrial, Ledger
from eomt_exp.studies.plan import Plan
from eomt_exp.studies.plots import draw
from eomt_exp.studies.table import StudyTable, print_spread
from eomt_exp.studies.trials import Row
from eomt_exp.studies.winner import write_winner
from eomt_exp.tracking.run import MLflowTracker, Tracker, run_id_of

_COMPARED = 5  # runs that the link opens side by side
# What a run's record says of the images it validated on: the study chose by them.
_CHOSEN_BY = ("validation", "selection", "tuning")


class Record:
    """Shows a running study, and writes what it leaves behind; `tracker` is its parent run."""

    def __init__(self, plan: Plan, ledger: Ledger, tracker: Tracker, at_once: int) -> None:
        self.plan, self.ledger, self.tracker = plan, ledger, tracker
        given = plan.settings
        self.table = StudyTable(given.directions, given.n_trials, at_once, given.study)

    def start(self) -> None:
        """Log what the study is, and show the trials that have ended before."""
        given = self.plan.settings
        groups = {"sampler": given.sampler, "pruner": given.pruner, "objective": given.directions}
        groups["space"] = self.plan.space.fingerprint()
        self.tracker.log_params(
            {f"{g}.{k.lstrip('+')}": v for g, found in groups.items() for k, v in found.items()}
        )
        self.tracker.set_tags({"n_trials": given.n_trials})  # a param cannot grow with it
        self.table.start(self.ledger.rows(), self.ledger.best())

    def trial_ended(self, claimed: ClaimedTrial) -> None:
        """Show a trial that has come to an end; one that will be tried again is not shown."""
        self._note_images(claimed.folder)
        rows = self.ledger.rows()
        row = next((row for row in rows if row.number == claimed.number), None)
        if row is None:
            print(f"trial {claimed.number} has no result; it is tried again.", flush=True)
            return
        best = self.ledger.best()
        self.table.add(row, best)
        # The last value of a pruned trial is not the same thing, and a failed one has none.
        kind = {"complete": "value", "pruned": "pruned_value"}.get(row.state)
        point = named(f"sweep/{kind}", self._values(row)) if kind else {}
        if best and len(self.ledger.objective) == 1:
            point |= named("sweep/best_value", self._values(best[0]))
        if point:
            self.tracker.log_metrics(point, step=row.number)

    def finish(self) -> None:
        """Show and write tables, pictures, files, and what to type next."""
        rows, best = self.ledger.rows(), self.ledger.best()
        self.table.finish(rows, best)
        pictures = draw(self.ledger.study, self.plan.folder / "plots", list(self.ledger.objective))
        print(f"pictures: {pictures[0]}")
        for path in pictures:
            self.tracker.log_artifact(path, "plots")
        if "seed" in self.plan.space.parameters:  # a seed is no setting: there is no winner
            self._show_seeds(rows)
        elif best:
            self._write_winners(best if len(self.ledger.objective) > 1 else best[:1])
        ids = [run_id_of(self.plan.folder / row.folder) for row in best[:_COMPARED]]
        link = self.tracker.compare_link([run_id for run_id in ids if run_id])
        if link and isinstance(self.tracker, MLflowTracker):
            print(f"compare them: {ui_steps(self.tracker.uri, link)}")
        points = len(self.plan.space.grid(0)) if self.plan.is_grid else 0
        if points > len(rows):
            print(f"{len(rows)} of {points} points; all: hydra.sweeper.n_trials={points}")
        if self.ledger.open_elsewhere():
            print("other controllers are still at trials of this study.")

    def _values(self, row: Row) -> dict[str, float]:
        return dict(zip(self.ledger.objective, row.values or (), strict=False))

    def _write_winners(self, winners: Sequence[Row]) -> None:
        """Write a file for each winner, and note the first one in MLflow."""
        files = []
        for row in winners:
            path, command = write_winner(self.plan, row.params, row.number, self._values(row))
            files.append(path)
            self.tracker.log_artifact(path, "best")
            print(f"run the winner: {command}")
        for left_front in {*files[0].parent.glob("*.yaml")} - {*files}:
            left_front.unlink()
        first = winners[0]
        # Always at step 0: MLflow shows the last step's value, and this one is to replace it.
        self.tracker.log_metrics(named("best_value", self._values(first)), step=0)
        tags = {"best.trial": first.number, "best.params": first.params}
        run_id = run_id_of(self.plan.folder / first.folder)
        self.tracker.set_tags(tags | ({"best.run_id": run_id} if run_id else {}))

    def _show_seeds(self, rows: Sequence[Row]) -> None:
        """Print the spread over the trials, and the command of their leaderboard."""
        trials = self.ledger.study.get_trials(deepcopy=False)
        metrics = [trials[row.number].user_attrs.get("metrics", {}) for row in rows]
        print_spread(metrics, self.table.console)
        folders = [str(self.plan.folder / r.folder) for r in rows if r.state == "complete"]
        override = shlex.quote(f"checkpoint=[{','.join(folders)}]")
        print(f"leaderboard: python -m eomt_exp task=evaluate {override}")

    def _note_images(self, folder: str) -> None:
        """Keep a record of the images the study chose by: whoever uses the winner has seen them."""
        if not (self.plan.folder / folder / SEEN).is_file():
            return
        found, ours = SeenImages.load(self.plan.folder / folder), SeenImages()
        if (self.plan.folder / SEEN).is_file():
            ours.include(SeenImages.load(self.plan.folder))
        for use in _CHOSEN_BY:
            if use in found.uses:
                ours.add("tuning", found.uses[use])
        ours.save(self.plan.folder)


@contextmanager
def parent_run(settings: Any, folder: Path, others_open: Callable[[], int]) -> Iterator[Tracker]:
    """Open a study's own run in MLflow, and end it FINISHED, FAILED or KILLED as the study ends.

    It has a point for each trial that ends: MLflow folds trials away below their parent, whose
    chart would be empty without these.

    A later try and another controller find it by the id file in the study's folder. It is left
    RUNNING where `others_open()` controllers are still at the study. `settings` are conf/tracking;
    without MLflow its points still go to metrics.jsonl in `folder`.
    """
    tracker = Tracker(folder)
    if settings.enabled:
        tracker = MLflowTracker(
            uri=settings.uri,
            experiment=settings.experiment,
            artifact_root=settings.artifacts,
            run_name=folder.name,
            run_dir=folder,
            tags={**settings.tags, "eomt.kind": "sweep"},
        )
    with ExitStack() as stack:
        # Two controllers that begin at once would open two parents, and one would be lost.
        with FileLock(folder / ".mlflow_run_id.lock"):
            tracker.__enter__()
        stack.push(lambda *end: tracker.leave() if others_open() else tracker.__exit__(*end))
        yield tracker


def named(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return {name: value}, or {name/metric: value} where there are several."""
    if len(values) == 1:
        return dict.fromkeys([name], *values.values())
    return {f"{name}/{metric}": value for metric, value in values.items()}
