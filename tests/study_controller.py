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

from eomt_exp.schema import StudyConfig
from eomt_exp.studies.ledger import Ledger
from eomt_exp.studies.samplers import GRID, make_sampler
from eomt_exp.studies.space import read_space


def suggest_float(trial: optuna.Trial) -> dict:
    return {"x": trial.suggest_float("x", -1.0, 1.0), "n": trial.suggest_int("n", 1, 9)}


def suggest_discrete(trial: optuna.Trial) -> dict:
    letter = trial.suggest_categorical("a", ["p", "q", "r"])
    return {"a": letter, "b": trial.suggest_int("b", 1, 4)}


SPACES = {"float": suggest_float, "discrete": suggest_discrete}


def settings_of(n_trials: int, **changes) -> StudyConfig:
    """Those that a ledger reads."""
    usual = {"study": "toy", "objective": ["maximize val/ap"], "on_stale": "requeue"}
    return StudyConfig(
        n_trials=n_trials, **{**usual, "max_retries": 0, "max_failure_rate": 0.5, **changes}
    )


def ledger_of(
    url: str, n_trials: int = 6, space: str = "float", sampler: str = "random", **other
) -> Ledger:
    """A ledger of the toy study; `other` goes to its settings, or to Ledger."""
    changes = {key: other.pop(key) for key in [*other] if hasattr(StudyConfig, key)}
    targets = {"random": "optuna.samplers.RandomSampler", "grid": GRID}
    node = {"_target_": targets[sampler]}
    grid, _ = read_space({"a": "choice(p, q, r)", "b": "range(1, 5)"}, [], [], {}.get)
    usual = {
        "settings": settings_of(n_trials, **changes),
        "url": url,
        "folder": Path(url.partition("://")[2]).parent,
        "make_sampler": lambda number: make_sampler(node, 7, number),
        "facts": {"space": {"space": space}, "fixed": {"lr": "0.1"}},
        "suggest": SPACES[space],
        "forbidden": lambda values: None,
        "points": grid.grid(7) if sampler == "grid" else None,
    }
    return Ledger(**{**usual, **other})


def main() -> None:
    url, n_trials, seconds, space, sampler = sys.argv[1:]
    with ledger_of(url, int(n_trials), space, sampler, max_retries=1) as ledger:
        while (claimed := ledger.claim()) is not None:
            print("run", claimed.number, claimed.folder, json.dumps(claimed.values), flush=True)
            claimed.trial.report(0.1 * claimed.tries, claimed.tries)
            time.sleep(float(seconds))
            ledger.complete(claimed, [float(len(json.dumps(claimed.values)))])
    print("end", flush=True)


if __name__ == "__main__":
    main()
