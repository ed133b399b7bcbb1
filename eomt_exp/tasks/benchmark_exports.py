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
    "lost_and_found": "fishyscapes",
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
    for scorer in scorers:
        if "oodis" in kinds and scorer not in thresholds:
            raise UserError(
                f"evaluator.exports=[oodis] has no threshold for {scorer}: too many pixels of "
                "data.val score inf. Take another scorer."
            )
        threshold = thresholds.get(scorer, float("nan"))
        parts = _exports(kinds, run_dir / FOLDER, f"{model}-{scorer}", benchmark, threshold)
        found[scorer] = [one.write for one in parts]
    return found


def check_written(
    kinds: Sequence[str],
    run_dir: Path,
    model: str,
    benchmark: str,
    scorers: Sequence[str],
    names: Sequence[str],
) -> list[str]:
    """Read all files of these images back; a line of what was found for each folder of them."""
    lines = []
    for scorer in scorers:
        for one in _exports(kinds, run_dir / FOLDER, f"{model}-{scorer}", benchmark, 0.0):
            faults = one.faults(names)
            more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
            said = f"refused would be {faults[0]}{more}" if faults else "as its tool reads them"
            lines.append(f"{one.folder}: files of {len(names)} images, {said}.")
    return lines


def _exports(
    kinds: Sequence[str], folder: Path, method: str, benchmark: str, threshold: float
) -> list[SmiycExport | OodisExport]:
    found: list[SmiycExport | OodisExport] = []
    if "smiyc" in kinds:
        found.append(SmiycExport(folder, method, SMIYC_NAMES.get(benchmark, benchmark)))
    if "oodis" in kinds:
        found.append(OodisExport(folder, method, OODIS_PARTS[benchmark], threshold))
    return found
