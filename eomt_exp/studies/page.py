"""study.html: trials in a table, plots below it, readable by day and by night, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from eomt_exp.studies.table import clock, short_names, shown

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2330; --quiet: #5b6575;
  --rule: #dfe3e9; --best: #eef4fb; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161d; --ink: #e4e8ee; --quiet: #98a3b3;
  --rule: #2d3542; --best: #1a2738; } }
body { margin: 0 auto; max-width: 1200px; padding: 24px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 6px; padding-top: 16px; border-top: 1px solid var(--rule); }
p { color: var(--quiet); margin: 0 0 12px; }
.frame { overflow: auto; } .trials { max-height: 24rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 12px 3px 0; text-align: right; white-space: nowrap; }
th { position: sticky; top: 0; background: var(--paper); }
th:nth-child(2), td:nth-child(2) { text-align: left; }
td { border-top: 1px solid var(--rule); } tr.best { background: var(--best); font-weight: 600; }
"""
# Plotly knows no colour scheme; the axes of a figure are keys of its layout.
_SCRIPT = """
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function colours(layout) {
  const ink = dark.matches ? "#e4e8ee" : "#1c2330", rule = dark.matches ? "#2d3542" : "#dfe3e9";
  const clear = "rgba(0,0,0,0)";
  const change = {"paper_bgcolor": clear, "plot_bgcolor": clear, "font.color": ink};
  for (const key of Object.keys(layout)) if (/^[xy]axis\\d*$/.test(key))
    for (const line of ["gridcolor", "zerolinecolor", "linecolor"]) change[`${key}.${line}`] = rule;
  return change;
}
for (const source of document.querySelectorAll("script[type='application/json']")) {
  const figure = JSON.parse(source.textContent), place = source.previousElementSibling;
  const settings = {responsive: !figure.layout.width, displaylogo: false};
  Plotly.newPlot(place, figure.data, figure.layout, settings)
    .then(() => Plotly.relayout(place, colours(place.layout)));
  dark.addEventListener("change", () => Plotly.relayout(place, colours(place.layout)));
}
"""


class Panel(NamedTuple):
    """A plot of the page, or why there is none."""

    title: str
    figure: str | None  # plotly's JSON
    missing: str


def page(study: Study, names: Sequence[str], panels: Sequence[Panel]) -> str:
    """The whole page; plotly.js is in it once."""
    from plotly.offline import get_plotlyjs

    title = escape(study.study_name)
    aims = ", ".join(
        f"{way.name.lower().replace('ize', 'ise')} {name}"
        for way, name in zip(study.directions, names, strict=True)
    )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{title}</h1>\n<p>{escape(aims)}; {escape(_counts(study))}</p>",
            _trials(study, names),
            *map(_section, panels),
            f"<script>{get_plotlyjs()}</script>\n<script>{_SCRIPT}</script>",
            "</body></html>\n",
        ]
    )


def _counts(study: Study) -> str:
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    there = [state for state in TrialState if state in states]
    words = ", ".join(f"{states.count(state)} {_word(state)}" for state in there)
    return f"{len(states)} trials: {words}" if states else "no trials yet"


def _section(panel: Panel) -> str:
    title = f"<h2>{escape(panel.title)}</h2>"
    if panel.figure is None:
        return f"<section>{title}<p>Not drawn: {escape(panel.missing)}</p></section>"
    # JSON inside a script element: only an end tag or a comment in a string could leave it.
    text = panel.figure.replace("<", "\\u003c")
    source = f'<script type="application/json">{text}</script>'
    return f'<section>{title}<div class="frame"><div></div>{source}</div></section>'


def _trials(study: Study, names: Sequence[str]) -> str:
    """All trials, newest first; the best ones stand out."""
    trials = study.get_trials(deepcopy=False)
    short = short_names(key for trial in trials for key in trial.params)
    finished = any(trial.state is TrialState.COMPLETE for trial in trials)
    best = {trial.number for trial in study.best_trials} if finished else set()
    heads = ["trial", "state", *names, "time", *short.values()]
    rows = []
    for trial in reversed(trials):
        cells = [str(trial.number), _word(trial.state), *_values(trial, len(names)), _time(trial)]
        cells += [shown(trial.params[key]) if key in trial.params else "" for key in short]
        kind = ' class="best"' if trial.number in best else ""
        rows.append(f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "\n".join(rows)
    return (
        '<div class="frame trials" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _values(trial: FrozenTrial, count: int) -> list[str]:
    """As in the terminal: the last reported value of a pruned trial in brackets."""
    if trial.state is TrialState.COMPLETE:
        return [shown(value) for value in trial.values]
    if trial.state is TrialState.PRUNED and trial.intermediate_values and count == 1:
        return [f"({shown(trial.intermediate_values[max(trial.intermediate_values)])})"]
    return ["-"] * count


def _time(trial: FrozenTrial) -> str:
    return clock(trial.duration.total_seconds() if trial.duration else None)


def _word(state: TrialState) -> str:
    return {"FAIL": "failed"}.get(state.name, state.name.lower())
