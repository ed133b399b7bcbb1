"""Reads what a configuration says the label values of a data set mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from eomt_exp.contracts import UserError

Values = int | str | Sequence[int | str]  # 7, "2-200" (both ends belong to it), or a list of such


def value_table(meanings: Mapping[str, tuple[int, Values]]) -> dict[int, int]:
    """Map label values of the files to ours, from {key of the configuration: (ours, values)}.

    UserError for a value beyond 0..255, or one with two meanings.
    """
    table: dict[int, int] = {}
    for key, (ours, values) in meanings.items():
        entries = [values] if isinstance(values, (int, str)) else values
        for value in (v for entry in entries for v in _span(entry, key)):
            if not 0 <= value <= 255:
                raise UserError(f"{key} must lie in 0..255, got {value}.")
            if value in table:
                raise UserError(f"{key} holds {value}, which has a meaning already.")
            table[value] = ours
    return table


def spans(values: Iterable[int]) -> str:
    """Write "0, 2-200" and the like: some sets number their objects."""
    found: list[list[int]] = []
    for value in sorted(values):
        if found and found[-1][-1] == value - 1:
            found[-1][-1] = value
        else:
            found.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)


def _span(entry: int | str, key: str) -> range:
    """Read one value, or "2-200" as 2 to 200."""
    first, _, last = str(entry).partition("-")
    try:
        return range(int(first), int(last or first) + 1)
    except ValueError:
        raise UserError(f"{key} takes 7 or '2-200', got {entry!r}.") from None
