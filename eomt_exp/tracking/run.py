"""Records what a run logs: in MLflow where there is one, in metrics.jsonl in any case.

Metrics are buffered, since one `log_metric` on sqlite costs 15 ms and a batch of a thousand 90.
The trainer calls `flush()` *before* it saves a checkpoint and `rewind(step)` after it has loaded
one: metrics.jsonl then has each step once. MLflow cannot forget a point, so a step that a killed
try had flushed after its last checkpoint stands there twice, with two times.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eomt_exp.contracts import TrialPruned
from eomt_exp.files import write_text
from eomt_exp.signals import stop_signals
from eomt_exp.tracking.metrics_file import FILE_NAME, Journal
from eomt_exp.tracking.provenance import run_tags
from eomt_exp.tracking.store import (
    MAX_TAG,
    clean_name,
    clean_value,
    compare_link,
    experiment_id,
    explained,
    find_run,
    latest_of_each_method,
    open_store,
    run_status_of,
)

log = logging.getLogger(__name__)

RUN_ID_FILE = "mlflow_run_id"
RETRY_SECONDS = 60.0  # how long a store that failed is left alone


class Tracker:
    """Keeps the journal of `run_dir` and does without MLflow (`tracking=none`).

    It is a context manager around the run; everything else may be called only inside it. Without a
    `run_dir`, as on every rank but the first, it keeps nothing at all.
    """

    run_id: str | None = None  # MLflow's, None without MLflow

    def __init__(self, run_dir: str | Path | None = None) -> None:
        self.journal = Journal(Path(run_dir) / FILE_NAME) if run_dir is not None else None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Close the run; an exception is passed on."""

    def leave(self) -> None:
        """Send everything but leave the run RUNNING, since another process goes on with it."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log flat settings of the run, `{"optim.lr": 1e-4}`."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers of one step; NaN is allowed."""
        if self.journal is not None:
            self.journal.write(metrics, step)

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`, since a resumed run will do it again."""
        if self.journal is not None:
            self.journal.rewind(step)

    def flush(self) -> None:
        """Send what is buffered."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file under the artifact folder `folder`."""

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Add or change tags."""

    def compare_link(self, run_ids: list[str] | None = None) -> str:
        """Return MLflow's page that compares these runs; "" without MLflow, or of fewer than two.

        Without `run_ids` it compares this run with the latest of each other method.
        """
        return ""


@dataclass(kw_only=True)
class MLflowTracker(Tracker):
    """Opens one MLflow run as a context manager, or goes on with it after a killed try.

    Opening fails loudly (TrackingError); after that a store that is away costs warnings only,
    never the training: metrics wait in the buffer and are in the journal. It has a client of its
    own instead of MLflow's global active run, so that no run can leak into the next one.
    """

    uri: str  # MLFLOW_TRACKING_URI wins over it
    experiment: str
    artifact_root: str  # the folder or address for those of a new experiment
    run_name: str
    run_dir: Path
    parent_run_id: str | None = None
    tags: Mapping[str, object] = field(default_factory=dict)
    flush_seconds: float = 10.0
    flush_size: int = 500

    def __post_init__(self) -> None:
        super().__init__(self.run_dir)
        self.run_id: str = ""  # until the run is open
        self._params: dict[str, str] = {}  # those the run has already
        self._buffer: list[tuple[str, float, int, int]] = []  # name, value, ms since 1970, step
        self._next_flush = self._retry_after = 0.0  # time.monotonic()

    def __enter__(self) -> MLflowTracker:
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or self.uri
        with explained(self.uri):
            self._client = open_store(self.uri)
            self._open_run()
        self._next_flush = time.monotonic() + self.flush_seconds
        return self

    def _open_run(self) -> None:
        """Go on with the run named in the run's folder, or begin one and name it there.

        A child begins in the experiment of its parent, wherever that stands.
        """
        run_id = run_id_of(self.run_dir)
        earlier = find_run(self._client, run_id)
        if run_id and earlier is None:
            log.warning("MLflow has lost run %s of %s; a new one begins.", run_id, self.run_dir)
        tags = _text_tags({**run_tags(self.run_dir, self.parent_run_id), **self.tags})
        if earlier is None:
            parent = find_run(self._client, self.parent_run_id)
            self.experiment_id = (
                parent.info.experiment_id
                if parent
                else experiment_id(self._client, self.uri, self.experiment, self.artifact_root)
            )
            run = self._client.create_run(self.experiment_id, tags=tags, run_name=self.run_name)
            self.run_id = run.info.run_id
            write_text(self.run_dir / RUN_ID_FILE, self.run_id + "\n")
            return
        self.experiment_id = earlier.info.experiment_id
        self.run_id, self._params = earlier.info.run_id, dict(earlier.data.params)
        self._client.update_run(self.run_id, status="RUNNING")
        if "error" in earlier.data.tags:
            self._client.delete_tag(self.run_id, "error")
        self.set_tags(tags)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        status = run_status_of(error)
        if status == "FAILED":
            self.set_tags({"error": f"{type(error).__name__}: {error}"[:2000]})
        elif isinstance(error, TrialPruned):
            self.set_tags({"optuna.state": "PRUNED"})
        self.leave()
        self._attempt("end the run", lambda: self._client.set_terminated(self.run_id, status))

    def leave(self) -> None:
        self._retry_after = 0.0  # the last chance, whatever happened before
        self.flush()
        if waiting := len(self._buffer):
            log.warning(
                "%d metrics never reached MLflow; see %s", waiting, self.run_dir / FILE_NAME
            )

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log what the run has not got yet: MLflow raises on a changed value, so a resumed run
        keeps the first one. Values above 6000 characters end in `[cut]`."""
        from mlflow.entities import Param

        new = {clean_name(name): clean_value(value) for name, value in params.items()}
        new = {name: value for name, value in new.items() if name not in self._params}
        entries = [Param(name, value) for name, value in new.items()]
        if self._attempt("log params", lambda: self._log_batch(params=entries)):
            self._params.update(new)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write the journal at once, MLflow when `flush_seconds` or `flush_size` is reached."""
        super().log_metrics(metrics, step)
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            self._buffer.append((clean_name(name), float(value), now, int(step)))
        if len(self._buffer) >= self.flush_size or time.monotonic() >= self._next_flush:
            self.flush()

    def rewind(self, step: int) -> None:
        """Drop later steps from the journal and from what MLflow has not got yet."""
        super().rewind(step)
        self._buffer = [entry for entry in self._buffer if entry[3] <= step]

    def flush(self) -> None:
        """Send the buffer; a store that just failed is left alone for a minute."""
        from mlflow.entities import Metric

        if not self._buffer or time.monotonic() < self._retry_after:
            return

        def send() -> None:
            self._log_batch(metrics=[Metric(*entry) for entry in self._buffer])
            self._buffer.clear()

        if self._attempt("log metrics", send):
            self._next_flush = time.monotonic() + self.flush_seconds
        else:
            self._retry_after = time.monotonic() + RETRY_SECONDS

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        path = str(path)
        self._attempt(f"log {path}", lambda: self._client.log_artifact(self.run_id, path, folder))

    def set_tags(self, tags: Mapping[str, object]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(name, value) for name, value in _text_tags(tags).items()]
        self._attempt("set tags", lambda: self._log_batch(tags=entries))

    def compare_link(self, run_ids: list[str] | None = None) -> str:
        ids = run_ids or []
        if run_ids is None:
            self._attempt(
                "find runs to compare",
                lambda: ids.extend(latest_of_each_method(self._client, self.run_id)),
            )
        return compare_link(ids, str(self.experiment_id), self.uri) if len(ids) > 1 else ""

    def _log_batch(self, **entries: Any) -> None:
        self._client.log_batch(self.run_id, **entries)

    def _attempt(self, what: str, action: Callable[[], object]) -> bool:
        """Return whether the store took it; a store that did not is worth a warning, not a run."""
        try:
            with stop_signals.held():
                action()
        except Exception as error:
            log.warning("MLflow could not %s (%s: %s)", what, type(error).__name__, error)
            return False
        return True


def run_id_of(folder: Path) -> str | None:
    """Return MLflow's id of the run in this folder; None where it has none."""
    path = folder / RUN_ID_FILE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _text_tags(tags: Mapping[str, object]) -> dict[str, str]:
    return {clean_name(name): clean_value(value, MAX_TAG) for name, value in tags.items()}
