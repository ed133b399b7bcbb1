"""What is released: a wheel that is complete, one version, extras that are documented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import eomt_exp
from tests.command_line import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text()


def test_every_extra_is_on_the_page() -> None:
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n\[", PROJECT, re.S)[1]
    names = re.findall(r"^([\w-]+) = \[", extras, re.M)
    page = (ROOT / "docs/install.md").read_text()
    listed = re.findall(r"`([\w-]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", page, re.M)))
    assert sorted(names) == sorted(listed)


def test_there_is_one_version_and_the_changelog_begins_with_it() -> None:
    version = re.search(r'^version = "(.*)"', PROJECT, re.M)[1]
    assert re.search(r"^## (\S+),", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == version
    assert eomt_exp.__version__ == version


def test_bash_completes_groups(outputs: Path) -> None:
    typed = {**os.environ, "COMP_LINE": "eomt-exp +experiment=eim_", "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "eomt_exp", "-sc", "query=bash"]
    found = subprocess.run(program, env=typed, capture_output=True, text=True, check=True)
    assert {"+experiment=eim_oe", "+experiment=eim_oe_spatial"} <= {*found.stdout.split()}


@pytest.mark.slow
def test_a_wheel_works_in_another_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("conf", "sweeps", "eomt_exp", "tests", "docs", "notebooks", "benchmarks")
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.*")
        if "__pycache__" not in path.parts and path.is_file()
    }
    assert {name for name in sources if not name.startswith("conf/local/")} <= packed
    assert {"README.md", "LICENSE", "pyproject.toml", "Makefile"} <= packed
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    inside = tmp_path / "site" / "eomt_exp"
    for source, packed in (("conf", "_assets/conf"), ("sweeps", "_assets/sweeps"),
                           ("eomt_exp/report/templates", "report/templates")):  # fmt: skip
        names = {p.relative_to(ROOT / source) for p in (ROOT / source).rglob("*") if p.is_file()}
        local = {name for name in names if name.parts[0] == "local"}
        assert names - local <= {
            p.relative_to(inside / packed) for p in (inside / packed).rglob("*")
        }
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for words, expected in (
        (["--help"], "Anomaly segmentation"),
        (["+experiment=eim_oe", "--cfg", "job"], "class_margin"),
        (["+sweep=eim_oe_tpe", "--cfg", "hydra"], "eim_oe_tpe"),
    ):
        outcome = subprocess.run(
            [sys.executable, "-m", "eomt_exp", *words], cwd=tmp_path / "work", env=environment,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert expected in outcome.stdout
    # There is no Makefile where the wheel is used.
    typed = "from eomt_exp.paths import ui_steps; print(ui_steps('sqlite:///a/mlflow.db'))"
    program = [sys.executable, "-c", typed]
    shown = subprocess.check_output(program, cwd=tmp_path / "work", env=environment, text=True)
    assert shown.strip() == "mlflow ui --backend-store-uri 'sqlite:///a/mlflow.db' --host 127.0.0.1"
