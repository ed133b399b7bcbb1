"""Defines a finding about a data set: how grave, how many images, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]  # worst first
FIRST = 5  # names a finding gives, unless each of them must be fixed


class Finding(NamedTuple):
    """Says one thing to know about a set."""

    kind: str
    severity: Severity
    number: int  # mostly of images; 0 where it is about the set as a whole
    what: str
    advice: str
    names: Sequence[str] = ()  # of the first ones; of all where each must be fixed

    @property
    def text(self) -> str:
        """Write it out: "images without anomaly: 3. They are kept …"."""
        tail = f": {self.number:,}" if self.number else ""
        return f"{self.what}{tail}. {self.advice}"

    @property
    def lines(self) -> list[str]:
        """Write it out, a name a line, and how many names are left out."""
        more = self.number - len(self.names) if self.names else 0
        return [self.text, *self.names, *[f"and {more:,} more"] * (more > 0)]


def of_names(
    kind: str, severity: Severity, names: Sequence[str], what: str, advice: str, first: int = FIRST
) -> Finding | None:
    """Make a finding about these names, which gives the `first`; None where there are none."""
    if not names:
        return None
    return Finding(kind, severity, len(names), what, advice, names[:first])
