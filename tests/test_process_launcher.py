"""`hydra/launcher=process`: jobs in processes of their own, and how they end."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf, open_dict

from eomt_exp import cli, jobs
from eomt_exp.contracts import TrainingError, TrialPruned, UserError
from eomt_exp.jobs import JobResult
from eomt_exp.paths import asset_dir
from eomt_exp.schema import ProcessLauncherConfig, typed
from tests.command_line import ROOT, SMALL, mlflow_run, run, start, wait_for

Plugins.instance()  # Hydra imports its plugins anew; what is taken from them must be that
from hydra_plugins.eomt_exp_hydra import process_launcher  # noqa: E402


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "EOMT_TRIAL", "EOMT_RESULT",
                 "MLFLOW_TRACKING_URI", "RANK", "WORLD_SIZE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EOMT_OUTPUTS", str(tmp_path / "out"))


@pytest.mark.parametrize("value", [None, 0.25, {"a": math.inf, "b": -math.inf, "c": math.nan}])
def test_a_value_comes_back_as_it_was(tmp_path: Path, value: Any) -> None:
    jobs.write_result(tmp_path / "new" / "r", JobResult(jobs.COMPLETED, value))
    assert str(jobs.read_result(tmp_path / "new" / "r")) == str(JobResult(jobs.COMPLETED, value))
    jobs.write_result(tmp_path / "r", JobResult(jobs.COMPLETED, {"a": np.float32(0.5)}))
    assert jobs.read_result(tmp_path / "r") == JobResult(jobs.COMPLETED, {"a": 0.5})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "completed", "more": 1}', "\udc80"])
def test_a_broken_result_is_none(tmp_path: Path, text: str) -> None:
    assert jobs.read_result(tmp_path / "absent") is None
    (tmp_path / "r").write_bytes(text.encode(errors="surrogateescape"))
    assert jobs.read_result(tmp_path / "r") is None


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """run_task as a single run whose task does `task`; gives its result file."""
    result_file = tmp_path / "result.json"
    monkeypatch.setenv(jobs.RESULT_ENV, str(result_file))
    config = SimpleNamespace(
        mode=RunMode.RUN, job=SimpleNamespace(name="x"),
        runtime=SimpleNamespace(output_dir=str(tmp_path / "run")),
    )  # fmt: skip
    monkeypatch.setattr(cli, "HydraConfig", SimpleNamespace(get=lambda: config))

    def with_task(task: Callable[[Any], Any]) -> Path:
        monkeypatch.setattr(cli, "_run", task)
        return result_file

    return with_task


def raising(error: BaseException) -> Callable[[Any], Any]:
    def task(cfg: Any) -> None:
        raise error

    return task


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TrialPruned(), "pruned", None),
        (UserError("lr must be above 0"), "refused", 2),
        (TrainingError("the loss is NaN"), "failed", 2),
        (ValueError("operands could not be broadcast"), "failed", ValueError),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", torch.OutOfMemoryError),
        (MemoryError(), "out_of_memory", MemoryError),
    ],
)
def test_each_end_of_a_job_is_in_its_result(single, capsys, error, status: str, code: Any) -> None:
    result_file = single(raising(error))
    if code is None:
        assert cli.run_task(OmegaConf.create()) is None
    else:
        with pytest.raises(SystemExit if code == 2 else code) as ending:
            cli.run_task(OmegaConf.create())
        assert code != 2 or ending.value.code == 2
    result = jobs.read_result(result_file)
    assert result.status == status
    if status != "pruned":
        assert (result.kind, result.error) == (type(error).__name__, str(error))
    assert (f"error: {error}" in capsys.readouterr().err) == (code == 2)


def test_a_stopped_job_leaves_no_result_and_a_value_is_written_and_returned(single) -> None:
    result_file = single(raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        cli.run_task(OmegaConf.create())
    assert jobs.read_result(result_file) is None  # so it may be tried again
    single(lambda cfg: {"val/ap": 0.5})
    assert cli.run_task(OmegaConf.create()) == {"val/ap": 0.5}
    assert jobs.read_result(result_file) == JobResult(jobs.COMPLETED, {"val/ap": 0.5})


def test_the_rank_that_failed_first_is_heard(single, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    result_file = single(lambda cfg: 1.0)
    cli.run_task(OmegaConf.create())
    assert not result_file.exists()  # a value is the first rank's to write
    for error in (torch.OutOfMemoryError("full"), KeyboardInterrupt()):  # torchrun ends the others
        single(raising(error))
        with pytest.raises(type(error)):
            cli.run_task(OmegaConf.create())
    assert jobs.read_result(result_file).status == "out_of_memory"


def environments(**settings: Any) -> list[dict[str, str]]:
    node = OmegaConf.load(asset_dir("conf") / "hydra" / "launcher" / "process.yaml")
    node = OmegaConf.merge(node, settings)
    config = typed(node, ProcessLauncherConfig, "hydra.launcher")
    return process_launcher.environments(config)


@pytest.mark.parametrize(
    ("visible", "settings", "wanted"),
    [
        ("0,1", {"slots": 2}, [None, None]),
        ("0,1,2,3", {"slots": 2, "gpus": "auto"}, ["0,1", "2,3"]),
        ("GPU-a,GPU-b", {"slots": "auto", "gpus": "auto"}, ["GPU-a", "GPU-b"]),
        ("0,1,2,3,4", {"slots": "auto", "num_processes": 2}, ["0,1", "2,3"]),
        ("2,3", {"num_processes": 2, "gpus": "auto"}, ["2,3"]),
        ("", {"slots": "auto", "gpus": "auto"}, [None]),
        ("-1", {"slots": 2, "gpus": "auto"}, [None, None]),
    ],
)
def test_gpus_are_divided_over_slots(monkeypatch, visible, settings, wanted) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in environments(**settings)] == wanted


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"slots": 3, "gpus": "auto"}, "4 GPUs .* over 3 slots.*type hydra.launcher.slots=auto"),
        ({"slots": 4, "gpus": "auto", "num_processes": 2}, "a job of 2 processes wants 2"),
        ({"gpus": "all"}, "hydra.launcher.gpus=all cannot be: type null, or auto"),
        ({"slots": 0}, "hydra.launcher.slots=0 cannot be: type a number from 1, or auto"),
        ({"threads": "many"}, "hydra.launcher.threads=many"),
        ({"num_processes": "auto"}, "'auto' .*could not be converted to Integer"),
        ({"grace_s": -1}, "hydra.launcher.grace_s must be at least 0, got -1"),
        ({"n_jobs": 2}, "There are slots, gpus, num_processes"),
    ],
)
def test_slots_that_cannot_be_say_what_to_type(monkeypatch, settings, line: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(UserError, match=line):
        environments(**settings)


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
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    if typed:
        monkeypatch.setenv("OMP_NUM_THREADS", typed)
    assert environments(**settings)[0].get("OMP_NUM_THREADS") == wanted


@contextmanager
def launchers(conf: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Make launchers as a multirun of given overrides has them."""
    cli.register()
    with initialize_config_dir(str(conf), version_base="1.3"):

        def make(*overrides: str) -> Any:
            loader = GlobalHydra.instance().config_loader()
            overrides = (
                "hydra/launcher=process",
                f"hydra.sweep.dir='{tmp_path}/sweep'",
                *overrides,
            )
            config = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
            context = HydraContext(config_loader=loader, callbacks=None)  # type: ignore[arg-type]
            return Plugins.instance().instantiate_launcher(context, cli.run_task, config)

        yield make


@pytest.fixture
def make_launcher(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    with launchers(asset_dir("conf"), tmp_path) as make:
        yield make


def shown(capfd: pytest.CaptureFixture[str], job: Any, what: str) -> Any:
    """What the command of a job composes to."""
    GlobalHydra.instance().clear()
    outcome = run(capfd, *job.command[3:], "--cfg", what)  # after python -m eomt_exp.worker
    assert outcome.code == 0, outcome.err
    return OmegaConf.create(outcome.out)


def test_the_command_of_a_job_composes_to_what_the_sweep_composed(make_launcher, capfd) -> None:
    launcher = make_launcher("hydra.launcher.slots=2", "hydra.mode=MULTIRUN", "hydra.verbose=true")
    typed = ["seed=3", "+experiment=semantic", "hydra.sweep.subdir='a b,c=\\'d\\''"]
    job = process_launcher.compose(launcher.loader, launcher.config, typed, 7)
    assert job.folder.name == "a b,c='d'"
    assert job.overrides == ["seed=3", "+experiment=semantic"]
    expected = launcher.loader.load_sweep_config(launcher.config, typed)
    with open_dict(expected):
        del expected.hydra
    whole = shown(capfd, job, "all")
    hydra_part = whole.pop("hydra")
    assert whole == OmegaConf.create(OmegaConf.to_yaml(expected))
    assert hydra_part.run.dir == str(job.folder)
    assert (hydra_part.mode, hydra_part.job.num, hydra_part.job.id) == ("RUN", 7, "7")
    assert hydra_part.verbose is True


def test_a_users_own_folder_of_options_reaches_the_jobs(tmp_path: Path, capfd) -> None:
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 41\n")
    (own / "main.yaml").write_text("defaults: [config, _self_]\nscore: msp\n")
    seen: list[Any] = []
    flags = ("--config-dir", str(own), "--config-name", "main")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_launcher, "compose", spy(process_launcher.compose, seen))
        run(capfd, *flags, "-m", "hydra/launcher=process", "+experiment=mine")
    cfg = shown(capfd, seen[0], "job")
    assert (cfg.seed, cfg.score) == (41, "msp")


def spy(compose: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    """Note the jobs that are composed, and run `true` in their place."""

    def composed(*given: Any) -> Any:
        seen.append(compose(*given))
        return seen[-1]._replace(command=["true"])

    return composed


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
    job = process_launcher.compose(launcher.loader, launcher.config, ["+sweep=grid"], 0)
    assert shown(capfd, job, "hydra").hydra.mode == "RUN"
    outcome = run(capfd, "+sweep=broken")
    assert outcome.code == 2


@pytest.mark.parametrize(
    ("typed", "is_sweep"),
    [("seed=1", False), ("-m seed=1,2", True), ("--multirun", True), ("+sweep=tpe", True),
     ("hydra.mode=MULTIRUN", True), ("hydra/sweeper=optuna", True),
     ("+sweep=tpe hydra/sweeper=optuna hydra.mode=RUN", False)],
)  # fmt: skip
def test_a_sweep_is_known_by_what_was_typed(monkeypatch, typed: str, is_sweep: bool) -> None:
    monkeypatch.setattr(sys, "argv", ["eomt_exp", *typed.split()])
    assert cli._is_sweep() is is_sweep


TELL = """import os, sys, signal, time, json
def w(*given, **more):
    result = dict(zip(("status", "value"), given)) | more
    os.makedirs(os.path.dirname(os.environ["EOMT_RESULT"]), exist_ok=True)
    json.dump(result, open(os.environ["EOMT_RESULT"], "w"))
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A launcher whose jobs are a line of Python; `job` is its number."""
    own = tmp_path / "conf"
    (own / "hydra").mkdir(parents=True)
    (own / "hydra" / "launcher").symlink_to(asset_dir("conf") / "hydra" / "launcher")
    (own / "config.yaml").write_text("seed: 0\n")  # quick to compose

    with launchers(own, tmp_path) as make_launcher:
        compose = process_launcher.compose

        def make(code: str, *overrides: str) -> Any:
            def composed(*given: Any) -> Any:
                job = compose(*given)
                line = f"{TELL}job = {job.number}\n{code}"
                return job._replace(command=[sys.executable, "-S", "-c", line])

            monkeypatch.setattr(process_launcher, "compose", composed)
            return make_launcher(*overrides)

        yield make


def test_values_come_back_in_order_and_jobs_run_at_once(quick, tmp_path: Path) -> None:
    code = (  # each waits for the other, so one after the other they would never end
        f"place = {str(tmp_path)!r}; open(place + f'/{{job}}', 'w').close()\n"
        "while not os.path.exists(place + f'/{5 - job}'): time.sleep(0.01)\n"
        "time.sleep(0.2 * (job == 2)); w('completed', {'val/ap': job})"
    )
    answers = quick(code, "hydra.launcher.slots=2").launch([["seed=0"], ["seed=1"]], 2)
    assert [answer.return_value for answer in answers] == [{"val/ap": 2}, {"val/ap": 3}]
    assert [answer.overrides for answer in answers] == [["seed=0"], ["seed=1"]]
    assert (tmp_path / "sweep" / "2" / "output.log").is_file()


def test_one_slot_runs_one_job_at_a_time_whoever_asks(quick, tmp_path: Path) -> None:
    code = f"os.mkdir({str(tmp_path / 'busy')!r}); time.sleep(0.1)\n"
    code += f"os.rmdir({str(tmp_path / 'busy')!r}); w('completed', job)"
    launcher = quick(code)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda n: launcher.launch([["seed=0"]], n)[0], range(3)))
    assert [answer.return_value for answer in answers] == [0, 1, 2]


def only(launcher: Any, *overrides: str) -> JobReturn:
    (answer,) = launcher.launch([["seed=0", *overrides]], 0)
    return answer


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("w('refused', error='lr too low', kind='E'); sys.exit(2)", "refused", "lr too"),
        ("print('last words'); w('failed', kind='E'); sys.exit(1)", "failed", "last words"),
        ("w('out_of_memory', kind='M'); sys.exit(1)", "out_of_memory", "exit code 1"),
        ("print('last words'); sys.exit(3)", "crashed", "last words"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "out_of_memory", "killed by SIGKILL"),
    ],
)
def test_a_job_that_failed_says_how(quick, code: str, status: str, text: str) -> None:
    answer = only(quick(code, "hydra.sweeper._target_=a.study"))
    assert answer.status is JobStatus.FAILED
    with pytest.raises(process_launcher.JobFailed, match=text) as failure:
        _ = answer.return_value
    assert failure.value.status == status


def test_a_grid_says_at_once_what_was_refused_and_goes_on(quick, capsys) -> None:
    code = "w('completed' if job else 'refused', 7, error='too low')"
    answers = quick(code).launch([["seed=0"], ["seed=1"]], 0)
    assert [answer.return_value for answer in answers] == [None, 7]
    assert capsys.readouterr().err.count("error: job 0 refused") == 1
    assert len(jobs.refused) == 1  # main() ends with exit code 2
    jobs.refused.clear()


def test_a_pruned_job_raises_so(quick) -> None:
    with pytest.raises(TrialPruned):
        _ = only(quick("w('pruned')")).return_value


def test_the_result_of_an_earlier_try_is_not_believed(quick) -> None:
    launcher = quick("print('first'); w('completed', 1)")
    assert only(launcher).return_value == 1
    failure = only(quick("print('second')"))._return_value
    assert failure.status == "crashed"
    assert "second" in str(failure)
    assert "first" not in str(failure)  # though the log has both


def test_a_job_finds_its_trial_and_its_gpus(quick, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    launcher = quick(
        "keys = 'EOMT_TRIAL', 'CUDA_VISIBLE_DEVICES'\n"
        "w('completed', [os.environ[k] for k in keys])",
        "hydra.launcher.gpus=auto",
    )
    trial = json.dumps({"study": "it's, a=1", "objective": ["val/ap"], "path": "C:\\x\\"})
    quoted = QuotedString(trial, Quote.single).with_quotes()
    found = only(launcher, f"++hydra.job.env_set.EOMT_TRIAL={quoted}").return_value
    assert found == [trial, "3,4"]


def test_overrides_that_do_not_compose_are_refused(quick) -> None:
    answer = only(quick("raise SystemExit", "hydra.sweeper._target_=a.study"), "optim.lrr=1")
    assert answer._return_value.status == "refused"
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
    assert [answer._return_value.status for answer in answers] == ["stopped", "stopped"]
    assert "killed by SIGKILL" in str(answers[0]._return_value)
    assert only(launcher)._return_value.status == "stopped"


def test_a_job_leaves_no_process_behind(quick) -> None:
    code = "import subprocess as s; w('completed', s.Popen(['sleep', '60']).pid)"
    pid = only(quick(code)).return_value
    wait_for(lambda: not is_alive(pid), 10)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_worker_whose_starter_is_gone_does_not_begin() -> None:
    overrides = [sys.executable, "-m", "eomt_exp.worker", "seed=0"]
    environment = {**os.environ, "EOMT_STARTER": "1"}
    result = subprocess.run(overrides, env=environment, capture_output=True, text=True, cwd=ROOT)
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
    wait_for(lambda: not is_alive(pid), 10)


TINY = ("-m", "+experiment=semantic", *SMALL, "scorer=[msp]", "score=msp", "hydra/launcher=process",
        "hydra.sweep.dir=${paths.outputs}/s")  # fmt: skip
ENDLESS = ("recipe.semantic_epochs=500", "data.train.length=24", "recipe.validate_every=0")


def folder_of(number: int) -> Path:
    return Path(os.environ["EOMT_OUTPUTS"]) / "s" / str(number)


def trains(number: int) -> bool:
    return bool(list((folder_of(number) / "checkpoints").glob("step-*")))


def has_numbers(number: int) -> bool:
    return (folder_of(number) / "metrics.json").exists()


@pytest.mark.slow
def test_two_jobs_run_beside_each_other_and_one_killed_costs_that_one() -> None:
    process = start(*TINY, "hydra.launcher.slots=2", "seed=0,1", "recipe.semantic_epochs=12")
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
    assert jobs.read_result(folder_of(0) / ".job" / "result.json").status == "completed"
    assert not (Path(os.environ["EOMT_OUTPUTS"]) / ".unfinished").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 1), (signal.SIGKILL, 2)],
)
def test_no_orphan_is_left_however_the_sweep_ends(number: signal.Signals, processes: int) -> None:
    slots = (f"hydra.launcher.num_processes={processes}", f"hydra.launcher.slots={3 - processes}")
    process = start(*TINY, *slots, "seed=0,1", *ENDLESS)
    wait_for(lambda: trains(0) and (processes == 2 or trains(1)), 120)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == (2 if processes == 1 else 3)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    wait_for(lambda: not any(is_alive(member.pid) for member in family), 45)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), text
    outputs = Path(os.environ["EOMT_OUTPUTS"])
    assert mlflow_run(outputs, folder_of(0)).info.status == "KILLED"


@pytest.mark.slow
def test_a_job_of_two_processes_is_one_run() -> None:
    process = start(*TINY, "hydra.launcher.num_processes=2", "seed=0")
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert has_numbers(0)
    assert (folder_of(0) / ".hydra").is_dir()
    assert jobs.read_result(folder_of(0) / ".job" / "result.json").status == "completed"
    assert list(folder_of(0).glob("checkpoints/*/random_states_1.pkl"))  # of the second one


@pytest.mark.slow
def test_a_killed_process_of_a_group_ends_the_group() -> None:
    process = start(*TINY, "hydra.launcher.num_processes=2", "seed=0", *ENDLESS)
    wait_for(lambda: trains(0), 120)
    (torchrun,) = psutil.Process(process.pid).children()
    ranks = torchrun.children()
    ranks[1].kill()
    text, _ = process.communicate(timeout=120)
    assert "job 0 out_of_memory" in text  # what mostly kills without a word
    assert not any(is_alive(rank.pid) for rank in ranks)


@pytest.mark.slow
def test_a_refused_job_shows_its_message_alone() -> None:
    process = start(*TINY, "optim.lr=-1")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: job 0 refused (exit code 2)" in text
    assert "lr" in text
    assert "Traceback" not in text
