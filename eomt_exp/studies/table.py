"""A study in the terminal: a line for each trial that ends, and at the end the best of them.

Lines are only ever added, nothing is drawn over, so a log file reads as a terminal does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from eomt_exp.studies.row import Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}
LOG_WIDTH = 300  # columns where there is no terminal: rich takes 80 and cuts numbers off
NUM_EARLIER = 5  # lines of trials from before; the head line counts the others
NUM_BEST = 5  # trials of the closing table, and columns of each of its parts


class StudyTable:
    """Prints a study as it goes; `objective` is {metric: maximize | minimize}."""

    def __init__(
        self,
        objective: Mapping[str, str],
        n_trials: int,
        at_once: int = 1,
        console: Console | None = None,
        name: str = "",
    ) -> None:
        from rich.console import Console

        self.names, self.directions = tuple(objective), tuple(objective.values())
        self.n_trials, self.at_once, self.name = n_trials, max(at_once, 1), name
        self.console = console or Console(highlight=False)
        if console is None and not self.console.is_terminal:
            self.console.width = LOG_WIDTH
        self._rows: list[Row] = []
        self._front: list[Row] = []  # of one objective: the best one

    def start(self, earlier: Sequence[Row] = ()) -> None:
        """The head line and, of the trials that ended in an earlier try, the last few."""
        ended = [row for row in earlier if row.state != "running"]
        aims = ", ".join(
            f"{way} {name}" for name, way in zip(self.names, self._ways(), strict=True)
        )
        words = [f"{self.name + ': ' if self.name else ''}{aims}, {self.n_trials} trials"]
        if self.at_once > 1:
            words.append(f"{self.at_once} at once")
        if ended:
            words.append(f"{len(ended)} done before ({_counted(ended)})")
        self._print(_text(", ".join(words), "bold"), cut=False)
        self._print(_text(self._header(), "dim"))
        for index, row in enumerate(ended):
            self._count(row)
            if index >= len(ended) - NUM_EARLIER:
                self._print(self._line(row, left=""))

    def add(self, row: Row) -> None:
        """One more trial has ended."""
        self._count(row)
        left = max(self.n_trials - len(self._rows), 0)
        self._print(self._line(row, clock(self._seconds_left(left))))
        if row.note:
            self._print(_text(f"       {row.folder}: {' '.join(row.note.split())}", "dim"))

    def finish(self, rows: Sequence[Row]) -> None:
        """Counts, the best trials with all their parameters, and what the study took."""
        self._print(_text(summary(rows), "bold"), cut=False)
        chosen = self._chosen(rows)
        if not chosen:
            self._print(_text("no trial is complete, so there is no best one.", "red"), cut=False)
        width = self._num_columns(chosen)
        for begin in range(0, len(chosen), width):
            self.console.print(self._table(chosen[begin : begin + width], len(chosen)))
        self.console.file.flush()

    def _chosen(self, rows: Sequence[Row]) -> list[Row]:
        """The best five, or all of the Pareto front, best first by the first objective."""
        complete = [row for row in rows if _may_win(row)]
        if len(self.names) > 1:
            complete = front(complete, self.directions)
        complete.sort(key=lambda row: _losses(row, self.directions))
        return complete[:NUM_BEST] if len(self.names) == 1 else complete

    def _num_columns(self, rows: Sequence[Row]) -> int:
        """How many trials stand side by side without breaking names and numbers."""
        params = [item for row in rows for item in row.params.items()]
        name = max((len(key) for key in (*self.names, *(key for key, _ in params))), default=0)
        cell = max((len(shown(value)) for _, value in params), default=0)
        return max(1, min(NUM_BEST, (self.console.width - name - 4) // (max(cell, 10) + 3)))

    def _table(self, rows: Sequence[Row], total: int) -> Table:
        """Trials across, parameters down: their full names need the room that numbers do not."""
        from rich.markup import escape
        from rich.table import Table

        title = f"best {total} trials" if len(self.names) == 1 else f"Pareto front, {total} trials"
        table = Table(title="best trial" if total == 1 else title, title_justify="left")
        table.add_column("trial", overflow="fold")
        for row in rows:
            table.add_column(str(row.number), justify="right", overflow="fold")
        for index, name in enumerate(self.names):
            table.add_row(escape(name), *(shown(_values(row)[index]) for row in rows), style="bold")
        table.add_row("time", *(clock(row.seconds) for row in rows), end_section=True)
        for key in dict.fromkeys(key for row in rows for key in row.params):
            cells = [shown(row.params[key]) if key in row.params else "-" for row in rows]
            table.add_row(escape(key), *map(escape, cells))
        return table

    def _count(self, row: Row) -> None:
        self._rows.append(row)
        if _may_win(row):
            self._front = front([*self._front, row], self.directions)
            if len(self.names) == 1:
                self._front = self._front[:1]  # of equals the first one made it

    def _seconds_left(self, left: int) -> float | None:
        times = [row.seconds for row in self._rows if row.state in ("complete", "pruned")]
        return median(times) * left / self.at_once if times else None

    def _header(self) -> str:
        short = short_names(self.names)
        columns = "".join(f"{short[name][:10]:>11}" for name in self.names)
        best = "best" if len(self.names) == 1 else "front"
        return f"{'trial':>5}  {'state':<8}{columns}{best:>9}{'time':>9}{'left':>9}  parameters"

    def _line(self, row: Row, left: str) -> Text:
        brackets = "({})" if row.state == "pruned" else "{} "
        cells = [brackets.format(shown(value)) for value in row.values or ()]
        if row.state not in ("complete", "pruned") or not cells:
            cells = ["- "] * len(self.names)
        cells += ["- "] * (len(self.names) - len(cells))
        is_best = any(row is best for best in self._front)
        line = _text(f"{row.number:>5}  ")
        line.append(f"{row.state:<8}", STYLES.get(row.state, ""))
        line.append("".join(f"{cell:>11}" for cell in cells))
        line.append(f"{self._best() + ('*' if is_best else ' '):>10}", "bold" if is_best else "")
        line.append(f"{clock(row.seconds):>8}{left:>9}  {self._params(row)}")
        return line

    def _best(self) -> str:
        if len(self.names) > 1:
            return str(len(self._front))
        return shown(_values(self._front[0])[0]) if self._front else "-"

    def _params(self, row: Row) -> str:
        # All names so far: those of a trial alone might be unique in its line and not in the next.
        short = short_names(key for seen in self._rows for key in seen.params)
        return " ".join(f"{short[key]}={shown(value)}" for key, value in row.params.items())

    def _ways(self) -> list[str]:
        return [way.replace("ize", "ise") for way in self.directions]

    def _print(self, line: Text, cut: bool = True) -> None:
        # A line that wrapped would break the columns; a log file may be as wide as it likes.
        if cut and self.console.is_terminal:
            line.truncate(self.console.width, overflow="ellipsis")
        self.console.print(line, soft_wrap=True)
        self.console.file.flush()  # a file is block-buffered, and a log should show life


def front(rows: Iterable[Row], directions: Sequence[str]) -> list[Row]:
    """The rows that no other one beats: as good everywhere and better somewhere (Pareto)."""
    rows = list(rows)
    losses = [_losses(row, directions) for row in rows]
    return [
        row
        for row, mine in zip(rows, losses, strict=True)
        if not any(
            other != mine and all(o <= m for o, m in zip(other, mine, strict=True))
            for other in losses
        )
    ]


def summary(rows: Sequence[Row]) -> str:
    """ "12 trials: 7 complete, 5 pruned (42 %); 1:02:03 of trials, pruning saved …"."""
    num_pruned = sum(row.state == "pruned" for row in rows)
    num_judged = num_pruned + sum(row.state == "complete" for row in rows)
    words = f"{len(rows)} trials: {_counted(rows) or 'none'}"
    if num_pruned:
        words += f" ({100 * num_pruned / num_judged:.0f} % pruned)"
    words += f"; {clock(sum(row.seconds for row in rows))} of trials"
    saved = seconds_saved(rows)
    return f"{words}, pruning saved about {clock(saved)}" if saved else words


def seconds_saved(rows: Sequence[Row]) -> float:
    """What pruned trials would have taken more, had each lasted as long as the median complete one.

    An estimate, and 0 where no trial is complete.
    """
    complete = [row.seconds for row in rows if row.state == "complete"]
    if not complete:
        return 0.0
    usual = median(complete)
    return sum(max(usual - row.seconds, 0.0) for row in rows if row.state == "pruned")


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each key with as few of its last parts as tell it from the others.

    {"optim.lr": "lr", "a.weight": "a.weight", "b.weight": "b.weight"}; "val/ap" becomes "ap".
    """
    parts = {key: key.lstrip("+").replace("/", ".").split(".") for key in dict.fromkeys(keys)}
    tails = Counter(
        ".".join(words[-n:]) for words in parts.values() for n in range(1, len(words) + 1)
    )
    short = {}
    for key, words in parts.items():
        names = [".".join(words[-n:]) for n in range(1, len(words) + 1)]
        short[key] = next((name for name in names if tails[name] == 1), key)
    return short


def shown(value: object) -> str:
    """Four significant digits, and true, null and [a,b] as they are typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(shown, value))}]"
    return str(value)


def clock(seconds: float | None) -> str:
    """ "1:02:03"; "?" when nobody knows."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _may_win(row: Row) -> bool:
    return row.state == "complete" and bool(row.values) and row.is_feasible


def _losses(row: Row, directions: Sequence[str]) -> tuple[float, ...]:
    """The values, turned so that less is better everywhere."""
    pairs = zip(_values(row), directions, strict=True)
    return tuple(-value if way == "maximize" else value for value, way in pairs)


def _values(row: Row) -> tuple[float, ...]:
    assert row.values is not None
    return row.values


def _counted(rows: Sequence[Row]) -> str:
    counts = Counter(row.state for row in rows)
    states = [*(s for s in STYLES if s in counts), *(s for s in counts if s not in STYLES)]
    return ", ".join(f"{counts[state]} {state}" for state in states)


def _text(words: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(words, style=style)
