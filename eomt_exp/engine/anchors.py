"""Published numbers, to stand beside ours: nothing here was measured by this suite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from eomt_exp.engine.leaderboard import Anchor


def anchors_for(benchmarks: Sequence[str]) -> list[Anchor]:
    """The anchors of these benchmarks, benchmark by benchmark; none for one that nobody published.

    `anchors.json` keeps percent as printed at the source, tables of one source and protocol
    together; null is a number that the source leaves out. Here they become fractions.
    """
    return [anchor for name in benchmarks for anchor in _all() if anchor.benchmark == name]


@cache
def _all() -> tuple[Anchor, ...]:
    content = json.loads(files(__package__).joinpath("anchors.json").read_text(encoding="utf-8"))
    return tuple(anchor for table in content["tables"] for anchor in _of(table))


def _of(table: dict[str, Any]) -> list[Anchor]:
    """One table: methods down, benchmarks across."""
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
