"""Opens MLflow's store once and safely, finds runs in it, and fits names and values to its rules.

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
from urllib.parse import quote

from eomt_exp.contracts import TrialPruned, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MOST = 10  # runs side by side on one page; more columns than these nobody reads
_SAME = ("data", "protocol")  # numbers of other images or another protocol are other numbers
LOCK_SECONDS = 180.0
MAX_NAME, MAX_PARAM, MAX_TAG = 250, 6000, 8000
CUT = " [cut]"


class TrackingError(UserError):
    """MLflow's store cannot be opened; the message says how to run without it."""


def open_store(uri: str) -> MlflowClient:
    """Return a client of the store; a missing sqlite file and its folder are made."""
    # Two first users of one sqlite file would both create its tables, and one would die.
    with _first_use_lock(uri):
        _silence()
        from mlflow import MlflowClient

        with warnings.catch_warnings():  # alembic's, about the tables of MLflow
            warnings.simplefilter("ignore")
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)  # makes the tables
            return client


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


def find_run(client: MlflowClient, run_id: str | None) -> Run | None:
    """Return the run of that id, or None without one or where this store has lost it."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
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
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url  # which decodes %20 in it, or does not, as it will to open it

    path = make_url(uri).database
    return Path(path) if path and path != ":memory:" else None


def _first_use_lock(uri: str) -> AbstractContextManager[object]:
    """Return the lock `<db>.lock`, to be held while the store is set up; none without a file."""
    from filelock import FileLock

    database = sqlite_file(uri)
    if database is None:
        return nullcontext()
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{database}.lock", timeout=LOCK_SECONDS)


def experiment_id(client: MlflowClient, uri: str, experiment: str, artifacts: str) -> str:
    """Find the experiment, or create it with artifacts at an address that we chose.

    Raises TrackingError where it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            location = _artifact_location(uri, experiment, artifacts)
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


def _artifact_location(uri: str, experiment: str, root: str) -> str | None:
    """Return where artifacts go: MLflow's default depends on the cwd; a server has its own."""
    if uri.startswith(("http:", "https:", "databricks")):
        return None
    if "://" in root:
        return f"{root.rstrip('/')}/{experiment}"
    return (Path(root).resolve() / experiment).as_uri()


def latest_of_each_method(client: MlflowClient, run_id: str) -> list[str]:
    """Return the ids of a run and of the latest finished one of each other method, newest first.

    Methods differ in the tag `method` of runs in the same experiment, on the same data and
    under the same protocol. A run without that tag stands alone.
    """
    run = client.get_run(run_id)
    tags = run.data.tags
    found = {tags.get("method"): run_id}
    if "method" in tags:
        others = client.search_runs(
            [run.info.experiment_id],
            " and ".join(f"tags.{name} = '{tags[name]}'" for name in _SAME)
            + " and attributes.status = 'FINISHED'",
            max_results=50_000,  # as many as MLflow gives at once; most are children, as trials are
            order_by=["attributes.start_time DESC"],
        )
        for other in others:
            if "method" in other.data.tags and "mlflow.parentRunId" not in other.data.tags:
                found.setdefault(other.data.tags["method"], other.info.run_id)
    return list(found.values())


def compare_link(run_ids: list[str], experiment_id: str, uri: str = "") -> str:
    """Return the page that compares runs, of a server at `uri` or else of `make ui`.

    It shows the first MOST of them. Quotes are escaped, since one would end the link in a terminal.
    """
    names = [json.dumps(ids, separators=(",", ":")) for ids in (run_ids[:MOST], [experiment_id])]
    runs, experiments = (quote(text, safe="") for text in names)
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/compare-runs?runs={runs}&experiments={experiments}"


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
