"""The winner of a study as an experiment file: what was found runs again by its name.

The file says as YAML what the trial's words said on the command line, on top of the same
experiment, so that it can be read, compared and changed like any experiment of conf/.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from eomt_exp.files import write_text

FOLDER = "best"  # in the study's folder; what --config-dir is given
_SEARCH_PATH = "hydra.searchpath"  # where the experiment itself may be found
# Words that are about this machine, this study or this run's name, not about what the run does.
_LEFT_OUT = ("hydra", "sweep", "tracking", "resume", "paths", "name", "tuned_on")


def write_best(
    folder: str | Path,
    study_name: str,
    experiment: str | None,
    words: Sequence[str],
    values: Mapping[str, float],
    space_words: Sequence[str],
    group_of: Callable[[str], bool],
    *,
    settings: Mapping[str, Any] | None = None,
    number: int,
    on_front: bool = False,
) -> Path:
    """Write `<folder>/best/experiment/<study>_best.yaml` and return its path.

    `words` are the overrides typed for all trials, `space_words` those of trial `number`, which
    win; `values` are its objectives; `settings`, {dotted key: value}, come before all words.
    `group_of(key)` says whether a key is a config group. With
    `on_front` the trial is one of a Pareto front, and its file is `<study>_pareto_<number>.yaml`.
    """
    ending = f"pareto_{number:03d}" if on_front else "best"
    name = f"{_file_name(study_name)}_{ending}"
    path = Path(folder) / FOLDER / "experiment" / f"{name}.yaml"
    overrides = _parsed([*words, *space_words])
    chosen = [one for one in overrides if _is_choice(one, group_of)]
    content = {
        "defaults": [*_experiments(experiment, chosen), *_choices(chosen)],
        "name": name,
        "tuned_on": str(folder),
        **_tree((one for one in overrides if not _is_choice(one, group_of)), settings or {}),
    }
    reached = ", ".join(f"{key} {value!r}" for key, value in values.items())
    lines = [
        f"Trial {number} of study {study_name}: {reached}.",
        f"Written {datetime.now():%Y-%m-%d %H:%M} by the study; the next try of it writes it anew.",
        f"Run:  {command_of(path, [*words, *space_words])}",
    ]
    head = "".join(f"# {line}\n" for line in lines)
    # OmegaConf's own writer quotes the strings that its reader would take for numbers ("1e-5").
    write_text(path, f"# @package _global_\n{head}{OmegaConf.to_yaml(OmegaConf.create(content))}")
    return path


def command_of(path: str | Path, words: Sequence[str] = ()) -> str:
    """The line that runs an experiment file of `write_best`.

    Of `words`, the trial's overrides, it repeats what a file cannot say: deletions (`~key`),
    places in a list (`data.image_size.0=64`) and hydra.searchpath.
    """
    path = Path(path)
    left = [one.input_line or "" for one in _parsed(words) if not _can_be_written(one)]
    # The flag comes first, so that more overrides can be typed behind.
    parts = ["--config-dir", str(path.parent.parent), f"+experiment={path.stem}", *left]
    return f"python -m eomt_exp {shlex.join(parts)}"


def keep_only(folder: str | Path, study_name: str, paths: Collection[Path]) -> None:
    """Remove this study's files of trials that have left the Pareto front since."""
    stem = re.escape(_file_name(study_name))
    for path in (Path(folder) / FOLDER / "experiment").glob("*.yaml"):
        if re.fullmatch(rf"{stem}_(best|pareto_\d+)", path.stem) and path not in paths:
            path.unlink()


def _parsed(words: Iterable[str]) -> list[Override]:
    """The overrides that make the run what it is; of the same key the last one."""
    found: dict[str, Override] = {}
    for one in OverridesParser.create().parse_overrides(list(words)):
        room = re.split(r"[./@]", one.key_or_group)[0]
        is_left_out = room in _LEFT_OUT and one.key_or_group != _SEARCH_PATH
        if is_left_out or one.is_sweep_override():
            continue
        key = one.get_key_element().lstrip("+")
        # A dictionary adds to what is there instead of replacing it, so both are kept.
        found.pop(key, None) if not isinstance(one.value(), dict) else None
        found[f"{key}#{len(found)}" if key in found else key] = one
    return list(found.values())


def _can_be_written(one: Override) -> bool:
    in_list = any(part.isdigit() for part in one.key_or_group.split("."))
    return not one.is_delete() and not in_list and one.key_or_group != _SEARCH_PATH


def _is_choice(one: Override, group_of: Callable[[str], bool]) -> bool:
    """Whether a word chooses options of a group, as Hydra sees it: not when it gives a mapping."""
    return isinstance(one.value(), (str, list)) and group_of(one.key_or_group)


def _experiments(experiment: str | None, chosen: Sequence[Override]) -> list[str]:
    """Names beside this file in group experiment; one that a trial chose wins."""
    named = [one.value() for one in chosen if one.key_or_group == "experiment"]
    found = named[-1] if named else experiment
    if found is None:
        return []
    return [str(one) for one in found] if isinstance(found, list) else [str(found)]


def _choices(chosen: Sequence[Override]) -> list[dict[str, Any]]:
    """{"override /loss": [a, b]} for a group of the primary defaults, {"/group": a} for +group."""
    entries = []
    for one in chosen:
        if one.key_or_group == "experiment" or not _can_be_written(one):
            continue
        package = f"@{one.package}" if one.package is not None else ""
        how = "" if one.is_add() else "override "
        entries.append({f"{how}/{one.key_or_group}{package}": one.value()})
    return entries


def _tree(overrides: Iterable[Override], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, the settings first and then the words in their order."""
    tree: DictConfig = OmegaConf.create({})
    for key, value in settings.items():
        OmegaConf.update(tree, key, value, force_add=True)
    for one in overrides:
        if _can_be_written(one):
            OmegaConf.update(tree, one.key_or_group, one.value(), merge=True, force_add=True)
    plain = OmegaConf.to_container(tree, resolve=False)
    return {str(key): value for key, value in plain.items()}  # type: ignore[union-attr]


def _file_name(study_name: str) -> str:
    return re.sub(r"[^\w-]", "_", study_name)
