"""Says how metrics and their values are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from eomt_exp.evaluator.metrics import METRICS, Metric

UNDEFINED = "undefined"
NOT_MEASURED = "\N{EN DASH}"


def metric(key: str) -> Metric:
    """Return the metric of a key; one that is not described gets a heading made of the key."""
    return METRICS.get(key) or Metric(key.replace("_", " "))


def ordered(keys: Iterable[str]) -> list[str]:
    """Return each key once: those of METRICS in its order, then the others as they came."""
    there = dict.fromkeys(keys)
    return [key for key in METRICS if key in there] + [key for key in there if key not in METRICS]


def measured(keys: Iterable[str], rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return those of the keys that at least one row has."""
    return [key for key in keys if any(key in row for row in rows)]


def shown(key: str, value: float | None) -> str:
    """Write a value: "0.812", "0.0003", "12,345" of counts, "undefined" of NaN and None."""
    if value is None or math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if form := metric(key).form:
        return form.format(value)
    return f"{value:.4f}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def best(key: str, values: Iterable[float | None]) -> float | None:
    """Return the best of several; None for one alone, or where none is defined or better."""
    everyone = list(values)
    defined = [value for value in everyone if value is not None and not math.isnan(value)]
    better = metric(key).better
    if len(everyone) < 2 or not defined or not better:
        return None
    return max(defined) if better > 0 else min(defined)
