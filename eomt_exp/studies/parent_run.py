"""A study's own run in MLflow: the parent of its trials, with a point for each that ends.

MLflow folds trials away below their parent, whose chart would be empty without these points. The
run is found again by the id file in the study's folder, by a later try and by another controller.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from eomt_exp.tracking.run import RUN_ID_FILE, MLflowTracker, NullTracker, Tracker
from eomt_exp.tracking.store import LOCK_SECONDS, TrackingError, find_run

log = logging.getLogger(__name__)

LOCK_FILE = ".mlflow_run_id.lock"


class StudyRun:
    """The parent run as a context manager, FINISHED, FAILED or KILLED as the study ends.

    Opening fails loudly, a store that goes away later costs warnings only, as in MLflowTracker.
    While `others_open()` says that another controller is at the study, the run is left RUNNING.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifacts: str | Path,
        study_dir: str | Path,
        name: str,
        tags: Mapping[str, object] | None = None,
        enabled: bool = True,
        others_open: Callable[[], bool] = lambda: False,
    ) -> None:
        self.study_dir, self.others_open = Path(study_dir), others_open
        self._tracker: Tracker = NullTracker(study_dir)
        if enabled:
            self._tracker = MLflowTracker(
                uri=uri,
                experiment=experiment,
                run_name=name,
                run_dir=study_dir,
                artifact_root=artifacts,
                tags={**(tags or {}), "eomt.kind": "sweep"},
            )

    @property
    def run_id(self) -> str | None:
        """MLflow's; None without MLflow."""
        return self._tracker.run_id

    @property
    def experiment_id(self) -> str | None:
        """MLflow's, for `compare_link`; None without MLflow."""
        return self._tracker.experiment_id

    def __enter__(self) -> StudyRun:
        from filelock import FileLock, Timeout

        self.study_dir.mkdir(parents=True, exist_ok=True)
        lock = self.study_dir / LOCK_FILE
        try:
            # Two controllers that begin at once would open two parents, and one would be lost.
            with FileLock(lock, timeout=LOCK_SECONDS):
                self._tracker.__enter__()
        except Timeout:
            raise TrackingError(
                f"Another process has held {lock} for {LOCK_SECONDS:.0f} s. If none is running, "
                "delete that file; or add tracking=none to run without MLflow."
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.others_open():
            self._tracker.leave()
        else:
            self._tracker.__exit__(kind, error, trace)

    def describe(
        self,
        *,
        sampler: Mapping[str, object],
        pruner: Mapping[str, object],
        objective: Mapping[str, str],
        n_trials: int,
        space: Mapping[str, object],
    ) -> None:
        """Log what the study is as params: sampler.name, objective.val/ap, space.optim.lr, ….

        The number of trials is a tag, since a param cannot grow with it.
        """
        groups = {"sampler": sampler, "pruner": pruner, "objective": objective, "space": space}
        self._tracker.log_params(
            {
                f"{group}.{key.lstrip('+')}": value
                for group, settings in groups.items()
                for key, value in settings.items()
            }
        )
        self._tracker.set_tags({"n_trials": n_trials})

    def trial_done(
        self,
        number: int,
        values: Mapping[str, float] | None,
        best: Mapping[str, float] | None,
        state: str = "complete",
    ) -> None:
        """A point at step `number`: sweep/value and sweep/best_value, by objective when several.

        The last value of a pruned trial is sweep/pruned_value, since it is not the same thing; a
        failed one has none.
        """
        kind = {"complete": "value", "pruned": "pruned_value"}.get(state)
        metrics = _named(f"sweep/{kind}", values) if kind else {}
        metrics |= _named("sweep/best_value", best)
        if metrics:
            self._tracker.log_metrics(metrics, step=number)

    def finish(
        self,
        plots: Sequence[str | Path] = (),
        best_files: Sequence[str | Path] = (),
        best: Mapping[str, Any] | None = None,
        statuses: Mapping[str, int] | None = None,
    ) -> None:
        """Log the study's pictures, the winner's file and its numbers.

        `best` is {"trial": 7, "value": 0.4, "params": {key: value}} and, where that is not the
        trial's number, "folder"; "value" is {metric: float} where there are several objectives.
        `statuses` counts trials by state.
        """
        for folder, paths in (("plots", plots), ("best", best_files)):
            for path in paths:
                self._tracker.log_artifact(path, folder)
        tags: dict[str, object] = {f"trials.{k}": n for k, n in (statuses or {}).items()}
        if best is not None:
            value = best["value"]
            values = value if isinstance(value, Mapping) else {"": value}
            # Always at step 0: MLflow shows the last step's value, and this one is to replace it.
            self._tracker.log_metrics(_named("best_value", values), step=0)
            tags |= {"best.trial": best["trial"], "best.params": dict(best["params"])}
            run_id = self._run_of(str(best.get("folder", best["trial"])))
            tags |= {"best.run_id": run_id} if run_id else {}
        self._tracker.set_tags(tags)

    def reap(self, folders: Iterable[str]) -> list[str]:
        """Set KILLED the runs of trials that are RUNNING though their process on this host is dead.

        `folders` are those of the trials, below the study's. Only for the start of a study: a run
        under this very process number is then an earlier process's (containers count anew). The
        ids of the reaped runs come back.
        """
        if not isinstance(self._tracker, MLflowTracker):
            return []
        client, reaped = self._tracker.client, []
        try:
            for run_id in filter(None, map(self._run_of, folders)):
                run = find_run(client, run_id)
                if run and run.info.status == "RUNNING" and _is_dead(run.data.tags):
                    client.set_terminated(run_id, "KILLED")
                    reaped.append(run_id)
        except Exception as error:  # whatever a store may raise: the study matters more
            log.warning("MLflow: dead trials stay RUNNING (%s: %s)", type(error).__name__, error)
        return reaped

    def run_ids(self, folders: Iterable[str]) -> list[str]:
        """MLflow's ids of the trials in these folders; those without one are left out."""
        return list(filter(None, map(self._run_of, folders)))

    def _run_of(self, folder: str) -> str | None:
        try:
            return (self.study_dir / folder / RUN_ID_FILE).read_text(encoding="utf-8").strip()
        except OSError:
            return None


class NullStudyRun(StudyRun):
    """A study without MLflow; with a folder, its points still go to metrics.jsonl there."""

    def __init__(self, study_dir: str | Path) -> None:
        super().__init__("", "", "", study_dir, "", enabled=False)


def compare_link(
    run_ids: Sequence[str], experiment_id: str, base: str = "http://127.0.0.1:5000"
) -> str:
    """The page of MLflow that compares runs; encoded, or a terminal would end the link at a quote.

    `mlflow ui` serves it at `base`.
    """

    def encoded(names: Sequence[str]) -> str:
        return quote(json.dumps(list(names), separators=(",", ":")), safe="")

    runs, experiments = encoded(run_ids), encoded([experiment_id])
    return f"{base.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}"


def _named(name: str, values: Mapping[str, float] | None) -> dict[str, float]:
    """{name: value}, or {name/metric: value} where there are several."""
    values = values or {}
    if len(values) == 1:
        return dict.fromkeys([name], *values.values())
    return {f"{name}/{metric}": value for metric, value in values.items()}


def _is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process of a run is known to be gone: of another host nobody can tell."""
    pid = tags.get("pid", "")
    if tags.get("host") != platform.node() or not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
