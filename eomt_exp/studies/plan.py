"""Reads and checks what a study is going to do: settings, search space and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eomt_exp import runs
from eomt_exp.build import build
from eomt_exp.config_keys import NEUTRAL, Role, of_roles
from eomt_exp.contracts import UserError
from eomt_exp.evaluator.metrics import flagged
from eomt_exp.paths import at_home
from eomt_exp.schema import StudyConfig, typed
from eomt_exp.studies.ledger import Ledger
from eomt_exp.studies.rules import parse_constraint, quoted
from eomt_exp.studies.samplers import GRID, check_sampler, make_sampler
from eomt_exp.studies.space import read_space
from eomt_exp.studies.storage import JOURNAL

_ABSENT = object()


class Plan:
    """Holds all that a study needs to know before its first trial. Raises UserError."""

    def __init__(self, config: DictConfig, loader: ConfigLoader, overrides: Sequence[str]) -> None:
        self.config, self.loader = config, loader
        self.settings = typed(config.hydra.sweeper, StudyConfig, "hydra.sweeper")
        given = self.settings
        self.space, fixed = read_space(
            given.params, overrides, given.forbid, lambda key: _value(self.cfg, key)
        )
        if not self.space.parameters:
            raise UserError(
                "nothing is searched: write hydra.sweeper.params, or type "
                "'optim.lr=tag(log, interval(1e-4, 1e-2))'."
            )
        self.fixed = [one for one in fixed if not one.lstrip("+").startswith("resume=")]
        self.cfg = self.compose(fixed)  # what every job has in common; the values go on top of it
        self.is_grid = given.sampler.get("_target_") == GRID
        if not self.cfg.resume:
            given.study += datetime.now().strftime("-%Y-%m-%d_%H-%M-%S")
        if self.cfg.tracking.experiment == self.cfg.data.name:  # not chosen by the user
            self.cfg.tracking.experiment = given.study  # trials are no rows among whole runs
        self.folder = self._folder()
        self.url = given.storage or f"journal://{self.folder / JOURNAL}"
        self.constraints = {k: parse_constraint(k, text) for k, text in given.constraints.items()}
        _check_task(given, self.cfg)
        check_sampler(given.sampler, list(given.directions.values()))
        build(given.pruner, "hydra.sweeper.pruner")
        self._check_space()

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return a job's configuration under these overrides, its hydra node included."""
        return self.loader.load_sweep_config(self.config, list(overrides))

    @property
    def search_path(self) -> list[str]:
        """Return the override that finds a user's own options, from --config-dir or not."""
        hydra = self.config.hydra
        typed = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
        paths = [*(f"file://{path}" for path in typed), *(hydra.searchpath or [])]
        return [f"hydra.searchpath=[{','.join(map(quoted, paths))}]"] if paths else []

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return what must stay the same for a study to go on."""
        job = without_hydra(self.cfg)
        plain = runs.plain(job)
        score = str(plain["score"])
        judged_by = {"score": score, "scorer": {score: plain["scorer"].get(score)}}
        judged_by |= of_roles(plain, Role.judging)
        fixed = runs.flat(runs.training_settings(job)) | runs.flat(judged_by)
        return {
            "space": dict(self.space.fingerprint()),
            "objective": dict(self.settings.directions),
            # A path says where something lies on this machine, and nothing of what it is.
            "fixed": {
                k: v
                for k, v in fixed.items()
                if not (str(v).startswith(("/", "~")) or (k in NEUTRAL and v == NEUTRAL[k]))
            },
        }

    def ledger(self) -> Ledger:
        """Open the study; UserError where it was begun as another one."""
        given = self.settings
        ledger = Ledger(
            settings=given,
            url=self.url,
            folder=self.folder,
            make_sampler=lambda number: make_sampler(given.sampler, given.seed, number),
            facts=self.facts(),
            suggest=self.space.suggest,
            forbidden=self.space.forbidden,
            points=self.space.grid(given.seed) if self.is_grid else None,
        )
        # The configuration's own values come first, where the space holds them.
        values, outside = self.space.defaults()
        why = ", ".join(outside) or (self.space.forbidden(values) and "together they are forbidden")
        if given.try_defaults and why:
            print(f"the configuration's own values are not tried: outside the space ({why}).")
        elif given.try_defaults:
            ledger.enqueue(values)
        return ledger

    def _check_space(self) -> None:
        """Compose the job at points that show all choices and both ends of each range."""
        composed = [self.cfg]
        for point in self.space.probes():
            overrides = [*self.fixed, *self.space.overrides(point)]
            try:
                composed.append(self.compose(overrides))
            except (HydraException, OmegaConfBaseException) as error:
                why = " ".join(f"{error} {error.__cause__ or ''}".split())
                where = " ".join(self.space.overrides(point))
                raise UserError(f"the search space does not fit: {why} (at {where})") from error
        searched = self.space.parameters
        for rule in [*self.space.rules, *(p.when for p in searched.values() if p.when)]:
            for key in rule.keys - searched.keys():
                if all(_value(cfg, key, _ABSENT) is _ABSENT for cfg in composed):
                    raise UserError(f"{rule.where}: there is no key {key}.")
        # The easiest images and protocol would win.
        judging = [of_roles(runs.plain(without_hydra(cfg)), Role.judging) for cfg in composed]
        changed = [line for other in judging for line in runs.differences(judging[0], other)]
        if changed:
            raise UserError(
                "the search space changes the images or the protocol that trials are judged by, "
                f"so their numbers could not be compared: {changed[0]}. Leave it out."
            )

    def _folder(self) -> Path:
        """Return <outputs>/studies/<study>, or, in a hydra.sweep.dir that was typed, <study>."""
        hydra = self.config.hydra
        typed = any(str(one).startswith("hydra.sweep.dir=") for one in hydra.overrides.hydra)
        parent = hydra.sweep.dir if typed else Path(at_home(self.cfg.paths.outputs), "studies")
        return Path(str(parent), self.settings.study).resolve()


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a job's configuration as its task sees it."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _check_task(settings: StudyConfig, cfg: DictConfig) -> None:
    """Refuse a study that is not judged by the validation during training."""
    if not str(cfg.task._target_).endswith("train.run"):
        raise UserError("a study tunes trainings: leave task= out, or type task=train.")
    if not cfg.trainer.validate_every:
        raise UserError(
            "trainer.validate_every=0 validates nothing during training: type "
            "trainer.validate_every=1."
        )
    groups = [*(f"val/{name}" for name in cfg.tuning), *(["val"] if cfg.tuning else [])]
    there = ["val/miou", *(f"{group}/{name}" for group in groups for name in flagged("headline"))]
    for name in (*settings.directions, *settings.constraints):
        if name not in there:
            raise UserError(
                f"{name} is not among the metrics of the validation during training, which a study "
                f"is judged by: {', '.join(there)}. For anomalies, type "
                "benchmark@tuning=pasted_validation 'hydra.sweeper.objective=[maximize val/ap]'; a "
                "benchmark of the evaluation would no longer be a test."
            )


def _value(cfg: DictConfig, key: str, default: Any = None) -> Any:
    """Return a key's value, or a group's choice; the default where there is neither."""
    choices = cfg.hydra.runtime.choices
    if key in choices:
        return choices[key]
    return OmegaConf.select(cfg, key, default=default, throw_on_resolution_failure=False)
