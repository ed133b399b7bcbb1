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
from eomt_exp.weights.weight_files import sha256


@dataclass(eq=False)
class Candidate:
    """Holds a model to be measured, and loads it only where a number is missing."""

    label: str  # "eim_oe-0", or the name of a weight file
    cfg: DictConfig
    trained: DictConfig | None  # the configuration of its training; None of weights from elsewhere
    source: str | Path  # run folder, file or hub id of its weights
    seen: SeenImages
    warnings: Mapping[str, str]  # by image set, of what it has seen before
    load: Callable[[], Detector]
    precision: str

    @cached_property
    def detector(self) -> Detector:
        """Load the model when it is first needed."""
        return self.load()

    def let_go(self) -> None:
        """Free the memory of the model."""
        self.__dict__.pop("detector", None)

    def as_seeded(self) -> SeededRun:
        """Return the run's experiment and seed; None for weights from elsewhere."""
        assert self.trained is not None
        group = runs.content_key(self.trained, besides=("seed",))
        experiment, seed = str(self.trained.name), int(self.trained.seed)
        return SeededRun(experiment, group, seed, self.facts["weights_sha256"])

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Return what its numbers depend on, for the manifest."""
        return {
            "experiment": self.trained.name if self.trained is not None else None,
            "seed": self.trained.seed if self.trained is not None else None,
            "weights": str(self.source),
            "weights_sha256": sha256(runs.weights_of(self.source)),
            "image_size": list(self.cfg.data.image_size),
            "precision": self.precision,
            "scorers": runs.plain(self.cfg)["scorer"],
            "score": self.cfg.score,
            "images_not_on_record": self.seen.unknown,
        }


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
