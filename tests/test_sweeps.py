"""Studies from the command to the winner: what is refused, what is found, what is left behind."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from optuna.trial import TrialState

from eomt_exp import cli
from eomt_exp.contracts import TrialPruned
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.paths import asset_dir
from eomt_exp.studies import record
from eomt_exp.studies.plan import Plan
from eomt_exp.studies.samplers import GRID, make_sampler
from tests.command_line import Outcome, metrics_of, only_run, run, run_aside
from tests.sweep_commands import (
    QUICK_STUDY,
    SMALL_STUDY,
    ended,
    points,
    recorded,
    trials_of,
)

STUDIES = sorted(path.stem for path in asset_dir("sweeps").glob("*.yaml"))
LOSS = "loss.mask_classification"
# Of an evaluation, as SMALL has it of a training.
BRIEF = ("data.image_size=[32,64]", "data.val.length=4", "trainer.num_workers=0",
         "evaluator.bits=17", "evaluator.resamples=20", "evaluator.figures=0")  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_fits_the_configuration_and_its_jobs_get_what_it_draws(name, tmp_path) -> None:
    cli.register()
    overrides = [f"+sweep={name}", f"paths.outputs={tmp_path}"]
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", overrides, RunMode.MULTIRUN)
        plan = Plan(config, loader, overrides)
        given = plan.settings
        sampler = make_sampler(given.sampler, given.seed, 0)
        ways = list(given.directions.values())
        values = plan.space.suggest(optuna.create_study(directions=ways, sampler=sampler).ask())
        job = plan.compose([*plan.fixed, *plan.space.overrides(values)])
    assert values
    assert "protocol.curve" not in plan.facts()["fixed"]  # exact, as in studies from before it
    choices = job.hydra.runtime.choices
    found = {key: choices.get(key, OmegaConf.select(job, key)) for key in values}
    assert found == values
    if given.sampler["_target_"] == GRID:  # every point of it, and no more
        assert given.n_trials == len(plan.space.grid(0))


TOY = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.study=toy", "trainer.validate_every=1",
       "tracking=none")  # fmt: skip
FOUR = ("hydra/sweeper/sampler=grid", "optim.lr=choice(0.1, 0.2, 0.3, 0.4)",
        "hydra.sweeper.n_trials=4")  # fmt: skip


@pytest.fixture
def does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], Any]], list[float]]:
    """Make every job a function of its learning rate; gives the rates that were tried.

    No pictures are drawn: that takes longer than all the rest.
    """

    def replace(function: Callable[[float], Any]) -> list[float]:
        tried: list[float] = []

        def task(cfg: Any) -> Any:
            tried.append(cfg.optim.lr)
            return function(cfg.optim.lr)

        monkeypatch.setattr(cli, "_run", task)
        monkeypatch.setattr(record, "draw", lambda study, folder, objective: [folder])
        return tried

    return replace


WRONG = {
    "text for a number": ("seed=choice(a, b)", "Value 'a' of type 'str' could not be converted"),
    "no such key": ("optim.lrr=interval(1e-4, 1e-3)", "Could not override 'optim.lrr'"),
    "no direction": ("hydra.sweeper.objective=[val/ap]", "type [maximize val/ap]"),
    "one metric twice": (
        "hydra.sweeper.objective=[maximize val/ap,minimize val/ap]", "each metric once"),
    "a study above its folder": ("hydra.sweeper.study=..", "a folder's name"),
    "a benchmark as objective": (
        "hydra.sweeper.objective=[maximize synth_anomaly/ap]", "would no longer be a test"),
    "anomalies without a set of them": (
        "hydra.sweeper.objective=[maximize val/ap]", "benchmark@tuning=pasted_validation"),
    "no such option of a sampler": ("+hydra.sweeper.sampler.n_start=3", "n_startup_trials"),
    "a rule about no key": (
        "hydra.sweeper.forbid=[{optim.lrr: 1}]", "forbid[0]: there is no key optim.lrr"),
    "no such pruner": (
        "hydra.sweeper.pruner._target_=os.system", "hydra.sweeper.pruner"),
    "what trials are judged by": ("data.val.length=range(2, 5)", "that trials are judged by"),
    "no such setting": ("+hydra.sweeper.n_trial=3", "There are study, storage"),
    "two jobs in one process": (
        "hydra.sweeper.n_jobs=2", "hydra/launcher=process hydra.launcher.slots=2"),
}  # fmt: skip


QUICKLY = ("a benchmark as objective", "two jobs in one process")  # each takes a second


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICKLY else pytest.mark.slow) for c in WRONG]
)
def test_what_cannot_be_is_one_line_that_shows_what_to_type(capfd, tmp_path, does, case) -> None:
    override, line = WRONG[case]
    tried = does(lambda lr: {"val/miou": lr})
    space = "optim.lr=interval(1e-4, 1e-3)"
    outcome = run(capfd, *TOY, space, override, f"paths.outputs={tmp_path}")
    assert outcome.code == 2
    (message,) = outcome.err.strip().splitlines()
    assert message.startswith("error: ")
    assert line in message
    assert tried == []


def each_its_own_end(lr: float) -> dict[str, float]:
    if lr == 0.2:
        raise TrialPruned
    if lr == 0.4:
        raise RuntimeError("boom")
    return {"val/miou": math.nan if lr == 0.3 else lr}


@pytest.mark.slow
def test_every_end_of_a_trial_is_booked_and_the_same_command_does_nothing(
    capfd, tmp_path, does
) -> None:
    tried = does(each_its_own_end)
    overrides = (*TOY, *FOUR, f"paths.outputs={tmp_path}")
    first = run(capfd, *overrides)
    assert first.code == 0, first.err
    assert sorted(tried) == [0.1, 0.2, 0.3, 0.4]
    folder = tmp_path / "studies" / "toy"
    states = {(t.params["optim.lr"], t.state) for t in trials_of(folder)}
    assert states == {
        (0.1, TrialState.COMPLETE), (0.2, TrialState.PRUNED),
        (0.3, TrialState.FAIL), (0.4, TrialState.FAIL),
    }  # fmt: skip
    for said in ("4 trials: 1 complete, 1 pruned, 2 failed", "val/miou is NaN", "boom",
                 "run the winner: "):  # fmt: skip
        assert said in first.out
    winner = OmegaConf.load(folder / "best" / "experiment" / "toy_best.yaml")
    assert winner.optim.lr == 0.1

    again = run(capfd, *overrides)
    assert again.code == 0, again.err
    assert len(tried) == 4
    assert "4 done before (1 complete, 1 pruned, 2 failed)" in again.out

    other = run(capfd, *overrides, "optim.lr=choice(0.1, 0.2)")
    assert other.code == 2
    assert "optim.lr: choice(0.1, 0.2, 0.3, 0.4) -> choice(0.1, 0.2)" in other.err
    assert len(tried) == 4


def printed(label: str, out: str) -> list[str]:
    """The overrides behind `python -m eomt_exp` of the command that a study prints."""
    (line,) = (line for line in out.splitlines() if line.startswith(label))
    return shlex.split(line.removeprefix(label))[3:]


@pytest.fixture(scope="module")
def tuned(study_outputs: Path) -> Outcome:
    """The main study, three trials of it."""
    overrides = ("-m", "+sweep=eim_oe_tpe", *SMALL_STUDY, "hydra.sweeper.n_trials=3")
    done = run_aside(*overrides)
    assert done.code == 0, done.err
    return done


@pytest.mark.slow
def test_the_main_study_is_one_run_of_mlflow_with_its_trials_below(study_outputs, tuned) -> None:
    trials = trials_of(study_outputs / "studies" / "eim_oe_tpe")
    assert len(ended(trials)) == len(points(trials)) == 3
    found = recorded(study_outputs, "eim_oe_tpe")
    assert found.parent.info.status == "FINISHED"
    best = max(t.value for t in trials if t.state is TrialState.COMPLETE)
    assert found.parent.data.metrics["best_value"] == pytest.approx(best)
    assert {"study.html", "history.png"} <= found.artifacts("plots")
    assert found.artifacts("best") == {"eim_oe_tpe_best.yaml"}
    names = sorted(run.info.run_name for run in found.children)
    assert [name[:9] for name in names] == [f"trial-{n:03d}" for n in range(3)]
    assert all(re.search(r" lr=\S+ temperature=\S+ weight=", name) for name in names)
    parents = {run.data.tags["mlflow.parentRunId"] for run in found.children}
    assert parents == {found.parent.info.run_id}
    assert {run.info.status for run in found.children} == {"FINISHED"}


@pytest.mark.slow
def test_the_printed_line_runs_the_winner_which_what_it_was_chosen_by_cannot_test(
    study_outputs, tuned, capfd
) -> None:
    overrides = printed("run the winner: ", tuned.out)
    outcome = run(capfd, *overrides)
    assert outcome.code == 0, outcome.err
    folder = only_run(study_outputs, "eim_oe_tpe_best")
    trials = trials_of(study_outputs / "studies" / "eim_oe_tpe")
    best = max((t for t in trials if t.state is TrialState.COMPLETE), key=lambda t: t.value)
    config = OmegaConf.load(folder / "config.yaml")
    assert {key: OmegaConf.select(config, key) for key in best.params} == best.params
    assert config.tuning == {}  # what it is tested on is a benchmark
    assert any(key.startswith("synth_anomaly") for key in metrics_of(folder)["metrics"])
    chosen_by = SeenImages.load(folder).uses["tuning"].values()
    assert sum(name.startswith("pasted/") for name in chosen_by) == 4
    overrides = ("task=evaluate", f"checkpoint={folder}", "benchmark=pasted_validation")
    refused = run(capfd, *overrides, *BRIEF)
    assert refused.code == 2
    assert "4 images of pasted_validation were seen before" in refused.err
    assert "tuning" in refused.err


@pytest.mark.slow
def test_every_head_is_tried_on_every_backbone_once(study_outputs, capfd) -> None:
    heads = "anomaly_head=choice(query_only,uncertainty)"
    outcome = run(capfd, "-m", "+sweep=head_ablation", *SMALL_STUDY, heads)
    assert outcome.code == 0, outcome.err
    folder = study_outputs / "studies" / "head_ablation"
    trials = ended(trials_of(folder))
    tried = {(t.params["backbone"], t.params["anomaly_head"]) for t in trials}
    assert tried == {(b, h) for b in ("mini", "tiny") for h in ("query_only", "uncertainty")}
    assert len(trials) == 4  # of n_trials=8: there are no more points
    heads = {}
    for trial in trials:
        config = OmegaConf.load(folder / f"{trial.number:03d}" / "config.yaml")
        heads.setdefault(trial.params["anomaly_head"], []).append(config.anomaly_head)
    assert heads["query_only"][0] == heads["query_only"][1] != heads["uncertainty"][0]


@pytest.mark.slow
def test_two_objectives_leave_a_front_and_conditions_hold(study_outputs, capfd) -> None:
    overrides = ("hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.population_size=4")
    outcome = run(capfd, "-m", "+sweep=oe_nsga2", *SMALL_STUDY, *overrides)
    assert outcome.code == 0, outcome.err
    folder = study_outputs / "studies" / "oe_nsga2"
    trials = trials_of(folder)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 4
    on_road = [t.params["outlier_exposure.placement"] == "road" for t in trials]
    assert set(on_road) == {True, False}, "another seed shows nothing"
    assert ["outlier_exposure.perspective" in t.params for t in trials] == on_road
    front = [
        t.number
        for t in trials
        if not any(o.values != t.values and min(map(float.__ge__, o.values, t.values))
                   for o in trials)
    ]  # fmt: skip
    files = {f"oe_nsga2_pareto_{number:03d}.yaml" for number in front}
    assert {path.name for path in (folder / "best" / "experiment").iterdir()} == files
    assert outcome.out.count("run the winner: ") == len(front)
    found = recorded(study_outputs, "oe_nsga2")
    assert found.artifacts("best") == files
    assert "pareto.png" in found.artifacts("plots")


@pytest.mark.slow
def test_cma_es_tunes_the_weights_of_all_losses(study_outputs, capfd) -> None:
    overrides = ("hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.n_startup_trials=1")
    outcome = run(capfd, "-m", "+sweep=loss_weights_cma", *SMALL_STUDY, *overrides)
    assert outcome.code == 0, outcome.err
    trials = trials_of(study_outputs / "studies" / "loss_weights_cma")
    assert len(ended(trials)) == len(points(trials)) == 3
    assert trials[0].params[f"{LOSS}.class_weight"] == 7.0, "the first has the file's own values"
    assert any("cma" in key for trial in trials for key in trial.system_attrs), "all were random"


@pytest.mark.slow
def test_seeds_are_no_contest(study_outputs, capfd) -> None:
    overrides = ("seed=range(2)", "hydra.sweeper.n_trials=2", "hydra.sweeper.study=seeds")
    outcome = run(capfd, "-m", "+sweep=seeds", *SMALL_STUDY, *overrides)
    assert outcome.code == 0, outcome.err
    folder = study_outputs / "studies" / "seeds"
    metrics = [metrics_of(folder / name)["metrics"] for name in ("000", "001")]
    key = "synth_anomaly/outlier_class/ap"
    values = [found[key] for found in metrics]
    spread = f"{sum(values) / 2:.3f} ± {abs(values[0] - values[1]) / math.sqrt(2):.3f}"
    (line,) = (line for line in outcome.out.splitlines() if key in line)
    assert spread in line
    assert "run the winner" not in outcome.out
    assert not (folder / "best").exists()
    sizes = ("benchmark.synth_anomaly.length=4", "benchmark.synth_obstacle.length=4")
    board = run(capfd, *printed("leaderboard: ", outcome.out), *BRIEF, *sizes)
    assert board.code == 0, board.err
    assert "over seeds" in board.out.lower()


@pytest.mark.slow
def test_precisions_are_swept_in_one_process(study_outputs, capfd) -> None:
    overrides = ("hydra/sweeper/sampler=grid", "trainer.precision=choice(no,bf16)")
    name = "hydra.sweeper.study=precision"
    before = str(os.getpid())
    outcome = run(
        capfd, *QUICK_STUDY, *overrides, name, "hydra.sweeper.n_trials=2", "trainer.epochs=1"
    )
    assert outcome.code == 0, outcome.err
    found = {
        t.params["trainer.precision"]: t for t in trials_of(study_outputs / "studies" / "precision")
    }
    assert {name: t.state.name for name, t in found.items()} == {
        "no": "COMPLETE", "bf16": "COMPLETE",
    }  # fmt: skip
    children = recorded(study_outputs, "precision").children
    assert {run.data.tags["pid"] for run in children} == {before}
    losses = [run.data.metrics["train/total"] for run in children]
    assert len(set(losses)) == 2, "the second trial had the precision of the first"
