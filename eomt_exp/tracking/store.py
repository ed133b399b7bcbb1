"""Opens MLflow's store once and safely, and fits names and values to its rules.

mlflow itself takes seconds to import, so it is imported inside the functions.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_exp.contracts import TrialPruned, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOCK_SECONDS = 180.0
MAX_NAME, MAX_PARAM, MAX_TAG = 250, 6000, 8000
CUT = " [cut]"


class TrackingError(UserError):
    """MLflow's store cannot be opened; the message says how to run without it."""


def open_store(uri: str) -> tuple[MlflowClient, str]:
    """Return a client and the address in force: MLFLOW_TRACKING_URI wins.

    A missing sqlite file and its folder are made. Raises TrackingError.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or uri
    # Two first users of one sqlite file would both create its tables, and one would die.
    with explained(uri), _first_use_lock(uri):
        _silence()
        from mlflow import MlflowClient

        with warnings.catch_warnings():  # alembic's, about the tables of MLflow
            warnings.simplefilter("ignore")
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)  # makes the tables
            return client, uri


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn whatever MLflow raises inside into a TrackingError that names a way out."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:500].rstrip(".")
        raise TrackingError(
            f"MLflow cannot be opened at {uri} ({type(error).__name__}: {reason}). "
            "Set another address with tracking.uri=… (or MLFLOW_TRACKING_URI), "
            "or add tracking=none to run without MLflow."
        ) from error


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return the run of that id, or None where this store does not have it (any more)."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return None if run.info.lifecycle_stage == "deleted" else run


def run_status_of(error: BaseException | None) -> str:
    """Return MLflow's status of a run that ended with `error`."""
    if error is None or isinstance(error, TrialPruned):
        return "FINISHED"
    # SIGTERM comes as KeyboardInterrupt or SystemExit, or as the death of a loader's worker.
    stopped = re.search(r"killed by signal: (Terminated|Interrupt)", str(error))
    return "FAILED" if isinstance(error, Exception) and not stopped else "KILLED"


def clean_name(name: str) -> str:
    """Fit a metric, param or tag name to MLflow: `iou/[road]` -> `iou/_road_`."""
    name = re.sub(r"[^\w.\- :/]", "_", str(name)).lstrip("/")
    name = posixpath.normpath(name) if name else "_"  # a//b and a/ would be refused
    return name.replace("..", "_")[:MAX_NAME]


def clean_value(value: object, limit: int = MAX_PARAM) -> str:
    """Keep text, write everything else as JSON (true, null, [1, 2]); cut to `limit` visibly."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite address; None for any other store."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(match[1]) if match and match[1] != ":memory:" else None


def _first_use_lock(uri: str) -> AbstractContextManager[object]:
    """Return the lock `<db>.lock`, to be held while the store is set up; none without a file."""
    from filelock import FileLock

    database = sqlite_file(uri)
    if database is None:
        return nullcontext()
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{database}.lock", timeout=LOCK_SECONDS)


def experiment_id(
    client: MlflowClient, uri: str, experiment: str, artifact_root: str | Path
) -> str:
    """Find the experiment, or create it with artifacts at an address that we chose.

    Raises TrackingError where it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            location = _artifact_location(uri, experiment, artifact_root)
            return client.create_experiment(experiment, artifact_location=location)
        except MlflowException:  # another client was faster
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"The MLflow experiment {experiment!r} was deleted. Bring it back with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}` and "
            f"MLFLOW_TRACKING_URI={uri}, or set tracking.experiment=… to another name."
        )
    return found.experiment_id


def _artifact_location(uri: str, experiment: str, root: str | Path) -> str | None:
    """Return where artifacts go: MLflow's default depends on the cwd; a server has its own."""
    if uri.startswith(("http:", "https:", "databricks")):
        return None
    if "://" in str(root):
        return f"{str(root).rstrip('/')}/{experiment}"
    return (Path(root).resolve() / experiment).as_uri()


def _silence() -> None:
    """Silence MLflow before and after its import; its own environment variables still win."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # A dead server would otherwise hold a training step for minutes; our buffer tries again.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    import mlflow  # noqa: F401  its import sets the levels anew

    for name in ("mlflow", "alembic", "sqlalchemy.engine"):
        logging.getLogger(name).setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
