"""Validates a model during its training: its known classes, and the tuning anomalies.

What a hyper-parameter is chosen by, and a trial pruned by: numbers of images that are not the test.
It draws no random number of the training's, so that it may stop a run but never changes it.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from eomt_exp.contracts import ImageSet
from eomt_exp.data.resized import Resized
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.evaluation import Settings, measure_benchmark, measure_known_classes, shard
from eomt_exp.evaluator.metrics import flagged
from eomt_exp.schema import Fpr95, ProtocolConfig, ScoreType
from eomt_exp.tasks.image_sets import ImageSets
from eomt_exp.tasks.measure import reader
from eomt_exp.tracking.metrics_file import FILE_NAME as JOURNAL
from eomt_exp.tracking.metrics_file import read_journal


class Validation:
    """Gives `val/miou`, `val/<set>/ap`, `val/<set>/fpr95` of the run's own score, and the means
    `val/ap`, `val/fpr95` over the sets; the same in all processes."""

    def __init__(
        self,
        cfg: DictConfig,
        run_dir: Path,
        detector: Detector,
        images: ImageSets,
        accelerator: Any,
    ) -> None:
        self.protocol: ProtocolConfig = OmegaConf.to_object(cfg.protocol)  # type: ignore[assignment]
        self.detector = copy(detector)  # the same model, and of its scorers the one that counts
        self.detector.scorers = {detector.score: detector.scorers[detector.score]}
        self.images, self.accelerator = images, accelerator
        self.image_size = (int(cfg.data.image_size[0]), int(cfg.data.image_size[1]))
        self.num_workers: int = cfg.trainer.num_workers
        self.settings = Settings(
            scratch=run_dir,
            scratch_bytes=0,  # no map is read twice
            bits=cfg.evaluator.bits,
            half=self.protocol.scores is ScoreType.float16,
            skip_empty=self.protocol.skip_images_without_anomaly,
        )

    def __call__(self, epoch: int) -> dict[str, float]:
        """Measure the model after an epoch; without validation and tuning sets there is nothing."""
        found = {} if self.images.validation is None else {"val/miou": self._miou()}
        sets = {name: self._anomalies(images) for name, images in self.images.tuning.items()}
        for name, metrics in sets.items():
            found |= {f"val/{name}/{metric}": metrics[metric] for metric in flagged("headline")}
        if sets:
            for metric in flagged("headline"):
                found[f"val/{metric}"] = sum(each[metric] for each in sets.values()) / len(sets)
        return found

    def _miou(self) -> float:
        assert self.images.validation is not None
        images = self._view(self.images.validation)
        mine = self._mine(images)
        stream = reader(images, mine, self.num_workers)(range(len(mine)))
        return measure_known_classes(self.detector, stream, images.num_classes)[0]["miou"]

    def _anomalies(self, images: ImageSet) -> dict[str, float]:
        view = self._view(images)
        mine = self._mine(view)
        read = reader(view, mine, self.num_workers)
        measured = measure_benchmark(self.detector, read, len(mine), self.settings)
        found = measured.counts[self.detector.score].results()
        if self.protocol.fpr95 is Fpr95.interpolated:
            found["fpr95"] = found["fpr95_interpolated"]
        return found

    def _view(self, images: ImageSet) -> ImageSet:
        return Resized(images, self.image_size) if self.protocol.resize else images

    def _mine(self, images: ImageSet) -> list[int]:
        return shard(images, self.accelerator.process_index, self.accelerator.num_processes)


def last_validation(run_dir: Path) -> dict[str, float]:
    """Return the `val/…` numbers of a run's last step, from metrics.jsonl; {} where none are."""
    lines = read_journal(run_dir / JOURNAL)
    last = max((line["step"] for line in lines), default=0)
    found: dict[str, float] = {}
    for line in lines:
        if line["step"] == last:
            found |= {key: value for key, value in line.items() if key.startswith("val/")}
    return found
