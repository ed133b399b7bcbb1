"""Reads published numbers, to be shown beside ours: none was measured by this suite."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from eomt_exp.report.leaderboard import Anchor


def anchors_for(benchmarks: Sequence[str], kin: Collection[str] = ()) -> list[Anchor]:
    """Return the anchors of these benchmarks, benchmark by benchmark; many have none.

    Within one, methods of the models `kin` ("ERFNet") come first, and the higher AP.
    `published.json` keeps percent as printed at the source, tables of one source and protocol
    together; null is a number that the source leaves out. Here they become fractions.
    """

    def order(anchor: Anchor) -> tuple[int, bool, float]:
        is_kin = any(anchor.method.startswith(f"{name} ") for name in kin)
        return benchmarks.index(anchor.benchmark), not is_kin, -anchor.values.get("ap", 0.0)

    return sorted((anchor for anchor in _all() if anchor.benchmark in benchmarks), key=order)


@cache
def _all() -> tuple[Anchor, ...]:
    content = json.loads(files(__package__).joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(anchor for table in content["tables"] for anchor in _anchors(table))


def _anchors(table: dict[str, Any]) -> list[Anchor]:
    """Read one table: methods down, benchmarks across."""
    return [
        Anchor(
            benchmark,
            method,
            {
                key: round(value / 100, 6)
                for key, value in zip(table["metrics"], row, strict=True)
                if value is not None
            },
            table["source"],
            table["protocol"][benchmark],
        )
        for method, rows in table["methods"].items()
        for benchmark, row in rows.items()
    ]
