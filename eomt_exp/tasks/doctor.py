"""`task=doctor` checks whether data sets, as they are on this machine, can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from eomt_exp.build import build
from eomt_exp.contracts import DataError, UserError
from eomt_exp.data.checkup.finding import Finding
from eomt_exp.data.checkup.survey import Role, Survey, num_examined, summary, survey, value_lines
from eomt_exp.data.checkup.verdict import findings, verdict
from eomt_exp.engine.progress import progress
from eomt_exp.report.checkup_report import print_checkup, print_verdicts
from eomt_exp.tasks.describe import leaving_no_folder
from eomt_exp.tasks.start import tell_without_effect

BROKEN, NOT_GIVEN = "broken", "not given, not checked"


def run(cfg: DictConfig) -> None:
    """Print a report on data.train, data.val and every benchmark; no folder is left behind.

    Ends the program with exit code 1 where a set is broken. Raises UserError where nothing was
    there to look at.
    """
    tell_without_effect(cfg)
    with leaving_no_folder(cfg.paths.outputs):
        verdicts = _verdicts(cfg)
    if all(verdict == NOT_GIVEN for verdict in verdicts.values()):
        raise UserError("Nothing to check: add benchmark=<name> or data=<name> and its paths.…")
    print_verdicts(verdicts.items())
    if BROKEN in verdicts.values():
        raise SystemExit(1)


def _verdicts(cfg: DictConfig) -> dict[str, str]:
    verdicts: dict[str, str] = {}
    surveys: list[Survey] = []
    for key, role, node in _sets(cfg):
        try:
            images = build(_options(node, key), key)
        except DataError as error:
            is_asked_for = _is_asked_for(node, role)
            verdicts[key] = BROKEN if is_asked_for else NOT_GIVEN
            if is_asked_for:
                print_checkup(key, BROKEN, (), (), [("error", [f"It cannot be opened. {error}"])])
            continue
        with progress(num_examined(images), f"examine {key}") as bar:
            seen = survey(images, key, role, bar.advance)
        seen = seen._replace(may_skip=node.get("on_broken") == "skip")
        found = findings(seen, surveys)
        if role != "benchmark" and images.num_classes not in (0, cfg.data.num_classes):
            has, said = images.num_classes, cfg.data.num_classes
            what = f"It has {has} classes, and data.num_classes={said}"
            found.insert(0, Finding("other_classes", "error", 0, what, "Make the two agree."))
        verdicts[key] = verdict(found)
        lines = [(finding.severity, finding.lines) for finding in found]
        print_checkup(key, verdicts[key], summary(seen), value_lines(seen), lines)
        surveys.append(seen)
    return verdicts


def _sets(cfg: DictConfig) -> Iterator[tuple[str, Role, Any]]:
    """Yield the training set first: what it shares with the others is a finding of the others."""
    if cfg.data.train is not None:
        yield "data.train", "train", cfg.data.train
    if cfg.data.val is not None:
        yield "data.val", "val", cfg.data.val
    for name, node in cfg.benchmark.items():
        yield f"benchmark.{name}", "benchmark", node


def _options(node: Any, key: str) -> dict[str, Any]:
    """Return the arguments of a set that keeps its broken files, so that each can be named."""
    plain: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    if plain.get("_target_") is None:
        raise UserError(f"{key} is no data set: it has no _target_.")
    return plain | ({"on_broken": "keep"} if "on_broken" in plain else {})


def _is_asked_for(node: Any, role: Role) -> bool:
    """Return whether its path is given, or it is a typed benchmark, not one of the data's own.

    A path is not given where its root is a paths.… that is not set; others, as of images, may be.
    """
    overrides = HydraConfig.get().overrides.task
    is_typed = any(override.lstrip("+").startswith("benchmark=") for override in overrides)
    raw: dict[str, Any] = OmegaConf.to_container(node, resolve=False)  # type: ignore[assignment]
    is_path = str(raw.get("root")).startswith("${paths.")
    return (role == "benchmark" and is_typed) or not is_path or bool(str(node.root or "").strip())
