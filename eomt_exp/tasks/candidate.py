"""A candidate is a model to be measured; it knows its source, its name and what it has seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from eomt_exp import runs
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.report.results import SeededRun
from eomt_exp.weights.weight_files import HUB, sha256


@dataclass(eq=False)
class Candidate:
    """Holds a model to be measured, and loads it only where a number is missing."""

    label: str  # "eim_oe-0", or the name of a weight file
    score: str  # the scorer that it goes by
    architecture: str  # class of the model
    run: SeededRun | None  # experiment and seed; None of weights from elsewhere, as the next
    tags: dict[str, object] | None  # of its training
    facts: dict[str, Any]  # what its numbers depend on, for the manifest
    seen: SeenImages
    warnings: Mapping[str, str]  # by image set, of what it has seen before
    load: Callable[[], Detector]

    @cached_property
    def detector(self) -> Detector:
        """Load the model when it is first needed."""
        return self.load()

    def let_go(self) -> None:
        """Free the memory of the model."""
        self.__dict__.pop("detector", None)


def candidate(
    cfg: DictConfig,
    source: str | Path,
    seen: SeenImages,
    warnings: Mapping[str, str],
    precision: str,
    load: Callable[[], Detector],
    taken: Collection[str] = (),
) -> Candidate:
    """Describe the model of a run folder, or of a file or hub id of weights from elsewhere.

    It is named `<experiment>-<seed>` of its run or as the file, and as none of those `taken`.
    """
    trained = runs.load_config(Path(source)) if runs.is_run(source) else None
    weights, run, tags = sha256(runs.weights_of(source)), None, None
    if trained is None:
        name = Path(str(source).partition("@")[0] if str(source).startswith(HUB) else source).stem
    else:
        name = f"{trained.name}-{trained.seed}"
        group = runs.content_key(trained, besides=("seed",))
        run = SeededRun(str(trained.name), group, int(trained.seed), weights)
        tags = {"method": trained.name, "data": trained.data.name, "seed": trained.seed}
        tags |= trained.tracking.tags
    facts = {
        "experiment": run.experiment if run else None,
        "seed": run.seed if run else None,
        "weights": str(source),
        "weights_sha256": weights,
        "image_size": list(cfg.data.image_size),
        "precision": precision,
        "scorers": runs.plain(cfg)["scorer"],
        "score": cfg.score,
        "images_not_on_record": seen.unknown,
    }
    architecture = str(cfg.model._target_).rpartition(".")[2]
    label = as_label(name, taken)
    return Candidate(label, cfg.score, architecture, run, tags, facts, seen, warnings, load)


@dataclass
class KnownClasses:
    """Holds what data.val says of a model."""

    metrics: dict[str, float]
    thresholds: dict[str, float]  # by scorer, where evaluator.operating_fpr of its pixels lie above


def as_label(text: str, taken: Collection[str] = ()) -> str:
    """Make a model's name that can be a folder's and is no other model's."""
    label = re.sub(r"[^\w.+=-]", "_", text).strip(".")[:100] or "model"
    number = 1
    while (found := label if number == 1 else f"{label}~{number}") in taken:
        number += 1
    return found
