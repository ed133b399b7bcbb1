"""Reads published numbers, to be shown beside ours: none was measured by this suite."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cache
from importlib.resources import files

from eomt_exp.report.leaderboard import PublishedResult


def published_for(benchmarks: Sequence[str], kin: Collection[str] = ()) -> list[PublishedResult]:
    """Return the published results of these benchmarks, in their order; many have none.

    Within one, methods of the models `kin` ("ERFNet") come first, and the higher AP.
    `published.json` keeps percent as printed at the source, tables of one source and protocol
    together; null is a number that the source leaves out. Here they become fractions.
    """

    def order(entry: PublishedResult) -> tuple[int, bool, float]:
        is_kin = any(entry.method.startswith(f"{name} ") for name in kin)
        return benchmarks.index(entry.benchmark), not is_kin, -entry.values.get("ap", 0.0)

    return sorted((entry for entry in _all() if entry.benchmark in benchmarks), key=order)


@cache
def _all() -> tuple[PublishedResult, ...]:
    content = json.loads(files(__package__).joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(
        PublishedResult(
            benchmark,
            method,
            {k: round(v / 100, 6) for k, v in zip(t["metrics"], row, strict=True) if v is not None},
            t["source"],
            t["protocol"][benchmark],
        )
        for t in content["tables"]  # methods down, benchmarks across
        for method, rows in t["methods"].items()
        for benchmark, row in rows.items()
    )
