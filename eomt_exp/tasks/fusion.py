"""Makes one method of several models: `task=evaluate ensemble=[a,b]`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, open_dict

from eomt_exp.contracts import UserError
from eomt_exp.engine.detector import AnyDetector
from eomt_exp.engine.device import agreed
from eomt_exp.engine.ensemble import (
    SPACES,
    EnsembleDetector,
    NormalScores,
    Space,
    fitted_weights,
    normalised,
)
from eomt_exp.engine.seen_images import SeenImages
from eomt_exp.files import write_text
from eomt_exp.runs import window_size
from eomt_exp.schema import FIT, FusionConfig, ScoreSpace
from eomt_exp.tasks.candidate import Candidate, as_label
from eomt_exp.tasks.image_sets import TUNING, VALIDATION, ImageSets
from eomt_exp.tasks.measure import CELLS, Cells

FILE_NAME = "fusion.json"


class Fitted(NamedTuple):
    """Holds what turns the members' scores into one."""

    weights: list[float]
    normals: list[NormalScores]  # of each member, in the space cdf; else none
    ap: float | None  # of the fused score where weights were fitted; None where they were given


def keep_fused_scores(fusion: FusionConfig, members: Sequence[DictConfig]) -> None:
    """Leave each member the one score that is fused. UserError for members that do not fit."""
    if len(members) < 2:
        raise UserError(
            f"ensemble=[{members[0].checkpoint}] names one model; one alone is checkpoint=<run>, "
            "an ensemble ensemble=[<run>,<run>]."
        )
    normalised(None if fusion.weights == FIT else fusion.weights, len(members))
    names = fusion.scores
    scores = names if isinstance(names, list) else [names] * len(members)
    if len(scores) != len(members):
        raise UserError(
            f"fusion.scores={scores} must be one a member, {len(members)} of them, or one for all."
        )
    for member, score in zip(members, scores, strict=True):
        with open_dict(member):
            member.score = score or member.score
            if member.score not in member.scorer:
                raise UserError(
                    f"{member.checkpoint} has no score {member.score}; it has "
                    f"{', '.join(map(str, member.scorer))}: type fusion.scores=[…,…], one a member."
                )
            member.scorer = {member.score: member.scorer[member.score]}
    protocol, sizes = members[0].protocol, {window_size(one) for one in members}
    if protocol.resize and len(sizes) > 1:
        raise UserError(
            f"protocol={protocol.name} measures at the size of a model's windows, and these "
            f"members have {' and '.join(map(str, sorted(sizes)))}: type protocol=default, or "
            "protocol.image_size=[…,…] for all."
        )


def check_known_classes(fusion: FusionConfig, models: Sequence[DictConfig]) -> None:
    """Raise UserError where normal pixels of data.val, the first's, are not those of another."""
    first, *others = models
    if not (first.evaluator.known_classes or fusion.space is ScoreSpace.cdf):
        return
    for other in others:
        if _classes(other) != _classes(first):
            raise UserError(
                f"{other.checkpoint} (data={other.data.name}) knows other classes than "
                f"{first.checkpoint} (data={first.data.name}), on whose data.val normal scores are "
                "measured: add evaluator.known_classes=false fusion.space=rank."
            )


def _classes(cfg: DictConfig) -> tuple[int, Any]:
    """Return how many known classes there are, and their names or their data set."""
    return cfg.data.num_classes, (cfg.data.val or {}).get("classes") or cfg.data.name


def seen_in_all(members: Sequence[Candidate], images: ImageSets) -> SeenImages:
    """Return what the members have seen, and what their weights are fitted on now."""
    found = SeenImages()
    for member in members:
        found.include(member.seen)
    for name in images.tuning:
        found.add("tuning", images.contents[TUNING + name].images)
    return found


def fuse(
    cells: Cells,
    members: Sequence[Candidate],
    fusion: FusionConfig,
    images: ImageSets,
    seen: SeenImages,
    warnings: dict[str, str],
) -> Candidate:
    """Return the ensemble as one candidate, fitted where it has to be."""
    on = [VALIDATION] if fusion.space is ScoreSpace.cdf else []
    on += [TUNING + name for name in images.tuning]
    facts: dict[str, Any] = {
        "experiment": None,
        "seed": None,
        **{key: [m.facts[key] for m in members] for key in ("weights", "weights_sha256")},
        "precision": cells.measurement.precision,
        "space": fusion.space.value,
        "fused_with": fusion.weights,
        "fitted_on": {name: images.contents[name].sha256 for name in on},
        "members": [{k: v for k, v in m.facts.items() if k != "weights"} for m in members],
        "images_not_on_record": seen.unknown,
    }
    label = as_label("+".join(member.label for member in members))
    fitted = _fitted(cells, label, members, fusion, images, facts)
    facts["fused_with"] = fitted.weights
    score = f"ensemble_{fusion.space.value}"

    def load() -> AnyDetector:
        detectors = [member.load() for member in members]
        return _ensemble(fusion, detectors, fitted.normals, fitted.weights)

    terms = zip(fitted.weights, members, strict=True)
    note = " + ".join(f"{weight:.4g} x {m.label} {m.score}" for weight, m in terms)
    note = f"{score} = {note}"
    if fitted.ap is not None:
        note += (
            f"; weights fitted on {', '.join(images.tuning)}, where AP is {fitted.ap:.3f} (of "
            "pixels at even distances)"
        )
    return Candidate(label, score, "Ensemble", facts, seen, warnings, load, note=f"{note}.")


def _fitted(
    cells: Cells,
    label: str,
    members: Sequence[Candidate],
    fusion: FusionConfig,
    images: ImageSets,
    facts: dict[str, Any],
) -> Fitted:
    """Fit space and weights, or take what an earlier try has kept."""
    path = cells.folder / CELLS / label / FILE_NAME
    needs = cells.of_model(facts) | {"bits": cells.evaluator.bits}
    needs = json.loads(json.dumps(needs))
    saved = agreed(json.loads(path.read_text()) if path.is_file() else {})
    if saved.get("depends_on") == needs:
        normals = [NormalScores(*knots) for knots in saved["normals"]]
        return Fitted(saved["weights"], normals, saved["ap"])
    if not facts["fitted_on"]:
        return Fitted(normalised(fusion.weights, len(members)), [], None)
    found = _fit(cells, members, fusion, images)
    if cells.is_main:
        write_text(path, json.dumps({"depends_on": needs, **found._asdict()}))
    return found


def _fit(
    cells: Cells, members: Sequence[Candidate], fusion: FusionConfig, images: ImageSets
) -> Fitted:
    detectors = [member.load() for member in members]
    normals = []
    if fusion.space is ScoreSpace.cdf:
        assert images.validation is not None
        for member, detector in zip(members, detectors, strict=True):
            bar = f"normal scores of {member.label}"
            _, counts = cells.measurement.known_classes(detector, images.validation, bar, True)
            normals.append(NormalScores.of(counts[member.score]))
    if fusion.weights != FIT:
        return Fitted(normalised(fusion.weights, len(members)), normals, None)
    ensemble = _ensemble(fusion, detectors, normals)
    found = [
        pixels
        for name, one in images.tuning.items()
        for pixels in cells.measurement.sampled_pixels(
            ensemble, one, f"weights of the ensemble on {name}"
        )
    ]
    maps, anomaly = zip(*found, strict=True)
    weights, ap = fitted_weights(
        np.concatenate(maps, axis=1), np.concatenate(anomaly), cells.evaluator.bits
    )
    return Fitted(weights, normals, ap)


def _ensemble(
    fusion: FusionConfig,
    detectors: Sequence[AnyDetector],
    normals: Sequence[NormalScores],
    weights: Sequence[float] | None = None,
) -> EnsembleDetector:
    spaces: list[Space] = [one.share_below for one in normals]
    if not spaces:
        spaces = [SPACES[fusion.space.value]] * len(detectors)
    return EnsembleDetector(detectors, spaces, weights, f"ensemble_{fusion.space.value}")
