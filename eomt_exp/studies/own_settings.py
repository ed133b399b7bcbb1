"""What a file of sweeps/ sets beside its search space, so that the winner's file can say it too."""

from __future__ import annotations

from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig

from eomt_exp import runs
from eomt_exp.studies.plan import Plan, without_hydra

# Budget and looks are the study's own: the winner trains as its experiment does.
_OF_THE_STUDY = (
    *("name", "tuned_on", "resume", "tracking", "paths", "tuning", "benchmark", "evaluator"),
    *("trainer.epochs", "trainer.images_per_epoch", "trainer.validate_every"),
)
_GROUPS_OF_THE_STUDY = ("hydra", "experiment", "sweep", "benchmark", "tracking", "paths", "debug")


def own_settings(plan: Plan) -> tuple[list[str], dict[str, Any]]:
    """(group choices as words, {dotted key: value}) in which a study's configuration differs from
    its experiment under the same typed words, its budget and its looks left out."""
    typed = [w for w in plan.fixed if not w.lstrip("+").startswith(("sweep=", "experiment="))]
    name = plan.cfg.hydra.runtime.choices.get("experiment")
    base = [*([f"+experiment={name}"] if name else []), *typed]
    before, now = _compose(plan, base).hydra.runtime.choices, plan.cfg.hydra.runtime.choices
    chosen = [
        f"{group}={option}"
        for group, option in now.items()
        if option != before.get(group) and not _is_under(group, _GROUPS_OF_THE_STUDY)
    ]
    old = runs.flat(runs.plain(without_hydra(_compose(plan, [*base, *chosen]))))
    new = runs.flat(runs.plain(without_hydra(plan.cfg)))
    return chosen, {
        key: value
        for key, value in new.items()
        if not _is_under(key, _OF_THE_STUDY) and (key not in old or old[key] != value)
    }


def _compose(plan: Plan, words: list[str]) -> DictConfig:
    config = plan.config.hydra.job.config_name
    return plan.loader.load_configuration(config, words, run_mode=RunMode.RUN)


def _is_under(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(tuple(place + s for s in "./@")) for place in places)
