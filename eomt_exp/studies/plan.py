"""What a study is going to do: settings, search space and configuration, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from eomt_exp import runs
from eomt_exp.studies.ledger import Ledger
from eomt_exp.studies.rules import parse_constraints
from eomt_exp.studies.samplers import make_sampler
from eomt_exp.studies.settings import StudyError, StudySettings, read_settings
from eomt_exp.studies.space import read_space
from eomt_exp.studies.storage import make_pruner, open_storage
from eomt_exp.studies.trial import LOOK_METRICS

JOURNAL = "study.log"
# Where a parameter can stand that changes the images or numbers trials are judged by.
_NEAR_THE_EXAM = ("data", "recipe", "tuning", "protocol", "evaluator", "benchmark", "paths")


class Plan:
    """Everything a study needs to know before its first trial, checked."""

    def __init__(self, config: DictConfig, context: HydraContext, words: Sequence[str]) -> None:
        self.config, self.loader = config, context.config_loader
        self.settings = read_settings(config.hydra.sweeper)
        self.space, fixed = read_space(self.settings.params, words, self.settings.forbid)
        if not len(self.space):
            raise StudyError(
                "nothing is searched: write hydra.sweeper.params, or type "
                "'optim.lr=tag(log, interval(1e-4, 1e-2))'."
            )
        self.fixed = [word for word in fixed if not word.lstrip("+").startswith("resume=")]
        # What every job has in common; the search space goes on top of it.
        self.cfg = self.compose(fixed)
        self.space.check(self.cfg, self.options, lambda more: self.compose([*fixed, *more]))
        if not self.cfg.resume:
            self.settings.study += datetime.now().strftime("-%Y-%m-%d_%H-%M-%S")
        check_task(self.settings, self.cfg)
        make_pruner(self.settings.pruner, self.cfg.trainer.epochs)  # or each trial would complain
        self.sampler = make_sampler(
            self.settings.sampler, seed=self.settings.seed, space=self.space
        )
        self._check_exam()
        self.folder = self._folder()
        self.constraints = parse_constraints(self.settings.constraints)
        self.storage = _storage(self.settings.storage, self.folder)

    def compose(self, words: Sequence[str]) -> DictConfig:
        """A job's configuration under these overrides, its hydra node included."""
        return self.loader.load_sweep_config(self.config, list(words))

    def options(self, key: str) -> list[str] | None:
        """The options of a config group; None where `key` is no group."""
        return self.loader.get_group_options(key.partition("@")[0]) or None

    def value(self, key: str) -> Any:
        """What the configuration says without the study: a key's value, or a group's choice."""
        choices = self.cfg.hydra.runtime.choices
        return choices[key] if key in choices else OmegaConf.select(self.cfg, key)

    @property
    def search_path(self) -> list[str]:
        """The word that finds a user's own configurations again, typed as --config-dir or not."""
        hydra = self.config.hydra
        typed = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
        places = [*(f"file://{path}" for path in typed), *(hydra.searchpath or [])]
        return [f"hydra.searchpath=[{','.join(map(quoted, places))}]"] if places else []

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Ask Optuna for a value of each parameter."""
        return self.space.suggest(trial)

    def forbidden(self, values: dict[str, Any]) -> str | None:
        """The rule of `forbid` that a combination breaks."""
        return self.space.forbidden(values, self.value)

    def facts(self) -> dict[str, dict[str, Any]]:
        """What must stay the same for a study to be gone on with."""
        job = without_hydra(self.cfg)
        plain = runs.plain(job)
        score = str(plain["score"])
        judged_by = {"score": score, "scorer": {score: plain["scorer"].get(score)}}
        fixed = {**runs.flat(runs.essence(job)), **runs.flat({**judged_by, **exam(plain)})}
        return {
            "space": dict(self.space.fingerprint()),
            "objective": dict(self.settings.directions),
            "fixed": {key: value for key, value in fixed.items() if not _is_place(value)},
        }

    def ledger(self) -> Ledger:
        """The books of this study, opened; StudyError where it began as another one."""
        given = self.settings
        ledger = Ledger(
            storage=open_storage(self.storage),
            study=given.study,
            objective=given.directions,
            n_trials=given.n_trials,
            sampler=self.sampler,
            facts=self.facts(),
            suggest=self.suggest,
            forbidden=self.forbidden,
            on_stale=given.on_stale,
            max_retries=given.max_retries,
            max_failure_rate=given.max_failure_rate,
        )
        if given.try_defaults:
            self._enqueue_defaults(ledger)
        return ledger

    def _enqueue_defaults(self, ledger: Ledger) -> None:
        defaults = self.space.defaults(self.value)
        if defaults is not None:
            ledger.enqueue(defaults)
            return
        outside = ", ".join(self.space.outsiders(self.value)) or "together they are forbidden"
        print(f"the configuration's own values are not tried: outside the space ({outside}).")

    def _check_exam(self) -> None:
        """No parameter may change what trials are judged by: the easiest exam would win."""
        wanted = exam(runs.plain(without_hydra(self.cfg)))
        for name in self.space.names:
            if name.split(".")[0] not in _NEAR_THE_EXAM:
                continue
            for word in self.space.probes(name):
                found = exam(runs.plain(without_hydra(self.compose([*self.fixed, word]))))
                if found != wanted:
                    raise StudyError(
                        f"{name} changes the images or the protocol that trials are judged by, so "
                        "their numbers could not be compared. Leave it out of the search space."
                    )

    def _folder(self) -> Path:
        """<outputs>/studies/<study>, or, in a hydra.sweep.dir that was typed, <study>."""
        words = self.config.hydra.overrides.hydra
        typed = any(str(word).startswith("hydra.sweep.dir=") for word in words)
        place = self.config.hydra.sweep.dir if typed else Path(self.cfg.paths.outputs, "studies")
        return Path(str(place), self.settings.study).resolve()


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A job's configuration as its task sees it."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def check_task(settings: StudySettings, cfg: DictConfig) -> None:
    """A study is judged by what training reports of its own looks, never by a benchmark."""
    if not str(cfg.task._target_).endswith("train.run"):
        raise StudyError("a study tunes trainings: leave task= out, or type task=train.")
    if not cfg.trainer.validate_every:
        raise StudyError(
            "trainer.validate_every=0 looks at nothing during training: type "
            "trainer.validate_every=1."
        )
    groups = [*(f"val/{name}" for name in cfg.tuning), *(["val"] if cfg.tuning else [])]
    there = ["val/miou", *(f"{group}/{metric}" for group in groups for metric in LOOK_METRICS)]
    for name in (*settings.directions, *settings.constraints):
        if name not in there:
            raise StudyError(
                f"{name} is not among the metrics of the looks during training, which a study is "
                f"judged by: {', '.join(there)}. To look at anomalies, type "
                "benchmark@tuning=pasted_validation 'hydra.sweeper.objective=[maximize val/ap]'; a "
                "benchmark of the evaluation would no longer be a test."
            )


def exam(job: dict[str, Any]) -> dict[str, Any]:
    """The part of a plain configuration that says how trials are judged."""
    return {
        "tuning": job["tuning"],
        "data": {"val": job["data"]["val"]},
        "protocol": job["protocol"],
        "evaluator": {"bits": job["evaluator"]["bits"]},
    }


def _is_place(value: Any) -> bool:
    """Whether it says where something lies on this machine, which says nothing of what it is."""
    return isinstance(value, str) and value.startswith(("/", "~"))


def quoted(text: str) -> str:
    """Text as one value in Hydra's grammar, whatever is in it."""
    return QuotedString(text, Quote.single).with_quotes()


def _storage(given: str | None, folder: Path) -> str:
    """The journal in the study's folder, or what was typed, made absolute: jobs run anywhere."""
    if given is None:
        return f"journal://{folder / JOURNAL}"
    kind, _, place = given.partition("://")
    if kind == "journal":
        return f"journal://{Path(place).resolve()}"
    if kind == "sqlite" and place.startswith("/"):
        file, mark, options = place[1:].partition("?")
        return f"sqlite:///{Path(file).resolve()}{mark}{options}"
    if not given:
        raise StudyError(
            "hydra.sweeper.storage='' is a memory that no job could reach; null is a journal in "
            "the study's folder."
        )
    return given
