"""Collects what numbers depend on and what they mean; metrics.json keeps both beside them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

import torch
from omegaconf import OmegaConf

from eomt_exp import runs
from eomt_exp.evaluator.metrics import METRICS
from eomt_exp.report.cells import Cell
from eomt_exp.report.leaderboard import Leaderboard
from eomt_exp.tasks.candidate import Candidate
from eomt_exp.tasks.start import TaskSettings
from eomt_exp.tracking.provenance import git_facts

FEW = 10  # images
DEFINITIONS = {
    "intervals": "95 %, percentile bootstrap over images; sIoU, PPV and F1 of components have none",
    "fpr95 of single images": "first threshold, whatever the protocol",
    "seen images": "the same decoded pixels; a resized or newly compressed copy is not noticed",
    "void": 255,
}


def manifest_of(settings: TaskSettings, models: Sequence[Candidate]) -> dict[str, object]:
    """Return what the numbers depend on."""
    facts = {m.label: {name: cell.facts for name, cell in m.cells.items()} for m in models}
    return {
        "experiment": settings.name,
        "seed": settings.seed,
        "content_key": settings.content_key,
        "protocol": runs.plain(OmegaConf.structured(settings.protocol)),
        "evaluator": runs.plain(OmegaConf.structured(settings.evaluator)),
        "definitions": {k: m.meaning for k, m in METRICS.items() if m.meaning} | DEFINITIONS,
        "models": {m.label: {**m.facts, "thresholds": m.known.thresholds} for m in models},
        "benchmarks": facts[next(iter(facts))] if len(facts) == 1 else facts,
        "seen_images": {m.label: dict(m.warnings) for m in models if m.warnings},
        "code": {**git_facts(), "torch": torch.__version__},
    }


def notes_on(models: Sequence[Candidate]) -> list[str]:
    """Return what a reader of the numbers should know and could not see in them."""
    found = [
        f"{model.label}: what {', '.join(unknown)} was trained on is not on record, "
        "so nobody can say whether it has seen these images."
        for model in models
        if (unknown := model.facts["images_not_on_record"])
    ]
    found += [f"{model.label}: {model.note}" for model in models if model.note]
    if any(isnan(model.known.metrics.get("miou", 0)) for model in models):
        found.append("data.val: no pixel has a class, so its metrics are undefined.")
    cells = {name: cell for model in models for name, cell in model.cells.items()}
    return found + [note for name, cell in cells.items() for note in _notes_on(name, cell)]


def _notes_on(name: str, cell: Cell) -> list[str]:
    facts = cell.facts
    images, published, broken = facts["images"], facts["published_images"], facts["broken_left_out"]
    found = []
    if published is not None and images != published:
        found.append(f"{name}: {images} images, where the published set has {published}.")
    if broken:
        found.append(f"{name}: left out as broken: {', '.join(broken)}.")
    if facts["doubled_images"]:
        found.append(f"{name}: {facts['doubled_images']} of its images are there more than once.")
    if facts["measured"] < FEW:
        found.append(f"{name}: {facts['measured']} images are too few for intervals to mean much.")
    pixels = cell.results[0].metrics if cell.results else {}
    found += [
        f"{name}: no {kind} pixel counts, so its metrics are undefined; "
        f"task=doctor benchmark={name} looks into the labels."
        for kind, key in (("anomalous", "positives"), ("normal", "negatives"))
        if pixels.get(key) == 0
    ]
    return found


def saved_manifest(board: Leaderboard) -> dict[str, object]:
    """Return the manifest with what belongs to the numbers and is no metric itself."""
    return {
        "warnings": board.warnings,
        "notes": board.notes,
        **board.manifest,
        "intervals": {key: list(pair) for key, pair in board.flat_intervals().items()},
        "comparisons": [c._asdict() for c in board.comparisons],
        "tnr_tables": {
            f"{r.benchmark}/{r.method}": [row._asdict() for row in r.tnr] for r in board.results
        },
        "over_seeds": [s._asdict() for s in board.over_seeds],
    }
