"""A controller of a toy study in a process of its own, for the tests to start and to kill.

Arguments: storage url, trials, seconds that a trial takes, "discrete" or "float", sampler's name.
Prints "run <number> <folder> <values>" for each trial that it begins, and "end" at its end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna

from eomt_exp.studies.ledger import Ledger
from eomt_exp.studies.samplers import make_sampler
from eomt_exp.studies.storage import open_storage


def suggest_float(trial: optuna.Trial) -> dict:
    return {"x": trial.suggest_float("x", -1.0, 1.0), "n": trial.suggest_int("n", 1, 9)}


def suggest_discrete(trial: optuna.Trial) -> dict:
    letter = trial.suggest_categorical("a", ["p", "q", "r"])
    return {"a": letter, "b": trial.suggest_int("b", 1, 4)}


SPACES = {"float": suggest_float, "discrete": suggest_discrete}


class Grid:
    """The discrete space's own values."""

    def grid(self) -> dict:
        return {"a": ["p", "q", "r"], "b": [1, 2, 3, 4]}


def ledger_of(
    url: str | None, n_trials: int = 6, space: str = "float", sampler: str = "random", **other
) -> Ledger:
    """A ledger of the toy study; `other` goes to Ledger."""
    settings = {
        "storage": open_storage(url) if isinstance(url, str) or url is None else url,
        "study": "toy",
        "objective": {"val/ap": "maximize"},
        "n_trials": n_trials,
        "sampler": make_sampler({"name": sampler}, seed=7, space=Grid()),
        "facts": {"space": {"space": space}, "fixed": {"lr": "0.1"}},
        "suggest": SPACES[space],
        "forbidden": lambda values: None,
    }
    return Ledger(**{**settings, **other})


def main() -> None:
    url, n_trials, seconds, space, sampler = sys.argv[1:]
    with ledger_of(url, int(n_trials), space, sampler, max_retries=1) as ledger:
        while (ticket := ledger.claim()) is not None:
            print("run", ticket.number, ticket.folder, json.dumps(ticket.values), flush=True)
            ticket.trial.report(0.1 * ticket.attempt, ticket.attempt)
            time.sleep(float(seconds))
            ledger.complete(ticket, [float(len(json.dumps(ticket.values)))])
    print("end", flush=True)


if __name__ == "__main__":
    main()
