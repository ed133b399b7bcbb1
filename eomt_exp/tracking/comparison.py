"""Finds the runs that belong beside one run, and the page of MLflow that compares them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MOST = 10  # runs on one page; more columns than these nobody reads
_SAME = ("data", "protocol")  # numbers of other images or another protocol are other numbers


def latest_of_each_method(client: MlflowClient, run_id: str) -> list[Run]:
    """Return a run and the latest finished one of each other method, newest first.

    Methods differ in the tag `method` of runs in the same experiment, on the same data and
    under the same protocol. A run without that tag stands alone.
    """
    run = client.get_run(run_id)
    tags = run.data.tags
    if "method" not in tags:
        return [run]
    wanted = " and ".join(f"tags.{name} = '{tags[name]}'" for name in _SAME)
    found = {tags["method"]: run}
    page = None
    while page != "" and len(found) < MOST:
        others = client.search_runs(
            [run.info.experiment_id],
            f"{wanted} and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            page_token=page,
        )
        for other in others:
            if "method" in other.data.tags and "mlflow.parentRunId" not in other.data.tags:
                found.setdefault(other.data.tags["method"], other)
        page = others.token or ""
    return list(found.values())[:MOST]


def compare_link(run_ids: Sequence[str], experiment_id: str, uri: str = "") -> str:
    """Return the page that compares runs, of a server at `uri` or else of `make ui`.

    Quotes are escaped, since one would end the link in a terminal.
    """
    names = [json.dumps(list(ids), separators=(",", ":")) for ids in (run_ids, [experiment_id])]
    runs, experiments = (quote(text, safe="") for text in names)
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/compare-runs?runs={runs}&experiments={experiments}"
