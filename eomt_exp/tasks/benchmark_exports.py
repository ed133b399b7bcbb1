"""Writes score maps as files that other tools measure: evaluator.exports=[smiyc,oodis]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eomt_exp.contracts import UserError
from eomt_exp.engine.evaluation import Write
from eomt_exp.engine.exports import OodisExport, SmiycExport
from eomt_exp.schema import EvaluatorConfig, ProtocolConfig

FOLDER = "exports"
SMIYC_NAMES = {
    "smiyc_anomaly21": "AnomalyTrack-all",
    "smiyc_obstacle21": "ObstacleTrack-all",
    "lost_and_found": "LostAndFound-test",
}
OODIS_PARTS = {
    "fishyscapes_laf": "fishyscapes",
    "smiyc_anomaly21": "roadanomaly",
    "smiyc_obstacle21": "roadobstacle",
}


def check_exports(
    evaluator: EvaluatorConfig,
    protocol: ProtocolConfig,
    benchmarks: Sequence[str],
    has_validation: bool,
) -> None:
    """Raise UserError before anything long begins for files that could not be written."""
    kinds = evaluator.exports
    if kinds and (protocol.resize or protocol.skip_images_without_anomaly):
        raise UserError(
            "evaluator.exports wants every image at its own size, and "
            f"protocol={protocol.name} squeezes or leaves out some; type protocol=default."
        )
    if "smiyc" in kinds:
        SmiycExport(Path(FOLDER), "probe", "probe")  # is h5py there?
    if "oodis" not in kinds:
        return
    if others := [name for name in benchmarks if name not in OODIS_PARTS]:
        raise UserError(
            f"evaluator.exports=[oodis] has no part for {', '.join(others)}; it takes "
            f"benchmark=[{','.join(OODIS_PARTS)}]."
        )
    if not evaluator.known_classes or not has_validation:
        raise UserError(
            "evaluator.exports=[oodis] cuts instances at the threshold that data.val sets; leave "
            "evaluator.known_classes=true and give the path of its images."
        )


def exports_of(
    kinds: Sequence[str],
    run_dir: Path,
    model: str,
    benchmark: str,
    scorers: Sequence[str],
    thresholds: Mapping[str, float],
) -> dict[str, Sequence[Write]]:
    """Return by scorer what writes the maps of a model and scorer below <run>/exports."""
    found: dict[str, Sequence[Write]] = {}
    folder = run_dir / FOLDER
    for scorer in scorers:
        method, writers = f"{model}-{scorer}", list[Write]()
        if "smiyc" in kinds:
            name = SMIYC_NAMES.get(benchmark, benchmark)
            writers.append(SmiycExport(folder, method, name).write)
        if "oodis" in kinds:
            if scorer not in thresholds:
                raise UserError(
                    f"evaluator.exports=[oodis] has no threshold for {scorer}: too many pixels of "
                    "data.val score inf. Take another scorer."
                )
            part, threshold = OODIS_PARTS[benchmark], thresholds[scorer]
            writers.append(OodisExport(folder, method, part, threshold).write)
        found[scorer] = writers
    return found
