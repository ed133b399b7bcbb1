"""Gives each method of the report one name and one line style on every benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from eomt_exp.report.html.charts import swatch
from eomt_exp.report.html.tags import Html, tag
from eomt_exp.report.leaderboard import Leaderboard, Result


class Methods:
    """Holds names and line styles of a leaderboard's methods, the same in all its benchmarks."""

    def __init__(self, board: Leaderboard) -> None:
        self.order = list(dict.fromkeys((r.model, r.scorer) for r in board.results))
        self._is_named = len(board.models) > 1

    def name(self, model: str, scorer: str) -> str:
        """Return the scorer alone where there is but one model."""
        return f"{model} {scorer}" if self._is_named else scorer

    def of(self, result: Result) -> str:
        """Return the name of a result's method."""
        return self.name(result.model, result.scorer)

    def style(self, result: Result) -> int:
        """Return an index for charts.stroke."""
        return self.order.index((result.model, result.scorer))


def legend(results: Sequence[Result], methods: Methods) -> Html:
    """List lines and names; pointing at one dims the others."""
    items = [
        tag("li", swatch(methods.style(r)), tag("span", methods.of(r)), data_s=methods.style(r))
        for r in results
    ]
    return tag("ul", *items, class_="legend")
