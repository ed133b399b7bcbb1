"""Run folders: which one a command gets, and that two processes never work in one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eomt_exp import run_folders
from eomt_exp.contracts import UserError
from eomt_exp.files import LOCK, hold_lock, is_locked
from eomt_exp.run_folders import choose, working_in

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import sys, time
from pathlib import Path
from eomt_exp.files import hold_lock
lock = hold_lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that this command was given."""
    monkeypatch.setattr(sys, "argv", ["eomt_exp", "seed=1"])
    folder = choose(str(tmp_path), "x", resume=True)
    monkeypatch.setattr(run_folders, "chosen", {(str(tmp_path), "x"): folder})
    Path(folder).mkdir(parents=True)
    return Path(folder)


def again(outputs: Path) -> Path:
    """The folder that the same command would be given now."""
    return Path(choose(str(outputs), "x", resume=True))


def test_the_same_command_finds_a_run_that_failed_and_none_that_is_complete(tmp_path, chosen):
    (chosen / "config.yaml").write_text("")
    with pytest.raises(RuntimeError, match="boom"), working_in(chosen, tmp_path):
        raise RuntimeError("boom")
    assert again(tmp_path) == chosen
    assert Path(choose(str(tmp_path), "x", resume=False)) != chosen
    with working_in(chosen, tmp_path):
        pass
    assert again(tmp_path) != chosen


def test_a_run_that_never_began_is_not_gone_on_with(tmp_path, chosen):
    with pytest.raises(UserError, match="no such data"), working_in(chosen, tmp_path):
        raise UserError("no such data")
    assert again(tmp_path) != chosen


def test_only_a_command_that_chose_its_folder_leaves_a_pointer(tmp_path, chosen):
    typed = tmp_path / "typed"
    with working_in(typed, tmp_path):
        assert not (tmp_path / ".unfinished").exists()
    with working_in(chosen, tmp_path):
        assert len(list((tmp_path / ".unfinished").iterdir())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process")
def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path, chosen, capsys):
    (chosen / "config.yaml").write_text("")
    with pytest.raises(KeyboardInterrupt), working_in(chosen, tmp_path):
        raise KeyboardInterrupt
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(chosen / LOCK)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    assert is_locked(chosen / LOCK)
    with pytest.raises(UserError, match="another process works in"), working_in(chosen, tmp_path):
        raise AssertionError("two processes in one folder")
    assert again(tmp_path) != chosen
    assert "still running" in capsys.readouterr().err
    other.kill()
    other.wait()
    assert not is_locked(chosen / LOCK)
    assert again(tmp_path) == chosen
    lock = hold_lock(chosen / LOCK)
    assert lock is not None
    assert is_locked(chosen / LOCK), "also by this process"
    lock.release()
