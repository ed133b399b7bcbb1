"""Finds the runs that belong beside one run, and the page of MLflow that compares them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST = 10  # runs on one page; more columns than these nobody reads
_SAME = ("data", "protocol")  # numbers of other images or another protocol are other numbers


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
