"""`task=doctor`: whether data sets, as they lie on this machine, can be trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from eomt_exp.build import build
from eomt_exp.cli import UsageError
from eomt_exp.contracts import DataError, ImageSet
from eomt_exp.data.checkup import Role, Survey, num_looks, summary, survey, value_lines
from eomt_exp.data.checkup_finding import Finding
from eomt_exp.data.checkup_verdict import findings, verdict
from eomt_exp.engine.checkup_report import print_checkup, print_verdicts
from eomt_exp.engine.progress import progress
from eomt_exp.tasks.describe import leave_no_folder

BROKEN, NOT_GIVEN = "broken", "not given, not checked"


class _Opened(NamedTuple):
    """A set, and what had to be left out to open it."""

    images: ImageSet
    left_out: list[str]
    why: str
    may_skip: bool


def run(cfg: DictConfig) -> None:
    """Print a report on data.train, data.val and every benchmark; no folder is left behind.

    Ends the program with exit code 1 where a set is broken. Raises UsageError where nothing was
    there to look at.
    """
    try:
        verdicts = _verdicts(cfg)
    finally:
        leave_no_folder(Path(os.path.abspath(cfg.paths.outputs)))
    if all(word == NOT_GIVEN for word in verdicts.values()):
        raise UsageError("Nothing to check: add benchmark=<name> or data=<name> and its paths.…")
    print_verdicts(verdicts.items())
    if BROKEN in verdicts.values():
        raise SystemExit(1)


def _verdicts(cfg: DictConfig) -> dict[str, str]:
    verdicts: dict[str, str] = {}
    surveys: list[Survey] = []
    for key, role, node in _sets(cfg):
        try:
            opened = _open(node, key)
        except DataError as error:
            is_asked_for = role == "benchmark" or not _is_path_missing(node)
            verdicts[key] = BROKEN if is_asked_for else NOT_GIVEN
            if is_asked_for:
                print_checkup(key, BROKEN, (), (), [_closed(error)])
            continue
        seen = _looked_at(opened, key, role)
        found = findings(seen, surveys)
        verdicts[key] = verdict(found)
        print_checkup(key, verdicts[key], summary(seen), value_lines(seen), found)
        surveys.append(seen)
    return verdicts


def _sets(cfg: DictConfig) -> Iterator[tuple[str, Role, Any]]:
    """Training first: what it shares with the others is said of the others."""
    yield "data.train", "train", cfg.data.train
    yield "data.val", "val", cfg.data.val
    for name, node in cfg.benchmark.items():
        yield f"benchmark.{name}", "benchmark", node


def _open(node: Any, key: str) -> _Opened:
    """The set with its broken files in it, so that each can be named.

    Where label maps are missing it cannot be opened like that, and they are left out.
    """
    plain: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    if plain.get("_target_") is None:
        raise UsageError(f"{key} is no data set: it has no _target_.")
    if "on_broken" not in plain:
        return _Opened(build(plain, key), [], "", may_skip=False)
    may_skip = plain["on_broken"] == "skip"
    try:
        return _Opened(build({**plain, "on_broken": "error"}, key), [], "", may_skip)
    except DataError as error:
        try:
            rest = build({**plain, "on_broken": "skip"}, key)
        except DataError:
            raise error from None
        return _Opened(rest, list(rest.skipped), str(error), may_skip)


def _closed(error: DataError) -> Finding:
    return Finding("closed", "error", 0, "It cannot be opened", str(error))


def _looked_at(opened: _Opened, key: str, role: Role) -> Survey:
    with progress(num_looks(opened.images), f"look at {key}") as bar:
        seen = survey(opened.images, key, role, bar.advance)
    return seen._replace(
        left_out=opened.left_out, why_left_out=opened.why, may_skip=opened.may_skip
    )


def _is_path_missing(node: Any) -> bool:
    """Whether a key of the set takes its value from paths.… and that is not set."""
    raw: dict[str, Any] = OmegaConf.to_container(node, resolve=False)  # type: ignore[assignment]
    keys = [k for k, v in raw.items() if isinstance(v, str) and v.startswith("${paths.")]
    return any(not str(node[key] or "").strip() for key in keys)
