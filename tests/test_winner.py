"""The winner's file runs what the trial ran: composed by Hydra, both are one configuration."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from eomt_exp.studies.plan import Plan
from eomt_exp.studies.winner import write_winner
from tests.command_line import run

Winner = Callable[..., tuple[Path, str]]


@pytest.fixture
def write(tmp_path: Path, hydra_at_conf: None) -> Winner:
    """Write the winner of a study that was typed, with these values of its parameters."""

    def winner(
        typed: Sequence[str], params: dict[str, Any], space: Sequence[str] = (), **more: Any
    ) -> tuple[Path, str]:
        sweeper = ("hydra/sweeper=optuna", "hydra.sweeper.study=lr", "trainer.validate_every=1")
        overrides = [*sweeper, f"paths.outputs={tmp_path}", "+experiment=eim_oe", *typed]
        searched = [*space, *(f"{key}=interval(0, 1)" for key in params if not space)]
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", overrides, RunMode.MULTIRUN)
        task = [one for one in overrides if not one.startswith("hydra")]
        return write_winner(Plan(config, loader, [*task, *searched]), params, 7,
                            more.get("values", {"val/miou": 1 / 3}))  # fmt: skip

    return winner


def composed(*overrides: str, folder: Path | None = None) -> dict[str, Any]:
    path = [f"hydra.searchpath=[file://{folder}]"] if folder else []
    cfg = compose("config", overrides=["hydra.run.dir=unused", *path, *overrides])
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    about = ("name", "tuned_on", "paths")  # the run's name, the study, this machine
    return {key: value for key, value in plain.items() if key not in about}


TYPED = {
    "values": [
        "optim.weight_decay=1e-05", "seed=4", "data.image_size=[32,64]", "start_from=null",
        "strict=false", "checkpoint='1e-5'", "recipe.exposure_lr=${recipe.lr}"],
    "groups": [
        "anomaly_head=uncertainty", "backbone=deit_tiny", "score=uno",
        "loss=[mask_classification,anomaly_head]", "loss.anomaly_head.weight=0.5"],
    "what is added": ["+scorer=anomaly_head", "++backbone.overrides.num_heads=3"],
    "a mapping": ["+backbone.overrides={depth: 3}", "+backbone.overrides.embed_dim=48"],
}  # fmt: skip


@pytest.mark.slow  # each composes five configurations
@pytest.mark.parametrize("typed", TYPED.values(), ids=TYPED.keys())
def test_the_file_composes_to_what_the_trial_was(write: Winner, typed: list[str]) -> None:
    lr = 0.00012345678901234567
    path, _ = write(typed, {"optim.lr": lr})
    of_the_study = "trainer.validate_every=1"  # typed, so a part of the winner
    wanted = composed("+experiment=eim_oe", *typed, of_the_study, f"optim.lr={lr!r}")
    assert composed(f"+experiment={path.stem}", folder=path.parents[1]) == wanted


def test_a_group_may_be_what_was_searched(write: Winner) -> None:
    space = ("anomaly_head=choice(query_only,uncertainty)",)
    path, _ = write(["anomaly_head=query_only"], {"anomaly_head": "uncertainty"}, space)
    again = composed("+experiment=lr_best", "optim.lr=3", folder=path.parents[1])
    wanted = ("anomaly_head=uncertainty", "trainer.validate_every=1", "optim.lr=3")
    assert again == composed("+experiment=eim_oe", *wanted), "a winner can be varied further"


def test_the_file_says_where_it_comes_from_and_nothing_of_the_study(write, tmp_path) -> None:
    study = ["tracking=none", "resume=true", "benchmark@tuning=pasted_validation", "debug=fast"]
    path, command = write(study, {"optim.lr": 1e-5}, values={"val/ap": 1 / 3})
    assert path == tmp_path / "studies/lr/best/experiment/lr_best.yaml"
    lines = path.read_text().splitlines()
    assert lines[:2] == ["# @package _global_", "# Trial 7 of study lr: val/ap 0.3333333333333333."]
    assert f"# Run:  {command}" in lines
    content = OmegaConf.load(path)
    assert content.defaults[0] == "eim_oe"
    assert (content.name, content.tuned_on) == ("lr_best", str(tmp_path / "studies/lr"))
    assert content.optim.lr == 1e-5
    assert not {"tracking", "resume", "paths", "hydra"} & set(content)


def test_each_trial_of_a_front_has_a_file(write: Winner) -> None:
    path, command = write([], {"optim.lr": 0.5}, values={"val/ap": 0.1, "val/miou": 0.5})
    assert path.name == "lr_pareto_007.yaml"
    assert command.endswith("+experiment=lr_pareto_007")


def test_any_name_of_a_study_gives_one_that_hydra_takes(write: Winner) -> None:
    path, _ = write(["hydra.sweeper.study='lr [new], 2.0'"], {"optim.lr": 0.5})
    assert path.name == "lr__new___2_0_best.yaml"
    assert OmegaConf.load(path).name == path.stem


@pytest.mark.slow
def test_the_command_runs_as_it_is_printed(write: Winner, capfd) -> None:
    typed = ["loss=[mask_classification]", "~scorer.uno", "~data.train.length"]
    _, command = write(typed, {"optim.lr": 0.25})
    GlobalHydra.instance().clear()
    program, *arguments = shlex.split(command.removeprefix("python -m "))
    found = run(capfd, "--cfg", "job", *arguments)
    assert (program, found.code) == ("eomt_exp", 0), found.err
    cfg = OmegaConf.create(found.out)
    assert (cfg.name, cfg.optim.lr, list(cfg.loss)) == ("lr_best", 0.25, ["mask_classification"])
    assert "uno" not in cfg.scorer
    assert "length" not in cfg.data.train, "what a file cannot delete goes into the command"
