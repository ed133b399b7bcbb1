"""Prints a study in the terminal: a line for each trial that ends, at last the best ones.

Lines are only ever added, nothing is drawn over, so a log file reads as a terminal does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median, stdev

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eomt_exp.engine.progress import clock
from eomt_exp.evaluator.metrics import flagged
from eomt_exp.report.terminal import make_console
from eomt_exp.studies.rules import text_of
from eomt_exp.studies.trials import Row

NUM_EARLIER = 5  # lines of trials from before; the first line counts the others
NUM_BEST = 5  # trials of the closing table


@dataclass
class StudyTable:
    """Prints a study as it goes."""

    objective: Mapping[str, str]  # {metric: maximize | minimize}
    n_trials: int
    at_once: int = 1
    name: str = ""
    console: Console = field(default_factory=make_console)
    _rows: list[Row] = field(default_factory=list)

    def start(self, earlier: Sequence[Row], best: Sequence[Row]) -> None:
        """Print the first lines and, of the trials that ended in an earlier try, the last few."""
        ended = [row for row in earlier if row.state != "running"]
        aims = ", ".join(f"{way} {name}" for name, way in self.objective.items())
        texts = [f"{self.name}: {aims}", f"{self.n_trials} trials"]
        texts += [f"{self.at_once} at once"] if self.at_once > 1 else []
        texts += [f"{len(ended)} done before ({_counted(ended)})"] if ended else []
        self._print(", ".join(texts), "bold")
        heads = "".join(f"{name[-10:]:>11}" for name in self.objective)
        self._print(f"trial  state    {heads}      best     time     left  parameters", "dim")
        for row in ended:
            self._rows.append(row)
            if row in ended[-NUM_EARLIER:]:
                self._print(self._line(row, "", best))

    def add(self, row: Row, best: Sequence[Row]) -> None:
        """Print the line of one more trial that has ended; `best` is what Ledger.best gives."""
        self._rows.append(row)
        times = [r.seconds for r in self._rows if r.state in ("complete", "pruned")]
        left = max(self.n_trials - len(self._rows), 0) / self.at_once
        self._print(self._line(row, clock(median(times) * left) if times else "?", best))
        if row.note:
            self._print(f"       {row.folder}: {' '.join(row.note.split())}", "dim")

    def finish(self, rows: Sequence[Row], best: Sequence[Row]) -> None:
        """Print counts, the best trials with all their parameters, and what the study took."""
        took = clock(sum(row.seconds for row in rows))
        pruned, complete = (sum(r.state == state for r in rows) for state in ("pruned", "complete"))
        share = f" ({100 * pruned / (pruned + complete):.0f} % pruned)" if pruned else ""
        text = f"{len(rows)} trials: {_counted(rows) or 'none'}{share}; {took} of trials"
        self._print(text, "bold")
        if not best:
            self._print("no trial is complete, so there is no best one.", "red")
            return
        title = "best trials" if len(self.objective) == 1 else f"Pareto front, {len(best)} trials"
        chosen = best[:NUM_BEST]
        # Trials across, parameters down: their full names need more space than numbers do.
        table = Table("trial", *(str(row.number) for row in chosen), title=title)
        for index, name in enumerate(self.objective):
            table.add_row(escape(name), *(shown((r.values or ())[index]) for r in chosen))
        table.add_row("time", *(clock(row.seconds) for row in chosen), end_section=True)
        for key in dict.fromkeys(key for row in chosen for key in row.params):
            cells = (escape(shown(row.params.get(key, "-"))) for row in chosen)
            table.add_row(escape(key), *cells)
        self.console.print(table)

    def _line(self, row: Row, left: str, best: Sequence[Row]) -> str:
        values = [shown(value) for value in row.values or ()] or ["-"] * len(self.objective)
        if row.state == "pruned":
            values = [f"({value})" for value in values]
        is_one = len(self.objective) == 1
        lead = shown((best[0].values or ())[0]) if best and is_one else str(len(best) or "-")
        star = "*" if row in (best[:1] if is_one else best) else " "
        short = short_names(key for seen in self._rows for key in seen.params)
        params = " ".join(f"{short[key]}={shown(value)}" for key, value in row.params.items())
        cells = "".join(f"{value:>11}" for value in values)
        times = f"{clock(row.seconds):>9}{left:>9}"
        return f"{row.number:>5}  {row.state:<9}{cells}{lead + star:>10}{times}  {params}"

    def _print(self, text: str, style: str = "") -> None:
        if self.console.is_terminal:  # a line that wrapped would break the columns
            text = text[: self.console.width]
        self.console.print(text, style=style, markup=False, soft_wrap=True)
        self.console.file.flush()  # a file is block-buffered, and a log should show life


def print_spread(metrics: Sequence[Mapping[str, float]], console: Console) -> None:
    """Print mean and sample standard deviation over the trials of the field's usual metrics."""
    table = Table("metric", "mean ± std", "runs", title="over seeds")
    for name in dict.fromkeys(name for found in metrics for name in found):
        values = [found[name] for found in metrics if name in found]
        if name.rpartition("/")[2] in flagged("study") and len(values) > 1:
            table.add_row(name, f"{mean(values):.3f} ± {stdev(values):.3f}", str(len(values)))
    console.print(table)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Shorten each key to as few of its last parts as tell it from the others.

    {"optim.lr": "lr", "a.weight": "a.weight", "b.weight": "b.weight"}.
    """
    parts = {key: key.split(".") for key in keys}
    tails = {key: [".".join(p[n:]) for n in range(len(p))][::-1] for key, p in parts.items()}
    counts = Counter(tail for names in tails.values() for tail in names)
    return {k: next((name for name in t if counts[name] == 1), k) for k, t in tails.items()}


def shown(value: object) -> str:
    """Write four significant digits, and true and null as they are typed."""
    return f"{value:.4g}" if isinstance(value, float) else text_of(value)


def _counted(rows: Sequence[Row]) -> str:
    counts = Counter(row.state for row in rows)
    states = ("complete", "pruned", "failed", "running")
    return ", ".join(f"{counts[state]} {state}" for state in states if state in counts)
