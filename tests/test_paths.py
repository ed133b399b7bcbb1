"""Paths as people type them: any name works in every address made of it, and ~ is the home."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from mlflow.utils.file_utils import local_file_uri_to_path
from omegaconf import OmegaConf
from safetensors.torch import load_file
from sqlalchemy import create_engine

from eomt_exp import cli, runs
from eomt_exp.data.outlier_folder import OutlierFolder
from eomt_exp.paths import asset_dir, at_home
from eomt_exp.run_folders import choose
from eomt_exp.schema import LONGEST_NAME, is_folder_name
from eomt_exp.studies.storage import open_storage
from eomt_exp.tracking.store import _artifact_location, sqlite_file
from eomt_exp.weights.weight_files import save_weights, weight_files
from tests.command_line import SMALL, mlflow_run, run
from tests.data_files import known_classes, noise, save
from tests.sweep_commands import ended, trials_of

NAMES = [
    "a b", " lead", "~", "~x", "%20", "a%41b%", "what?", "q?mode=ro&x=1", "#1", "a=b", "a,b", "a;b",
    "a:b", "a&b", "a+b", "@host", "it's", 'say "x"', "back\\slash", "{x}", "${x}", "[a]", "*", "-x",
    "a|b", "<a>", "new\nline", "ünïcode-日本", "file:", "x" * 255,
]  # fmt: skip


@pytest.fixture(scope="module")
def cfg():
    """The configuration whose addresses follow paths.outputs."""
    cli.register()
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        return compose("config", overrides=["hydra.run.dir=unused", "name=x"])


@pytest.mark.parametrize("name", NAMES)
def test_every_address_leads_into_a_folder_of_any_name(cfg, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    cfg.paths.outputs = str(folder).replace("${", "\\${")
    uri, artifacts = cfg.tracking.uri, cfg.tracking.artifacts
    folder.mkdir()
    assert sqlite_file(uri) == folder / "mlflow.db"
    with create_engine(uri).connect() as connection:
        connection.exec_driver_sql("create table t (x)")
    location = _artifact_location(uri, "roads", artifacts)
    assert local_file_uri_to_path(location) == str(folder / "mlartifacts" / "roads")
    assert Path(choose(cfg.paths.outputs, "x", resume=True)).parent == folder / "x"
    journal = folder / "s" / "study.log"
    open_storage(f"journal://{journal}").create_new_study(directions=[], study_name="s")
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "s"}
    assert journal.is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_images_objects_and_weights_are_read_from_a_folder_of_any_name(
    tmp_path: Path, name: str
) -> None:
    folder, labels = tmp_path / name, np.zeros((16, 32), np.uint8)
    save(folder / "train" / "1.png", noise(0, 16, 32))
    save(folder / "trainannot" / "1.png", labels)
    (item,) = known_classes("camvid", folder)
    assert np.array_equal(item.image, noise(0, 16, 32))
    cutout = np.full((8, 8, 4), 255, np.uint8)
    save(folder / "rgba" / "1.png", cutout)
    assert np.array_equal(OutlierFolder(folder)[0], cutout)
    weights = torch.nn.Linear(1, 1)
    save_weights(weights, folder / "model.safetensors")
    (file,) = weight_files(folder / "model.safetensors")
    assert load_file(file)["bias"] == weights.bias


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("~", "/h"), ("~/a b", "/h/a b"), ("sqlite:///~/x.db", "sqlite:////h/x.db"),
        ("journal://~/s.log", "journal:///h/s.log"), ("/x/~", "/x/~"), ("./~", "./~"), ("~x", "~x"),
        ("hf://owner/~name", "hf://owner/~name"), ("", ""),
    ],
)  # fmt: skip
def test_a_tilde_is_the_home_at_the_beginning_of_a_path(monkeypatch, typed, path) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert at_home(typed) == path


def test_a_tilde_is_expanded_wherever_it_comes_from(cfg, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = cfg.copy()
    cfg.paths.outputs, cfg.paths.camvid, cfg.checkpoint = "~/o", "~/c", ["~/a", "b"]
    cfg.data.train = {"root": "${paths.camvid}", "layouts": {"a": {"images": "~/{id}"}}}
    assert cfg.tracking.uri == f"sqlite:///{tmp_path}/o/mlflow.db"
    before = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    cli._put_at_home(cfg)
    assert (cfg.paths.outputs, cfg.paths.camvid) == (f"{tmp_path}/o", f"{tmp_path}/c")
    assert list(cfg.checkpoint) == [f"{tmp_path}/a", "b"]
    assert cfg.data.train.root == f"{tmp_path}/c"
    # A run that kept its ~ goes on, and is found again by its content.
    cfg.checkpoint = before.checkpoint = None
    OmegaConf.save(before, tmp_path / "config.yaml")
    assert runs.content_key(runs.load_config(tmp_path)) == runs.content_key(cfg)


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "/a", "a\\b", "a\0b", "ü" * 101])
def test_a_name_that_is_no_folders_is_refused(name: str) -> None:
    assert not is_folder_name(name)


def test_other_names_are_folders() -> None:
    assert all(is_folder_name(name) for name in ("a b", "~", "a=b", "日本", "x" * LONGEST_NAME))


@pytest.mark.slow
def test_runs_jobs_and_studies_work_in_a_folder_of_a_strange_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    outputs = tmp_path / "it's a %20? #1=2,ü {x}"  # Hydra takes ${y} for its own
    monkeypatch.setenv("EOMT_OUTPUTS", str(outputs))
    small = ("+experiment=semantic", *SMALL, "benchmark=none", "evaluator.known_classes=false")
    assert run(capfd, *small).code == 0
    folder = next((outputs / "semantic").glob("*/config.yaml")).parent
    assert mlflow_run(outputs, folder).info.status == "FINISHED"
    quoted = str(folder).replace("'", "\\'")
    again = run(capfd, *small, f"hydra.run.dir='{quoted}'")
    assert "complete already" in again.out, again.err
    for launcher in ("basic", "process"):
        grid = run(capfd, "-m", *small, "seed=1,2", f"hydra/launcher={launcher}", "name=grid")
        assert grid.code == 0, grid.err
    assert len(list((outputs / "grid").glob("multirun-*/[01]/metrics.json"))) == 4
    study = run(capfd, "-m", *small, "hydra/sweeper=optuna", "optim.lr=choice(1e-3,1e-4)",
                "trainer.validate_every=1", "hydra/launcher=process", "hydra.sweeper.study=s",
                "hydra.sweeper.n_trials=2")  # fmt: skip
    assert study.code == 0, study.err
    assert len(ended(trials_of(outputs / "studies" / "s"))) == 2
    # MLflow may make an empty folder whose name is the quoted one.
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(outputs in path.parents for path in files)
