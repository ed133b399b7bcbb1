"""The winner's file runs what the trial ran: composed by Hydra, both are one configuration."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from eomt_exp import cli
from eomt_exp.paths import asset_dir
from eomt_exp.studies.best import command_of, keep_only, write_best
from tests.command_line import run

CONF = asset_dir("conf")


@pytest.fixture
def _hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def is_group(key: str) -> bool:
    return (CONF / key).is_dir()


def write(folder: Path, words=(), space_words=(), experiment="eim_oe", **changes) -> Path:
    given = {"number": 7, "study_name": "lr", "values": {"val/ap": 0.1}}
    return write_best(
        folder, experiment=experiment, words=words, space_words=space_words, group_of=is_group,
        **{**given, **changes},
    )  # fmt: skip


def composed(*words: str, folder: Path | None = None) -> dict:
    places = [] if folder is None else [f"hydra.searchpath=[file://{folder}/best]"]
    cfg = compose("config", overrides=["hydra.run.dir=unused", *places, *words])
    plain = OmegaConf.to_container(cfg, resolve=False)
    return {key: value for key, value in plain.items() if key not in ("name", "tuned_on")}


WINNERS = {
    "values": [
        "optim.lr=0.00012345678901234567", "optim.weight_decay=1e-05", "seed=4",
        "data.image_size=[32,64]", "start_from=null", "strict=false", "checkpoint='1e-5'",
        "recipe.exposure_lr=${recipe.lr}"],
    "groups": [
        "anomaly_head=uncertainty", "backbone=deit_tiny", "debug=fast",
        "benchmark@tuning=pasted_validation", "trainer.validate_every=1",
        "loss=[mask_classification,anomaly_head]", "loss.anomaly_head.weight=0.5"],
    "what is added": [
        "+scorer=anomaly_head", "+backbone.overrides.embed_dim=48",
        "++backbone.overrides.num_heads=3"],
    "a mapping": ["+backbone.overrides={depth: 3}", "+backbone.overrides.embed_dim=48"],
}  # fmt: skip


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("words", WINNERS.values(), ids=WINNERS.keys())
def test_the_file_composes_to_what_the_words_compose_to(tmp_path, words):
    path = write(tmp_path, words[:1], words[1:])
    typed = composed("+experiment=eim_oe", *words)
    assert composed(f"+experiment={path.stem}", folder=tmp_path) == typed


@pytest.mark.usefixtures("_hydra")
def test_the_trial_wins_over_what_was_typed_for_all(tmp_path):
    write(tmp_path, ["optim.lr=1", "anomaly_head=entropy"], ["anomaly_head=max_prob", "optim.lr=2"])
    typed = composed("+experiment=eim_oe", "optim.lr=2", "anomaly_head=max_prob")
    assert composed("+experiment=lr_best", folder=tmp_path) == typed


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize(("experiment", "swept"), [(None, []), ("eim", ["experiment=eim_oe"])])
def test_the_experiment_may_be_missing_or_the_trials_own_choice(tmp_path, experiment, swept):
    write(tmp_path, [], [*swept, "optim.lr=2"], experiment=experiment)
    typed = composed(*(f"+{word}" for word in swept), "optim.lr=2")
    assert composed("+experiment=lr_best", folder=tmp_path) == typed


@pytest.mark.usefixtures("_hydra")
def test_a_winner_can_be_varied_further(tmp_path):
    write(tmp_path, ["optim.lr=2"])
    again = composed("+experiment=lr_best", "optim.lr=3", folder=tmp_path)
    assert again == composed("+experiment=eim_oe", "optim.lr=3")


def test_words_about_the_machine_and_the_study_stay_out(tmp_path):
    out = ["tracking=none", "tracking.uri=x", "resume=false", "paths.outputs=/x", "+sweep=lr",
           "hydra.sweeper.n_trials=3", "hydra/launcher=process", "name=x", "optim.lr=1,2",
           "optim.weight_decay=interval(0,1)"]  # fmt: skip
    content = OmegaConf.load(write(tmp_path, out, ["seed=1"]))
    assert set(content) == {"defaults", "name", "tuned_on", "seed"}
    assert content.defaults == ["eim_oe"]
    assert content.name == "lr_best"


def test_what_the_study_sets_is_said_and_a_word_wins(tmp_path):
    settings = {"score": "uno", "data.image_size": [64, 128], "optim.lr": 0.1}
    content = OmegaConf.load(write(tmp_path, ["optim.lr=1e-05"], settings=settings))
    assert (content.score, content.data.image_size) == ("uno", [64, 128])
    assert content.optim.lr == 1e-5


def test_the_file_says_where_it_comes_from(tmp_path):
    path = write(tmp_path, ["optim.lr=1e-05"], values={"val/ap": 1 / 3})
    assert path == tmp_path / "best" / "experiment" / "lr_best.yaml"
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1] == "# Trial 7 of study lr: val/ap 0.3333333333333333."
    assert f"# Run:  {command_of(path)}" in lines
    content = OmegaConf.load(path)
    assert content.name == "lr_best"
    assert content.tuned_on == str(tmp_path)
    assert content.optim.lr == 1e-5


@pytest.mark.parametrize("value", ["0.1", "1e-05", "2.2250738585072014e-308", "3", "-0.0", "1e+22"])
def test_numbers_are_exact(tmp_path, value):
    found = OmegaConf.load(write(tmp_path, [f"optim.lr={value}"])).optim.lr
    assert repr(found) == repr(float(value) if value != "3" else 3)


@pytest.mark.parametrize(
    "value", ["1e-5", "yes", "null", "0x1f", "2020-01-01", "", " a: b # c", "é"]
)
def test_text_stays_text(tmp_path, value):
    path = write(tmp_path, [f"checkpoint='{value}'"])
    assert OmegaConf.load(path).checkpoint == value


def test_what_a_file_cannot_say_goes_into_the_command(tmp_path):
    words = ["~loss.outlier_margin", "data.image_size.0=64", "seed=1"]
    path = write(tmp_path, words)
    assert command_of(path, words) == (
        f"python -m eomt_exp --config-dir {tmp_path}/best "
        "+experiment=lr_best '~loss.outlier_margin' data.image_size.0=64"
    )
    assert command_of(path, words) in path.read_text()
    assert "outlier_margin" not in OmegaConf.load(path)
    assert "data" not in OmegaConf.load(path)


def test_the_command_runs_as_it_is_printed(tmp_path, capfd):
    folder = tmp_path / "my studies"
    path = write(folder, ["loss=[mask_classification]", "~scorer.uno"], ["optim.lr=0.25"])
    command = shlex.split(command_of(path, ["~scorer.uno"]))
    assert command[:3] == ["python", "-m", "eomt_exp"]
    found = run(capfd, "--cfg", "job", *command[3:])
    assert found.code == 0, found.err
    cfg = OmegaConf.create(found.out)
    assert (cfg.name, cfg.tuned_on) == ("lr_best", str(folder))
    assert (cfg.optim.lr, list(cfg.loss)) == (0.25, ["mask_classification"])
    assert "uno" not in cfg.scorer


def test_each_trial_of_a_front_has_a_file_and_old_ones_go(tmp_path):
    first, second = (write(tmp_path, number=n, on_front=True) for n in (7, 123))
    other = write(tmp_path, study_name="lr_pareto")
    assert (first.name, second.name) == ("lr_pareto_007.yaml", "lr_pareto_123.yaml")
    keep_only(tmp_path, "lr", [second])
    assert sorted(path.name for path in first.parent.iterdir()) == [
        "lr_pareto_123.yaml",
        "lr_pareto_best.yaml",
    ]
    assert other.exists()


def test_any_name_of_a_study_gives_a_name_that_hydra_can_be_told(tmp_path):
    path = write(tmp_path, study_name="lr [new], 2.0")
    assert path.name == "lr__new___2_0_best.yaml"
    assert OmegaConf.load(path).name == path.stem
