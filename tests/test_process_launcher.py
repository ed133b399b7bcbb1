"""`hydra/launcher=process`: jobs in processes of their own, and how they end."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from eomt_exp import cli, job_result, run_folders
from eomt_exp.paths import asset_dir
from tests.command_line import SMALL, run

Plugins.instance()  # Hydra imports its plugins anew; what is taken from them must be that
from hydra_plugins.eomt_exp_hydra import _jobs, _slots, process_launcher  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "EOMT_TRIAL", "EOMT_RESULT",
                 "MLFLOW_TRACKING_URI", "RANK", "WORLD_SIZE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EOMT_OUTPUTS", str(tmp_path / "out"))


# --- what a job tells ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0.25, {"val/ap": 0.5}, {"a": math.inf, "b": -math.inf}])
def test_a_value_comes_back_as_it_was(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "new" / "result.json"
    job_result.write_result(path, "completed", value)
    assert job_result.read_result(path) == ("completed", value, "", "")
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_nan_and_numbers_of_numpy_come_back(tmp_path: Path) -> None:
    job_result.write_result(tmp_path / "r", "completed", {"a": math.nan, "b": np.float32(0.5)})
    result = job_result.read_result(tmp_path / "r")
    assert result is not None
    assert math.isnan(result.value["a"])
    assert result.value["b"] == 0.5


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "completed", "more": 1}', "\udc80"])
def test_a_broken_result_is_none(tmp_path: Path, text: str) -> None:
    assert job_result.read_result(tmp_path / "absent") is None
    (tmp_path / "r").write_bytes(text.encode(errors="surrogateescape"))
    assert job_result.read_result(tmp_path / "r") is None


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"completed, pruned.*got 'done'"):
        job_result.write_result(tmp_path / "r", "done")


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


class TrialPruned(Exception):
    """As Optuna calls it."""


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """run_task as a single run whose task does `task`; gives its result file."""
    told = tmp_path / "result.json"
    monkeypatch.setenv(job_result.RESULT_ENV, str(told))
    config = SimpleNamespace(
        mode=RunMode.RUN, job=SimpleNamespace(name="x"),
        runtime=SimpleNamespace(output_dir=str(tmp_path / "run")),
    )  # fmt: skip
    monkeypatch.setattr(cli, "HydraConfig", SimpleNamespace(get=lambda: config))

    def with_task(task: Callable[[Any], Any]) -> Path:
        monkeypatch.setattr(cli, "_run", task)
        return told

    return with_task


def raising(error: BaseException) -> Callable[[Any], Any]:
    def task(cfg: Any) -> None:
        raise error

    return task


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TrialPruned(), "pruned", None),
        (ValueError("lr must be above 0"), "refused", 2),
        (RuntimeError("boom"), "failed", RuntimeError),
        (OutOfMemoryError("CUDA out of memory"), "out_of_memory", OutOfMemoryError),
        (MemoryError(), "out_of_memory", MemoryError),
    ],
)
def test_each_end_of_a_job_is_told(single, capsys, error, status: str, code: Any) -> None:
    told = single(raising(error))
    if code is None:
        assert cli.run_task(OmegaConf.create()) is None
    else:
        with pytest.raises(SystemExit if code == 2 else code) as ending:
            cli.run_task(OmegaConf.create())
        assert code != 2 or ending.value.code == 2
    result = job_result.read_result(told)
    assert result is not None
    assert result.status == status
    if status not in ("pruned",):
        assert (result.kind, result.error) == (type(error).__name__, str(error))
    assert ("error: lr must be above 0" in capsys.readouterr().err) == (status == "refused")


def test_a_stopped_job_tells_nothing_and_may_be_tried_again(single) -> None:
    told = single(raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        cli.run_task(OmegaConf.create())
    assert job_result.read_result(told) is None


def test_a_value_is_told_and_returned(single) -> None:
    told = single(lambda cfg: {"val/ap": 0.5})
    assert cli.run_task(OmegaConf.create()) == {"val/ap": 0.5}
    assert job_result.read_result(told) == ("completed", {"val/ap": 0.5}, "", "")


def test_the_rank_that_failed_first_is_heard(single, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    told = single(lambda cfg: 1.0)
    cli.run_task(OmegaConf.create())
    assert not told.exists()  # a value is the first rank's to tell
    for error in (OutOfMemoryError("full"), KeyboardInterrupt()):  # torchrun ends the others
        single(raising(error))
        with pytest.raises(type(error)):
            cli.run_task(OmegaConf.create())
    result = job_result.read_result(told)
    assert result is not None
    assert result.status == "out_of_memory"


def test_inside_a_multirun_exceptions_travel(single, monkeypatch) -> None:
    cli.HydraConfig.get().mode = RunMode.MULTIRUN
    told = single(raising(ValueError("x")))
    with pytest.raises(ValueError, match="x"):
        cli.run_task(OmegaConf.create())
    assert not told.exists()


# --- slots ---------------------------------------------------------------------------------------


def gpus_of(**settings: Any) -> list[str | None]:
    given = _slots.environments(_slots.read_settings({"_target_": "x", **settings}))
    return [environment.get("CUDA_VISIBLE_DEVICES") for environment in given]


@pytest.mark.parametrize(
    ("visible", "settings", "wanted"),
    [
        (None, {"slots": 2}, [None, None]),
        (None, {"slots": 2, "gpus": [0, 1, 2, 3]}, ["0,1", "2,3"]),
        ("4,6,7", {"slots": 2, "gpus": [0, 2]}, ["4", "7"]),
        ("GPU-a,GPU-b", {"slots": "auto", "gpus": "auto"}, ["GPU-a", "GPU-b"]),
        ("0,1,2,3,4", {"slots": "auto", "num_processes": 2}, ["0,1", "2,3"]),
        ("2,3", {"num_processes": 2, "gpus": "auto"}, ["2,3"]),
        ("", {"slots": "auto", "gpus": "auto"}, [None]),
        ("-1", {"slots": 2, "gpus": "auto"}, [None, None]),
    ],
)
def test_gpus_are_divided_over_slots(monkeypatch, visible, settings, wanted) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_of(**settings) == wanted


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"slots": 3, "gpus": [0, 1, 2, 3]}, "type hydra.launcher.slots=2."),
        ({"slots": 4, "gpus": [0, 1]}, "type hydra.launcher.slots=2."),
        ({"slots": 4, "gpus": [0, 1, 2, 3], "num_processes": 2}, "type hydra.launcher.slots=2."),
        ({"gpus": [0], "num_processes": 2}, "type hydra.launcher.num_processes=1."),
        ({"gpus": 2}, r"type hydra.launcher.gpus=\[2\]."),
        ({"slots": 0}, "type hydra.launcher.slots=1."),
        ({"slots": "many"}, "number from 1 or auto, got 'many'"),
        ({"num_processes": "auto"}, "num_processes must be a number from 1, got 'auto'"),
        ({"threads": 0}, "type hydra.launcher.threads=1."),
        ({"grace_s": -1}, "type hydra.launcher.grace_s=20."),
        ({"n_jobs": 2}, "n_jobs is no setting .* slots, gpus, num_processes"),
    ],
)
def test_slots_that_cannot_be_say_what_to_type(settings, line: str) -> None:
    with pytest.raises(_slots.LauncherError, match=line):
        gpus_of(**settings)


def test_a_gpu_outside_the_visible_ones_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(ValueError, match=r"no GPU 1 among the 1 of CUDA_VISIBLE_DEVICES=5"):
        gpus_of(gpus=[1])


def test_gpus_are_counted_by_their_driver(monkeypatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    listing = "GPU 0: H100 (UUID: a)\n  MIG 1g.10gb (UUID: b)\nGPU 1: H100 (UUID: c)"
    tool.write_text(f"#!/bin/sh\necho '{listing}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpus_of(slots="auto", gpus="auto") == ["0", "1"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpus_of(slots="auto", gpus="auto") == [None]


@pytest.mark.parametrize(
    ("settings", "typed", "wanted"),
    [
        ({}, None, None),
        ({"slots": 2}, None, "4"),
        ({"slots": 2, "num_processes": 2}, None, "2"),
        ({"slots": 20}, None, "1"),
        ({"slots": 2}, "3", None),  # the user's stays
        ({"slots": 2, "threads": 5}, "3", "5"),
    ],
)
def test_cores_are_divided_over_processes(monkeypatch, settings, typed, wanted) -> None:
    monkeypatch.setattr(_slots, "_cores", lambda: 8)
    if typed:
        monkeypatch.setenv("OMP_NUM_THREADS", typed)
    (given, *_) = _slots.environments(_slots.Settings(**settings))
    assert given.get("OMP_NUM_THREADS") == wanted


# --- the words of a job --------------------------------------------------------------------------


@contextmanager
def launchers(conf: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A launcher as a multirun of given words has it."""
    cli.register()
    with initialize_config_dir(str(conf), version_base="1.3"):

        def make(*words: str) -> Any:
            loader = GlobalHydra.instance().config_loader()
            words = ("hydra/launcher=process", f"hydra.sweep.dir='{tmp_path}/sweep'", *words)
            config = loader.load_configuration("config", list(words), RunMode.MULTIRUN)
            context = HydraContext(config_loader=loader, callbacks=None)  # type: ignore[arg-type]
            return Plugins.instance().instantiate_launcher(context, cli.run_task, config)

        yield make


@pytest.fixture
def make_launcher(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    with launchers(asset_dir("conf"), tmp_path) as make:
        yield make


def test_a_job_is_composed_from_its_words_as_the_sweep_composed_it(make_launcher, capfd) -> None:
    launcher = make_launcher("hydra.launcher.slots=2", "hydra.mode=MULTIRUN", "hydra.verbose=true")
    words = ["seed=3", "+experiment=semantic", "hydra.sweep.subdir='a b,c=\\'d\\''"]
    job = _jobs.compose(launcher.loader, launcher.config, words, 7)
    assert job.folder.name == "a b,c='d'"
    assert job.answer.overrides == ["seed=3", "+experiment=semantic"]
    expected = OmegaConf.to_yaml(job.answer.cfg)
    GlobalHydra.instance().clear()
    shown = run(capfd, *job.words, "--cfg", "all")
    assert shown.code == 0, shown.err
    whole = OmegaConf.create(shown.out)
    hydra_part = whole.pop("hydra")
    assert whole == OmegaConf.create(expected)
    assert hydra_part.run.dir == str(job.folder)
    assert (hydra_part.mode, hydra_part.job.num, hydra_part.job.id) == ("RUN", 7, "7")
    assert hydra_part.verbose is True


def test_a_users_own_folder_of_options_reaches_the_jobs(tmp_path: Path, capfd) -> None:
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 41\n")
    (own / "main.yaml").write_text("defaults: [config, _self_]\nscore: msp\n")
    seen: list[list[str]] = []
    flags = ("--config-dir", str(own), "--config-name", "main")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_launcher, "command", lambda words: seen.append(words) or ["true"])
        run(capfd, *flags, "-m", "hydra/launcher=process", "+experiment=mine")
    (words,) = seen
    shown = OmegaConf.create(run(capfd, *words, "--cfg", "job").out)
    assert (shown.seed, shown.score) == (41, "msp")


def test_a_sweep_files_keys_compose_in_its_jobs(make_launcher, monkeypatch, capfd) -> None:
    folder = Path(os.environ["EOMT_OUTPUTS"])
    folder.mkdir()
    (folder / "grid.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/launcher: process\n"
        "hydra: {mode: MULTIRUN, launcher: {slots: 3}}\nseed: 9\n"
    )
    (folder / "broken.yaml").write_text("a: [")  # being written by somebody
    real = cli.asset_dir
    monkeypatch.setattr(cli, "asset_dir", lambda n: folder if n == "sweeps" else real(n))
    cli.register()
    launcher = make_launcher("+sweep=grid")
    assert launcher.slots == 3
    job = _jobs.compose(launcher.loader, launcher.config, ["+sweep=grid"], 0)
    GlobalHydra.instance().clear()
    shown = run(capfd, *job.words, "--cfg", "hydra")
    assert OmegaConf.create(shown.out).hydra.mode == "RUN", shown.err
    outcome = run(capfd, "+sweep=broken")
    assert outcome.code == 1


@pytest.mark.parametrize(
    ("words", "is_sweep"),
    [
        (["seed=1"], False),
        (["-m", "seed=1,2"], True),
        (["--multirun"], True),
        (["+sweep=tpe"], True),
        (["hydra.mode=MULTIRUN"], True),
        (["hydra/sweeper=optuna"], True),
        (["+sweep=tpe", "hydra/sweeper=optuna", "hydra.mode=RUN"], False),
    ],
)
def test_a_sweep_is_known_by_its_words(monkeypatch, words, is_sweep: bool) -> None:
    monkeypatch.setattr(sys, "argv", ["eomt_exp", *words])
    assert cli._is_sweep() is is_sweep


@pytest.mark.parametrize(
    ("words", "modules", "said"),
    [
        (["seed=1"], {"eomt_exp.studies": None}, cli.STOPPED),
        (["-m", "seed=1,2"], {}, "stopped."),
        (["+sweep=tpe"], {"eomt_exp.studies": None}, "stopped; the same command goes on."),
    ],
)
def test_a_stopped_command_says_whether_it_goes_on(monkeypatch, words, modules, said) -> None:
    monkeypatch.setattr(sys, "argv", ["eomt_exp", *words])
    monkeypatch.setattr(sys, "modules", modules)
    assert cli._stopped() == said


def test_only_a_command_of_its_own_leaves_a_pointer(tmp_path: Path, monkeypatch) -> None:
    typed, pointers = tmp_path / "typed", tmp_path / ".unfinished"
    given = Path(run_folders.choose(str(tmp_path), "x", resume=False))
    with run_folders.pointed_to(tmp_path, typed):
        assert not pointers.exists()
    with run_folders.pointed_to(tmp_path, given):
        assert len(list(pointers.iterdir())) == 1
    monkeypatch.setenv("EOMT_TRIAL", "{}")
    with run_folders.pointed_to(tmp_path, given):
        assert not list(pointers.iterdir())


# --- launching, with quick jobs in the place of ours ---------------------------------------------

TELL = "import os, sys, signal, time, json; from eomt_exp.job_result import write_result as w\n"
TELL += "told = os.environ['EOMT_RESULT']\n"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A launcher whose jobs are a line of Python; `job` is its number."""
    own = tmp_path / "conf"
    (own / "hydra").mkdir(parents=True)
    (own / "hydra" / "launcher").symlink_to(asset_dir("conf") / "hydra" / "launcher")
    (own / "config.yaml").write_text("seed: 0\n")  # quick to compose

    with launchers(own, tmp_path) as make_launcher:

        def make(code: str, *words: str) -> Any:
            def command(of_job: list[str]) -> list[str]:
                number = next(w for w in of_job if w.startswith("hydra.job.num=")).partition("=")[2]
                return [sys.executable, "-S", "-c", f"{TELL}job = {number}\n{code}"]

            monkeypatch.setattr(process_launcher, "command", command)
            return make_launcher(*words)

        yield make


def test_values_come_back_in_order_and_jobs_run_at_once(quick, tmp_path: Path) -> None:
    code = (  # each waits for the other, so one after the other they would never end
        f"place = {str(tmp_path)!r}; open(place + f'/{{job}}', 'w').close()\n"
        "while not os.path.exists(place + f'/{5 - job}'): time.sleep(0.01)\n"
        "time.sleep(0.2 * (job == 2)); w(told, 'completed', {'val/ap': job})"
    )
    answers = quick(code, "hydra.launcher.slots=2").launch([["seed=0"], ["seed=1"]], 2)
    assert [answer.return_value for answer in answers] == [{"val/ap": 2}, {"val/ap": 3}]
    assert [answer.overrides for answer in answers] == [["seed=0"], ["seed=1"]]
    assert [answer.cfg.seed for answer in answers] == [0, 1]
    assert answers[0].hydra_cfg.hydra.runtime.output_dir == str(tmp_path / "sweep" / "2")


def test_one_slot_runs_one_job_at_a_time_whoever_asks(quick, tmp_path: Path) -> None:
    code = f"os.mkdir({str(tmp_path / 'busy')!r}); time.sleep(0.1)\n"
    code += f"os.rmdir({str(tmp_path / 'busy')!r}); w(told, 'completed', job)"
    launcher = quick(code)
    answers: list[JobReturn] = []
    ask = [
        threading.Thread(target=lambda n=n: answers.extend(launcher.launch([["seed=0"]], n)))
        for n in range(3)
    ]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert sorted(answer.return_value for answer in answers) == [0, 1, 2]


def only(launcher: Any, *words: str) -> JobReturn:
    (answer,) = launcher.launch([["seed=0", *words]], 0)
    return answer


@pytest.mark.parametrize(
    ("code", "kind", "exit_code", "needle"),
    [
        ("w(told, 'refused', error='lr too low', kind='E'); sys.exit(2)", "refused", 2, "lr too"),
        ("print('last words'); w(told, 'failed', kind='E'); sys.exit(1)", "failed", 1, "last wo"),
        ("w(told, 'out_of_memory', kind='M'); sys.exit(1)", "out_of_memory", 1, "exit code 1"),
        ("print('last words'); sys.exit(3)", "crashed", 3, "last words"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed", -11, "killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "out_of_memory", -9, "killed by SIGKILL"),
    ],
)
def test_a_job_that_failed_says_how(quick, code: str, kind: str, exit_code, needle: str) -> None:
    answer = only(quick(code))
    assert answer.status is JobStatus.FAILED
    with pytest.raises(process_launcher.JobFailed, match=needle) as failure:
        _ = answer.return_value
    assert (failure.value.kind, failure.value.exit_code) == (kind, exit_code)


def test_a_pruned_job_is_optunas_exception(quick) -> None:
    import optuna

    with pytest.raises(optuna.TrialPruned):
        _ = only(quick("w(told, 'pruned')")).return_value


def test_the_result_of_an_earlier_try_is_not_believed(quick) -> None:
    launcher = quick("print('first'); w(told, 'completed', 1)")
    assert only(launcher).return_value == 1
    failure = only(quick("print('second')"))._return_value
    assert failure.kind == "crashed"
    assert "second" in str(failure)
    assert "first" not in str(failure)  # though the log has both


def test_a_job_finds_its_trial_and_its_gpus(quick) -> None:
    launcher = quick(
        "keys = 'EOMT_TRIAL', 'CUDA_VISIBLE_DEVICES'\n"
        "w(told, 'completed', [os.environ[k] for k in keys])",
        "hydra.launcher.gpus=[3,4]",
    )
    trial = json.dumps({"study": "it's, a=1", "objective": ["val/ap"], "path": "C:\\x\\"})
    quoted = QuotedString(trial, Quote.single).with_quotes()
    told = only(launcher, f"++hydra.job.env_set.EOMT_TRIAL={quoted}").return_value
    assert told == [trial, "3,4"]


def test_words_that_do_not_compose_are_refused(quick) -> None:
    answer = only(quick("raise SystemExit"), "optim.lrr=1")
    assert answer._return_value.kind == "refused"
    assert "lrr" in str(answer._return_value)


def test_stop_ends_a_job_that_does_not_listen_and_starts_no_other(quick, tmp_path: Path) -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += f"open({str(tmp_path / 'on')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    launcher = quick(code, "hydra.launcher.grace_s=0.2")
    answers: list[JobReturn] = []
    thread = threading.Thread(target=lambda: answers.extend(launcher.launch([["seed=0"]] * 2, 0)))
    thread.start()
    wait_for((tmp_path / "on").exists)
    launcher.stop()
    thread.join(5)
    assert [answer._return_value.kind for answer in answers] == ["stopped", "stopped"]
    assert [answer._return_value.exit_code for answer in answers] == [-9, None]
    assert only(launcher)._return_value.kind == "stopped"


def test_a_job_leaves_no_process_behind(quick) -> None:
    code = "import subprocess as s; w(told, 'completed', s.Popen(['sleep', '60']).pid)"
    pid = only(quick(code)).return_value
    wait_for(lambda: not is_alive(pid))


# --- the worker ----------------------------------------------------------------------------------


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_worker_whose_starter_is_gone_does_not_begin() -> None:
    words = [sys.executable, "-m", "eomt_exp.worker", "seed=0"]
    environment = {**os.environ, "EOMT_STARTER": "1"}
    result = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert "process 1, which started this job, is gone" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of it")
def test_a_worker_ends_with_its_starter(tmp_path: Path) -> None:
    child = "import os, signal, time; from eomt_exp.worker import end_with_parent as e\n"
    child += "e(os.getppid(), signal.SIGTERM)\n"
    child += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    starter = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert is_alive(pid)
    starter.kill()
    starter.wait()
    wait_for(lambda: not is_alive(pid))


# --- our own jobs --------------------------------------------------------------------------------

TINY = ("+experiment=semantic", *SMALL, "scorer=[msp]", "score=msp", "hydra/launcher=process",
        "hydra.sweep.dir=${paths.outputs}/s")  # fmt: skip
ENDLESS = ("recipe.semantic_epochs=500", "data.train.length=24", "recipe.validate_every=0")


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "eomt_exp", "-m", *TINY, *words], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def folder_of(number: int) -> Path:
    return Path(os.environ["EOMT_OUTPUTS"]) / "s" / str(number)


def trains(number: int) -> bool:
    return bool(list((folder_of(number) / "checkpoints").glob("step-*")))


def has_numbers(number: int) -> bool:
    return (folder_of(number) / "metrics.json").exists()


@pytest.mark.slow
def test_two_jobs_run_beside_each_other_and_one_killed_costs_that_one() -> None:
    process = start("hydra.launcher.slots=2", "seed=0,1", "recipe.semantic_epochs=12")
    wait_for(lambda: trains(0) and trains(1), 120)
    assert not has_numbers(0)
    assert not has_numbers(1)
    workers = {
        next(word for word in child.cmdline() if word.startswith("seed=")): child
        for child in psutil.Process(process.pid).children()
    }
    workers["seed=1"].kill()
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "job 1 out_of_memory (killed by SIGKILL)" in text
    assert "Traceback" not in text
    assert (has_numbers(0), has_numbers(1)) == (True, False)
    told = job_result.read_result(folder_of(0) / ".job" / "result.json")
    assert told is not None
    assert told.status == "completed"
    assert not (Path(os.environ["EOMT_OUTPUTS"]) / ".unfinished").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 1), (signal.SIGKILL, 2)],
)
def test_no_orphan_is_left_however_the_sweep_ends(number: signal.Signals, processes: int) -> None:
    words = (f"hydra.launcher.num_processes={processes}", f"hydra.launcher.slots={3 - processes}")
    process = start(*words, "seed=0,1", *ENDLESS)
    wait_for(lambda: trains(0) and (processes == 2 or trains(1)), 120)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == (2 if processes == 1 else 3)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    wait_for(lambda: not any(is_alive(member.pid) for member in family), 45)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), text
    from mlflow import MlflowClient

    run_id = (folder_of(0) / "mlflow_run_id").read_text().strip()
    recorded = MlflowClient(f"sqlite:///{os.environ['EOMT_OUTPUTS']}/mlflow.db").get_run(run_id)
    assert recorded.info.status == "KILLED"


@pytest.mark.slow
def test_a_job_of_two_processes_is_one_run() -> None:
    process = start("hydra.launcher.num_processes=2", "seed=0")
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert has_numbers(0)
    assert (folder_of(0) / ".hydra").is_dir()
    told = job_result.read_result(folder_of(0) / ".job" / "result.json")
    assert told is not None
    assert told.status == "completed"
    assert list(folder_of(0).glob("checkpoints/*/random_states_1.pkl"))  # of the second one


@pytest.mark.slow
def test_a_killed_process_of_a_group_ends_the_group() -> None:
    process = start("hydra.launcher.num_processes=2", "seed=0", *ENDLESS)
    wait_for(lambda: trains(0), 120)
    (torchrun,) = psutil.Process(process.pid).children()
    ranks = torchrun.children()
    ranks[1].kill()
    text, _ = process.communicate(timeout=120)
    assert "job 0 out_of_memory" in text  # what mostly kills without a word
    assert not any(is_alive(rank.pid) for rank in ranks)


@pytest.mark.slow
def test_a_refused_job_shows_its_message_alone() -> None:
    process = start("optim.lr=-1")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "job 0 refused (exit code 2)" in text
    assert "lr" in text
    assert "Traceback" not in text
