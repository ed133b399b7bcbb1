"""Samplers, pruners and storages by name: what they draw, prune and refuse."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState

from eomt_exp.paths import asset_dir
from eomt_exp.studies.ledger import Ledger
from eomt_exp.studies.samplers import KINDS, make_sampler
from eomt_exp.studies.settings import StudyError
from eomt_exp.studies.storage import make_pruner, open_storage, shown

SWEEPER = asset_dir("conf") / "hydra" / "sweeper"
# These bring libraries with them that take seconds to import.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name in ("gp", "cma_es") else ()) for name in KINDS
]
VALUES = {"a": ["p", "q"], "b": [1, 2, 3], "c": [0.0, 0.5, 1.0]}


class Space:
    """A finite space of two numbers and a choice."""

    def grid(self) -> dict:
        return VALUES

    def suggest(self, trial: optuna.Trial) -> dict:
        return {
            "a": trial.suggest_categorical("a", VALUES["a"]),
            "b": trial.suggest_int("b", 1, 3),
            "c": trial.suggest_float("c", 0.0, 1.0),
        }


def draws(sampler: optuna.samplers.BaseSampler, study: optuna.Study, count: int) -> list[dict]:
    """Values of the next trials of a study, each told a value that the sampler can learn from."""
    found = []
    for _ in range(count):
        study.sampler = sampler
        trial = study.ask()
        found.append(Space().suggest(trial))
        study.tell(trial, found[-1]["b"] + found[-1]["c"])
    return found


def sampler_of(name: str, seed: int = 3, **options: object) -> optuna.samplers.BaseSampler:
    if "n_startup_trials" in KINDS[name].options:
        options.setdefault("n_startup_trials", 2)
    return make_sampler({"name": name, **options}, seed=seed, space=Space())


@pytest.mark.parametrize("name", NAMES)
def test_each_sampler_finds_six_different_points(name: str) -> None:
    found = draws(sampler_of(name), optuna.create_study(direction="maximize"), 6)
    assert len({str(values) for values in found}) == 6


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_the_same_for_a_seed_however_often_one_begins_anew(name: str) -> None:
    whole = draws(sampler_of(name), optuna.create_study(), 6)
    study = optuna.create_study()
    parts = [values for _ in range(3) for values in draws(sampler_of(name), study, 2)]
    assert parts == whole
    assert draws(sampler_of(name, seed=4), optuna.create_study(), 6) != whole


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_two_controllers_that_ask_at_once_do_not_draw_the_same(name: str) -> None:
    study = optuna.create_study()
    trials = []
    for _ in range(2):
        study.sampler = sampler_of(name)
        trials.append(study.ask())
    assert Space().suggest(trials[0]) != Space().suggest(trials[1])


def test_a_grid_is_walked_through_in_an_order_of_its_own() -> None:
    orders = [draws(sampler_of("grid", seed), optuna.create_study(), 18) for seed in (1, 2)]
    assert orders[0] != orders[1]
    for order in orders:
        assert len({str(values) for values in order}) == 18


def test_quasi_random_points_are_spread_evenly() -> None:
    found = draws(sampler_of("qmc"), optuna.create_study(), 17)[1:]  # the first is random
    eighths = {int(values["c"] * 8) for values in found}
    assert len(eighths) >= 7


def test_every_file_of_the_configuration_makes_its_sampler_and_its_pruner() -> None:
    for path in sorted((SWEEPER / "sampler").glob("*.yaml")):
        settings = OmegaConf.to_container(OmegaConf.load(path))
        assert settings["name"] == path.stem
        make_sampler(settings, seed=0, space=Space())
    for path in sorted((SWEEPER / "pruner").glob("*.yaml")):
        settings = OmegaConf.to_container(OmegaConf.load(path))
        assert settings["name"] == path.stem
        make_pruner(settings, 10)
    assert {path.stem for path in (SWEEPER / "sampler").glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "annealing"}, "hydra/sweeper/sampler=<one of tpe, cma_es"),
        ({"name": "tpe", "n_startup": 3}, "no option is called n_startup; allowed: n_startup_tri"),
        ({"name": "nsga2", "population_size": 1}, "nsga2: `population_size` must be"),
        ({"name": "tpe", "multivariate": False}, "tpe: .*group"),
        ({"name": "random", "seed": 3}, "allowed: none at all"),
    ],
)
def test_a_wrong_sampler_is_explained(settings: dict, text: str) -> None:
    with pytest.raises(StudyError, match=text):
        make_sampler(settings, seed=0, space=Space())


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eomt_exp.studies.samplers.find_spec", lambda name: None)
    with pytest.raises(StudyError, match="pip install cmaes"):
        make_sampler({"name": "cma_es"}, seed=0)


def two_objectives(name: str, count: int, **options: object) -> optuna.Study:
    """A study of cost and gain with a limit on the cost, kept by a ledger."""
    with Ledger(
        storage=open_storage(None),
        study="toy",
        objective={"val/ap": "maximize", "val/seconds": "minimize"},
        n_trials=count,
        sampler=sampler_of(name, **options),
        facts={},
        suggest=lambda trial: {name: trial.suggest_float(name, 0, 1) for name in "xy"},
        forbidden=lambda values: None,
    ) as ledger:
        while (ticket := ledger.claim()) is not None:
            x, y = ticket.values["x"], ticket.values["y"]
            ledger.complete(ticket, [x, x * x + y], {"val/miou": x - 0.3})
    return ledger.study


@pytest.mark.parametrize(
    "name", ["tpe", "nsga2", "random", "qmc", pytest.param("gp", marks=pytest.mark.slow)]
)
def test_samplers_for_several_objectives_take_two(name: str) -> None:
    assert len(two_objectives(name, 4).trials) == 4


def test_nsga2_comes_to_keep_its_constraint() -> None:
    study = two_objectives("nsga2", 60, population_size=8)
    kept = [trial.params["x"] <= 0.3 for trial in study.get_trials(states=[TrialState.COMPLETE])]
    assert sum(kept[-20:]) > 2 * sum(kept[:20])
    assert all(trial.params["x"] <= 0.3 for trial in study.best_trials)


def test_a_sampler_for_one_objective_refuses_two() -> None:
    with pytest.raises(StudyError, match="hydra/sweeper/sampler=nsga2"):
        two_objectives("cma_es", 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "median", "n_startup_trials": 2, "n_warmup_steps": 1},
        {"name": "hyperband", "max_resource": "auto"},
        {"name": "successive_halving", "reduction_factor": 2},
        {"name": "patient", "patience": 1, "inner": {"name": "median", "n_startup_trials": 2}},
        {"name": "patient", "patience": 1, "inner": None},
    ],
    ids=lambda settings: f"{settings['name']}-{len(settings)}",
)
def test_a_pruner_ends_a_bad_trial_and_no_good_one(settings: dict) -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner(settings, 9))
    pruned = []
    for level in (0.5, 0.6, 0.7, 0.8, 0.0, 0.0):
        trial = study.ask()
        for step in range(1, 10):
            # The bad ones do not even get better.
            trial.report(level + 0.01 * step if level else 0.2 - 0.01 * step, step)
            if trial.should_prune():
                pruned.append(trial.number)
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, level)
    assert pruned
    assert set(pruned) <= {4, 5}


def test_no_pruner_prunes_nothing() -> None:
    study = optuna.create_study(pruner=make_pruner({"name": "none"}))
    trial = study.ask()
    trial.report(1e9, 1)
    assert not trial.should_prune()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "best"}, "hydra/sweeper/pruner=<one of none, median, hyperband"),
        ({"name": "median", "warmup": 3}, "warmup; allowed: n_startup_trials, n_warmup_steps"),
        ({"name": "patient", "patience": -1}, "patient: patience cannot be negative"),
        ({"name": "patient", "inner": {"name": "best"}}, "No pruner is called 'best'"),
    ],
)
def test_a_wrong_pruner_is_explained(settings: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_pruner(settings)


def test_hyperband_takes_the_epochs_of_a_training_for_its_largest_resource() -> None:
    assert make_pruner({"name": "hyperband", "max_resource": None}, 27)._max_resource == 27
    assert make_pruner({"name": "hyperband", "max_resource": 9}, 27)._max_resource == 9


@pytest.mark.parametrize(
    "url", [None, "", "journal", pytest.param("sqlite", marks=pytest.mark.slow)]
)
def test_a_study_comes_back_from_its_storage(url: str | None, tmp_path: Path) -> None:
    if url == "journal":
        url = f"journal://{tmp_path}/new/study.log"
    elif url == "sqlite":
        url = f"sqlite:///{tmp_path}/new/study.db"
    storage = open_storage(url)
    optuna.create_study(storage=storage, study_name="toy").set_user_attr("k", 1)
    if url:
        storage = open_storage(url)
    assert optuna.load_study(storage=storage, study_name="toy").user_attrs == {"k": 1}


@pytest.mark.parametrize("url", ["outputs/study.log", "journal://", "redis://h/1", "grpc://h"])
def test_an_unknown_storage_lists_the_allowed_ones(url: str) -> None:
    with pytest.raises(ValueError, match=r"journal:///folder/study.log.*sqlite.*grpc.*mysql"):
        open_storage(url)


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql+psycopg://me:s3@cr:t@h/db") == "postgresql+psycopg://me:***@h/db"
    assert shown("grpc://host:13000") == "grpc://host:13000"
    for url in ("redis://me:secret@h/1", "postgresql+psycopg://me:secret@localhost:1/db"):
        with pytest.raises(ValueError, match=r"\*\*\*") as caught:
            open_storage(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "extra"), [("mysql+pymysql://h/db", "mysql"), ("postgresql+pg8000://h/db", "postgr")]
)
def test_a_missing_driver_says_what_to_install(url: str, extra: str) -> None:
    with pytest.raises(ValueError, match=rf'pip install -e "\.\[{extra}'):
        open_storage(url)


@pytest.mark.slow
def test_a_study_may_live_behind_a_server(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = (
        "from optuna.storages import run_grpc_proxy_server as run\n"
        "from eomt_exp.studies.storage import open_storage\n"
        f"run(open_storage('journal://{tmp_path}/study.log'), host='localhost', port={port})\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    server = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        with Ledger(
            storage=open_storage(f"grpc://localhost:{port}"),
            study="toy",
            objective={"val/ap": "maximize"},
            n_trials=3,
            sampler=sampler_of("tpe"),
            facts={},
            suggest=Space().suggest,
            forbidden=lambda values: None,
            max_retries=1,
        ) as ledger:
            first = ledger.claim()
            assert first
            ledger.fail(first, "crashed", retry=True)
            while (ticket := ledger.claim()) is not None:
                ledger.complete(ticket, [0.1])
            assert [row.folder for row in ledger.rows()] == ["000", "002", "003"]
    finally:
        server.kill()
        server.wait()


def test_a_server_that_is_away_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eomt_exp.studies.storage._SERVER_SECONDS", 0.2)
    with pytest.raises(ValueError, match="run_grpc_proxy_server"):
        open_storage("grpc://localhost:1")
