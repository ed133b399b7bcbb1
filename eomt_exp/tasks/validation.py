"""Validates a model during its training: its known classes, and the tuning anomalies.

What a hyper-parameter is chosen by, and a trial pruned by: numbers of images that are not the test.
It draws no random number of the training's, so that it may stop a run but never changes it.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path

from eomt_exp.contracts import ImageSet, UserError
from eomt_exp.engine.detector import Detector
from eomt_exp.evaluator.metrics import flagged
from eomt_exp.report.results import metrics_of
from eomt_exp.tasks.image_sets import ImageSets
from eomt_exp.tasks.measure import Measurement
from eomt_exp.tracking.metrics_file import FILE_NAME as JOURNAL
from eomt_exp.tracking.metrics_file import read_journal
from eomt_exp.weights.weight_files import save_weights

BEST = "best.safetensors"  # of trainer.keep_best, in the run folder


class Validation:
    """Gives `val/miou`, `val/<set>/ap`, `val/<set>/fpr95` of the run's own score, and the means
    `val/ap`, `val/fpr95` over the sets; the same in all processes.

    The weights of the highest `keep_best` so far are kept in the run folder.
    """

    def __init__(
        self,
        measurement: Measurement,
        detector: Detector,
        images: ImageSets,
        keep_best: str | None = None,
    ) -> None:
        self.measurement, self.images, self.keep_best = measurement, images, keep_best
        if keep_best == "val/miou" and images.validation is None:
            raise UserError("trainer.keep_best=val/miou needs data.val, which is null.")
        if keep_best == "val/ap" and not images.tuning:
            raise UserError(
                "trainer.keep_best=val/ap needs anomalies to validate on; add "
                "benchmark@tuning=pasted_validation to the overrides."
            )
        self.detector = copy(detector)  # the same model, and of its scorers the one that counts
        self.detector.scorers = {detector.score: detector.scorers[detector.score]}

    def __call__(self, epoch: int) -> dict[str, float]:
        """Measure the model after an epoch; without validation and tuning sets there is nothing."""
        found: dict[str, float] = {}
        if self.images.validation is not None:
            known, _ = self.measurement.known_classes(self.detector, self.images.validation)
            found["val/miou"] = known["miou"]
        sets = {name: self._anomalies(images) for name, images in self.images.tuning.items()}
        for name, metrics in sets.items():
            found |= {f"val/{name}/{metric}": metrics[metric] for metric in flagged("headline")}
        if sets:
            for metric in flagged("headline"):
                found[f"val/{metric}"] = sum(each[metric] for each in sets.values()) / len(sets)
        if self.keep_best and self.measurement.accelerator.is_main_process:
            earlier = read_journal(self.measurement.folder / JOURNAL)
            values = [line[self.keep_best] for line in earlier if self.keep_best in line]
            if found[self.keep_best] > max(values, default=float("-inf")):
                save_weights(self.detector.model, self.measurement.folder / BEST)
        return found

    def _anomalies(self, images: ImageSet) -> dict[str, float]:
        measured = self.measurement.benchmark(self.detector, images)
        counts = measured.counts[self.detector.score]
        return metrics_of(counts, None, self.measurement.settings.protocol.fpr95)


def last_validation(run_dir: Path) -> dict[str, float]:
    """Return the `val/…` numbers of a run's last step, from metrics.jsonl; {} where none are."""
    lines = read_journal(run_dir / JOURNAL)
    last = max((line["step"] for line in lines), default=0)
    found: dict[str, float] = {}
    for line in lines:
        if line["step"] == last:
            found |= {key: value for key, value in line.items() if key.startswith("val/")}
    return found
