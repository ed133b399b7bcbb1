"""Writes the winner of a study as an experiment file: what was found runs again by its name.

The file holds what the trial's configuration has otherwise than its experiment, as YAML on top of
the same experiment, so that it can be read, compared and changed like any experiment of conf/.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from eomt_exp import runs
from eomt_exp.config_keys import OF_A_STUDY, Role, is_under, role_of
from eomt_exp.files import write_text
from eomt_exp.studies.plan import Plan, without_hydra

FOLDER = "best"  # in the study's folder; what --config-dir is given
_MERGED = ("loss", "scorer")  # groups of which several options are chosen


def write_winner(
    plan: Plan, params: Mapping[str, Any], number: int, values: Mapping[str, float]
) -> tuple[Path, str]:
    """Write the experiment file of trial `number`; return its path and the command that runs it.

    It is `<study>_best.yaml`, or `<study>_pareto_<number>.yaml` where there are several `values`.
    """
    typed = {one.lstrip("+~").partition("=")[0] for one in plan.fixed}
    job = plan.compose([*plan.fixed, *plan.space.overrides(params)])
    experiment = job.hydra.runtime.choices.get("experiment")
    begin = [f"+experiment={experiment}"] if experiment else []
    base = _compose(plan, begin)
    groups = _groups(job, base, typed)  # group, "+" where the defaults list lacks it, options
    again = _compose(plan, [*begin, *(f"{sign}{g}={o}" for g, (sign, o) in groups.items())])
    wanted, found = _flat(job), _flat(again)
    settings: DictConfig = OmegaConf.create({})
    for key, value in wanted.items():
        if (key not in found or found[key] != value) and not _is_left_out(key, typed):
            OmegaConf.update(settings, key, value, force_add=True)

    ending = "best" if len(values) == 1 else f"pareto_{number:03d}"
    stem = re.sub(r"[^\w-]", "_", plan.settings.study)  # an option in Hydra's grammar
    path = plan.folder / FOLDER / "experiment" / f"{stem}_{ending}.yaml"
    parts = ["--config-dir", str(path.parent.parent), f"+experiment={path.stem}"]
    gone = {one: f"{one[1:].partition('=')[0]}." for one in plan.fixed if one.startswith("~")}
    # No file can delete, unless it is an option of a group that it chooses itself.
    parts += [one for one, key in gone.items() if any(f"{k}.".startswith(key) for k in found)]
    command = f"python -m eomt_exp {shlex.join([*parts, *plan.search_path])}"
    chosen = [{f"{'' if sign else 'override '}/{g}": o} for g, (sign, o) in groups.items()]
    defaults = [*([experiment] if experiment else []), *chosen]
    content = {"defaults": defaults, "name": path.stem, "tuned_on": str(plan.folder), **settings}
    reached = ", ".join(f"{key} {value!r}" for key, value in values.items())
    head = (
        f"# @package _global_\n# Trial {number} of study {plan.settings.study}: {reached}.\n"
        f"# Written {datetime.now():%Y-%m-%d %H:%M} by the study, which writes it anew.\n"
        f"# Run:  {command}\n"
    )
    # OmegaConf's own writer quotes the strings that its reader would take for numbers ("1e-5").
    write_text(path, head + OmegaConf.to_yaml(OmegaConf.create(content)))
    return path, command


def _groups(
    job: DictConfig, base: DictConfig, typed: Collection[str]
) -> dict[str, tuple[str, Any]]:
    """Return the options of groups that the job chose otherwise than its experiment."""
    now, before = job.hydra.runtime.choices, base.hydra.runtime.choices
    changed = [g for g in now if now[g] != before.get(g) and not _is_left_out(g, typed)]
    found = {group: ("" if group in before else "+", now[group]) for group in changed}
    return found | {g: ("", list(job[g])) for g in _MERGED if list(job[g]) != list(base[g])}


def _compose(plan: Plan, overrides: Sequence[str]) -> DictConfig:
    config = plan.config.hydra.job.config_name
    given = [*overrides, *plan.search_path]
    return plan.loader.load_configuration(config, given, run_mode=RunMode.RUN)


def _flat(cfg: DictConfig) -> dict[str, Any]:
    """Return values by dotted keys, with their interpolations."""
    plain: Any = OmegaConf.to_container(without_hydra(cfg), resolve=False, enum_to_str=True)
    return runs.flat(plain)


def _is_left_out(key: str, typed: Collection[str]) -> bool:
    if role_of(key) in (Role.place, Role.naming):  # what the run is called, not what it does
        return True
    return is_under(key, OF_A_STUDY) and not is_under(key, typed)
