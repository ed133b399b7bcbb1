"""Samplers and pruners as conf/ has them: what they draw, prune and refuse."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from optuna.trial import TrialState

from eomt_exp import cli
from eomt_exp.build import build
from eomt_exp.contracts import UserError
from eomt_exp.paths import asset_dir
from eomt_exp.studies.ledger import Ledger
from eomt_exp.studies.samplers import GRID, check_sampler, make_sampler
from tests.study_controller import settings_of

SWEEPER = asset_dir("conf") / "hydra" / "sweeper"
SAMPLERS = sorted(path.stem for path in (SWEEPER / "sampler").glob("*.yaml"))
PRUNERS = sorted(path.stem for path in (SWEEPER / "pruner").glob("*.yaml"))
# These bring libraries with them that take seconds to import.
DRAWING = [
    pytest.param(name, marks=pytest.mark.slow if name in ("gp", "cma_es") else ())
    for name in SAMPLERS
    if name != "grid"
]


@pytest.fixture(scope="module")
def nodes() -> dict[str, Any]:
    """{"sampler/tpe": node, …} of conf/, as a study gets them."""
    cli.register()
    found = {}
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        for kind, names in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            for name in names:
                chosen = ["hydra/sweeper=optuna", f"hydra/sweeper/{kind}={name}", "seed=3"]
                config = compose("config", overrides=chosen, return_hydra_config=True)
                found[f"{kind}/{name}"] = OmegaConf.to_container(
                    config.hydra.sweeper[kind], resolve=True
                )
    return found


def suggest(trial: optuna.Trial) -> dict:
    return {
        "a": trial.suggest_categorical("a", ["p", "q"]),
        "b": trial.suggest_int("b", 1, 3),
        "c": trial.suggest_float("c", 0.0, 1.0),
    }


def draws(node: dict, study: optuna.Study, count: int, seed: int = 3) -> list[dict]:
    """Values of the next trials of a study, each told a value that the sampler can learn from."""
    found = []
    for _ in range(count):
        study.sampler = make_sampler(node, seed, len(study.trials))
        trial = study.ask()
        found.append(suggest(trial))
        study.tell(trial, found[-1]["b"] + found[-1]["c"])
    return found


def eager(node: dict) -> dict:
    """The same, but it learns from the third trial on."""
    return node | ({"n_startup_trials": 2} if "n_startup_trials" in node else {})


@pytest.mark.parametrize("name", DRAWING)
def test_draws_differ_and_are_the_same_for_a_seed_however_often_one_begins_anew(
    nodes, name: str
) -> None:
    node = eager(nodes[f"sampler/{name}"])
    whole = draws(node, optuna.create_study(direction="maximize"), 6)
    assert len({str(values) for values in whole}) == 6
    study = optuna.create_study(direction="maximize")
    assert [values for _ in range(3) for values in draws(node, study, 2)] == whole
    if name != "qmc":  # whose seed is the study's
        assert draws(node, optuna.create_study(direction="maximize"), 6, seed=4) != whole


def test_quasi_random_points_are_spread_evenly(nodes) -> None:
    found = draws(nodes["sampler/qmc"], optuna.create_study(), 17)[1:]  # the first is random
    assert len({int(values["c"] * 8) for values in found}) >= 7


def test_every_file_of_the_configuration_makes_its_sampler_and_its_pruner(nodes) -> None:
    for key, node in nodes.items():
        if key.startswith("pruner/"):
            assert isinstance(build(node), optuna.pruners.BasePruner)
        elif node["_target_"] != GRID:
            made = make_sampler(node, 0, 0)
            assert type(made).__name__ == node["_target_"].rpartition(".")[2]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"_target_": "optuna.samplers.Annealing"}, "cannot be found"),
        ({"_target_": "os.system"}, "only classes in"),
        ({"n_startup": 3}, "n_startup is no key of optuna.samplers.TPESampler; there are"),
        ({"multivariate": False}, "group"),
    ],
)
def test_a_wrong_sampler_is_explained(nodes, change: dict, text: str) -> None:
    with pytest.raises(UserError, match=text):
        check_sampler(nodes["sampler/tpe"] | change, ["maximize"])


def test_a_sampler_for_one_objective_refuses_two(nodes) -> None:
    with pytest.raises(UserError, match="hydra/sweeper/sampler=nsga2"):
        check_sampler(nodes["sampler/cma_es"], ["maximize", "minimize"])


def test_nsga2_comes_to_keep_its_constraint(nodes, tmp_path) -> None:
    node = nodes["sampler/nsga2"] | {"population_size": 8}
    with Ledger(
        settings=settings_of(60, objective=["maximize val/ap", "minimize val/seconds"]),
        url=f"journal://{tmp_path}/study.log",
        folder=tmp_path,
        make_sampler=lambda number: make_sampler(node, 3, number),
        facts={},
        suggest=lambda trial: {name: trial.suggest_float(name, 0, 1) for name in "xy"},
        forbidden=lambda values: None,
    ) as ledger:
        while (claimed := ledger.claim()) is not None:
            x, y = claimed.values["x"], claimed.values["y"]
            ledger.complete(claimed, [x, x * x + y], {"val/miou": x - 0.3})
    study = ledger.study
    kept = [trial.params["x"] <= 0.3 for trial in study.get_trials(states=[TrialState.COMPLETE])]
    assert sum(kept[-20:]) > 2 * sum(kept[:20])
    assert all(trial.params["x"] <= 0.3 for trial in study.best_trials)


@pytest.mark.parametrize("name", [name for name in PRUNERS if name != "none"])
def test_a_pruner_ends_a_bad_trial_and_no_good_one(nodes, name: str) -> None:
    node = nodes[f"pruner/{name}"]
    quick = {
        "median": {"n_startup_trials": 2},
        "hyperband": {"max_resource": 9},
        "successive_halving": {"reduction_factor": 2},
        "patient": {
            "patience": 1,
            "wrapped_pruner": node.get("wrapped_pruner", {}) | {"n_startup_trials": 2},
        },
    }
    pruner = build(node | quick[name])
    # Hyperband draws a trial's bracket from the study's name.
    study = optuna.create_study(study_name="s", direction="maximize", pruner=pruner)
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


def test_no_pruner_prunes_nothing_and_hyperbands_resource_is_the_epochs(nodes) -> None:
    trial = optuna.create_study(pruner=build(nodes["pruner/none"])).ask()
    trial.report(1e9, 1)
    assert not trial.should_prune()
    assert nodes["pruner/hyperband"]["max_resource"] == 7  # of synthetic_roads
