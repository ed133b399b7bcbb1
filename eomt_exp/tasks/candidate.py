"""A candidate is a model to be measured; it knows its source, its name and what it has seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from eomt_exp import runs
from eomt_exp.contracts import FittedScorer
from eomt_exp.engine.detector import AnyDetector
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.report.cells import Cell
from eomt_exp.report.results import SeededRun
from eomt_exp.weights.weight_files import HUB, sha256


@dataclass
class KnownClasses:
    """Holds what data.val says of a model."""

    metrics: dict[str, float]
    thresholds: dict[str, float]  # by scorer, where evaluator.operating_fpr of its pixels lie above


@dataclass
class Candidate:
    """Holds a model to be measured, which it loads only where a number is missing, and its numbers.

    `warnings` are by image set, of what it has `seen` before.
    """

    label: str  # what tables and folders call it
    score: str  # the scorer that it goes by
    architecture: str
    facts: dict[str, Any]  # what its numbers depend on, for the manifest
    seen: SeenImages
    warnings: Mapping[str, str]
    load: Callable[[], AnyDetector]
    # Experiment and seed, and the tags of its training; None of weights from elsewhere.
    run: SeededRun | None = None
    tags: dict[str, object] | None = None
    note: str = ""  # what a reader of its numbers should know
    known: KnownClasses = field(default_factory=lambda: KnownClasses({}, {}))  # once measured
    cells: dict[str, Cell] = field(default_factory=dict)  # likewise, by benchmark

    @classmethod
    def of(
        cls,
        cfg: DictConfig,
        source: str | Path,
        seen: SeenImages,
        warnings: Mapping[str, str],
        precision: str,
        load: Callable[[], AnyDetector],
        taken: Collection[str] = (),
        fitted: Mapping[str, FittedScorer] = {},  # it is only read
    ) -> Candidate:
        """Name it `<experiment>-<seed>` of its run or as the file, and as none of those `taken`.

        `source` is a run folder, or a file or hub id of weights from elsewhere. `fitted` are those
        of its scorers that were fitted to it, by name.
        """
        weights = sha256(runs.weights_of(source))
        run: SeededRun | None = None
        tags: dict[str, object] | None = None
        if runs.is_run(source):
            trained = runs.load_config(Path(source))
            name = f"{trained.name}-{trained.seed}"
            group = runs.content_key(trained, besides=("seed",))
            run = SeededRun(str(trained.name), group, int(trained.seed), weights)
            tags = {"method": trained.name, "data": trained.data.name, "seed": trained.seed}
            tags |= trained.tracking.tags
        else:
            is_hub = str(source).startswith(HUB)
            name = Path(str(source).partition("@")[0] if is_hub else source).stem
        facts = {
            "experiment": run.experiment if run else None,
            "seed": run.seed if run else None,
            "weights": str(source),
            "weights_sha256": weights,
            "image_size": list(runs.window_size(cfg)),
            "precision": precision,
            "scorers": runs.plain(cfg)["scorer"],
            "score": cfg.score,
            "images_not_on_record": seen.unknown,
        }
        if fitted:
            facts["fitted"] = {name: scorer.fitted for name, scorer in fitted.items()}
        architecture = str(cfg.model._target_).rpartition(".")[2]
        label = as_label(name, taken)
        return cls(label, cfg.score, architecture, facts, seen, warnings, load, run, tags)

    @cached_property
    def detector(self) -> AnyDetector:
        """Load the model when it is first needed."""
        return self.load()

    def let_go(self) -> None:
        """Free the memory of the model."""
        self.__dict__.pop("detector", None)


def as_label(text: str, taken: Collection[str] = ()) -> str:
    """Make a model's name that can be a folder's and is no other model's."""
    label = re.sub(r"[^\w.+=-]", "_", text).strip(".")[:100] or "model"
    names = chain([label], (f"{label}~{number}" for number in count(2)))
    return next(name for name in names if name not in taken)
