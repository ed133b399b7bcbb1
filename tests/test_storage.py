"""Storages of studies by their address: what is opened, and what is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from eomt_exp.contracts import UserError
from eomt_exp.studies.storage import hide_password, open_storage
from tests.study_controller import ledger_of


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_a_study_comes_back_from_its_storage(kind: str, tmp_path: Path) -> None:
    url = f"{kind}://{'/' if kind == 'sqlite' else ''}{tmp_path}/new/study"
    optuna.create_study(storage=open_storage(url), study_name="toy").set_user_attr("k", 1)
    found = optuna.load_study(storage=open_storage(url), study_name="toy")
    assert found.user_attrs == {"k": 1}


@pytest.mark.parametrize("url", ["outputs/study.log", "journal://", "redis://h/1", "grpc://h"])
def test_an_unknown_storage_lists_the_allowed_ones(url: str) -> None:
    with pytest.raises(UserError, match=r"journal:///folder/study.log.*sqlite.*grpc.*mysql"):
        open_storage(url)


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EOMT_STORAGE", "of another study")
    url = "postgresql+psycopg://me:s3@cr:t@h/db"
    assert hide_password(url) == "postgresql+psycopg://me:***@h/db"
    assert os.environ["EOMT_STORAGE"] == url  # for the jobs
    for wrong in ("redis://me:secret@h/1", "postgresql+psycopg://me:secret@localhost:1/db"):
        with pytest.raises(UserError, match=r"\*\*\*") as caught:
            open_storage(wrong)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "extra"), [("mysql+pymysql://h/db", "mysql"), ("postgresql+pg8000://h/db", "postgr")]
)
def test_a_missing_driver_says_what_to_install(url: str, extra: str) -> None:
    with pytest.raises(UserError, match=rf'pip install -e "\.\[{extra}'):
        open_storage(url)


def test_a_server_that_is_away_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eomt_exp.studies.storage._SERVER_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"run_grpc_proxy_server.* port=1\)"):
        open_storage("grpc://localhost:1")


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
        with ledger_of(f"grpc://localhost:{port}", 3, max_retries=1, folder=tmp_path) as ledger:
            first = ledger.claim()
            assert first
            ledger.fail(first, "crashed", retry=True)
            while (claimed := ledger.claim()) is not None:
                ledger.complete(claimed, [0.1])
            assert [row.folder for row in ledger.rows()] == ["000", "002", "003"]
    finally:
        server.kill()
        server.wait()
