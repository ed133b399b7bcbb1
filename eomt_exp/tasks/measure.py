"""Measures models under a protocol, and keeps each finished cell (model × benchmark) on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import OmegaConf
from torch.utils.data import Subset

from eomt_exp import runs
from eomt_exp.config_keys import Role, of_roles
from eomt_exp.contracts import ImageSet, LabelledImage
from eomt_exp.data.loader import image_loader
from eomt_exp.data.resized import Resized
from eomt_exp.engine import evaluation
from eomt_exp.engine.detector import AnyDetector
from eomt_exp.engine.device import Accelerator, agreed, from_all, resolve_precision
from eomt_exp.engine.ensemble import EnsembleDetector
from eomt_exp.engine.progress import Progress, progress
from eomt_exp.engine.score_store import remove_left_over
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.files import write_text
from eomt_exp.report.cells import FORMAT, Cell, load_cell, save_cell
from eomt_exp.report.results import operating_thresholds, results_of
from eomt_exp.schema import ScoreType
from eomt_exp.tasks.benchmark_exports import check_written, exports_of
from eomt_exp.tasks.candidate import Candidate, KnownClasses
from eomt_exp.tasks.image_sets import VALIDATION, ImageSets
from eomt_exp.tasks.start import TaskSettings
from eomt_exp.tracking.provenance import git_facts

CELLS = "cells"


@dataclass
class Measurement:
    """Measures image sets as the protocol says, in all processes together.

    Without a `label` no progress is shown.
    """

    settings: TaskSettings
    accelerator: Accelerator
    folder: Path  # of the run; score maps lie there between two passes

    @property
    def precision(self) -> str:
        """Return the autocast type of the protocol on this device."""
        cpu = self.accelerator.device.type == "cpu"
        return resolve_precision(self.settings.protocol.precision, cpu)

    def known_classes(
        self, detector: AnyDetector, images: ImageSet, label: str = "", with_counts: bool = False
    ) -> tuple[dict[str, float], dict[str, PixelCounts]]:
        """Measure mIoU and its like; `with_counts` also the scores of all labelled pixels."""
        read, count = self._share(detector, images)
        with self._bar(count, label) as bar:
            return evaluation.measure_known_classes(
                detector,
                read(range(count)),
                images.num_classes,
                images.class_categories,
                self.settings.evaluator.bits if with_counts else None,
                self.settings.protocol.scores is ScoreType.float16,
                bar.advance,
            )

    def benchmark(
        self,
        detector: AnyDetector,
        images: ImageSet,
        label: str = "",
        exports: dict[str, Sequence[evaluation.Write]] | None = None,
    ) -> evaluation.Measured:
        """Count every scorer of the detector on a benchmark.

        Without `exports`, as during a training, only its pixels: no components, no examples.
        """
        protocol, evaluator = self.settings.protocol, self.settings.evaluator
        is_whole = exports is not None
        settings = evaluation.Settings(
            scratch=self.folder,
            scratch_bytes=int(evaluator.scratch_gb * 1e9 / self.accelerator.num_processes),
            bits=evaluator.bits,
            half=protocol.scores is ScoreType.float16,
            tool_curve=protocol.curve == "tool",
            skip_empty=protocol.skip_images_without_anomaly,
            components=images.component_sizes if is_whole and protocol.components else None,
            num_examples=evaluator.figures if is_whole else 0,
        )
        read, count = self._share(detector, images)
        with self._bar(count, label) as bar:
            return evaluation.measure_benchmark(
                detector, read, count, settings, bar.advance, exports
            )

    def sampled_pixels(
        self, ensemble: EnsembleDetector, images: ImageSet, label: str
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the members' maps (M, N) and anomaly (N,) of pixels of each image."""
        read, count = self._share(ensemble, images)
        with self._bar(count, label) as bar:
            return from_all([*ensemble.sampled(read(range(count)), bar.advance)])

    def _share(self, detector: AnyDetector, images: ImageSet) -> tuple[evaluation.Read, int]:
        """Return what reads this process's images, as the protocol shows them, and their number.

        The next ones are decoded meanwhile.
        """
        view = Resized(images, detector.image_size) if self.settings.protocol.resize else images
        mine = evaluation.shard(
            view, self.accelerator.process_index, self.accelerator.num_processes
        )

        def read(positions: Sequence[int]) -> Iterator[LabelledImage]:
            chosen: Any = Subset(cast(Any, view), [mine[position] for position in positions])
            return image_loader(chosen, self.settings.trainer.num_workers)

        return read, len(mine)

    def _bar(self, total: int, label: str) -> Progress:
        return progress(total, label, enabled=bool(label) and self.accelerator.is_main_process)


class Cells:
    """Gives the cells of one evaluation: from the folder of its run, else measured and kept."""

    def __init__(self, measurement: Measurement, images: ImageSets) -> None:
        self.measurement, self.images, self.folder = measurement, images, measurement.folder
        self.is_main = measurement.accelerator.is_main_process
        self.evaluator = measurement.settings.evaluator
        self.protocol = measurement.settings.protocol
        self.code = git_facts()  # asks git: once, not for every cell
        if self.is_main:
            remove_left_over(self.folder)
        measurement.accelerator.wait_for_everyone()

    def known_classes(self, model: Candidate) -> KnownClasses:
        """Return what data.val says of a model; nothing where evaluator.known_classes is false."""
        if (saved := agreed(self._saved_known(model))) is not None:
            return saved
        validation = self.images.validation
        assert validation is not None
        metrics, counts = self.measurement.known_classes(
            model.detector, validation, f"known classes of {model.label}", with_counts=True
        )
        thresholds = operating_thresholds(counts, self.evaluator.operating_fpr)
        found = KnownClasses(_named(metrics, validation.class_names), thresholds)
        if self.is_main:
            saved_as = {"depends_on": self._needs(model, VALIDATION), **vars(found)}
            write_text(self._path(model, f"{VALIDATION}.json"), json.dumps(saved_as))
        return found

    def cell(self, model: Candidate, name: str, known: KnownClasses) -> Cell:
        """Return what one benchmark came to under a model."""
        saved = self._saved_cell(model, name, known)
        if agreed(saved is not None):
            assert saved is not None
            return saved
        images, thresholds = self.images.benchmarks[name], known.thresholds
        kinds, scorers = self.evaluator.exports, tuple(model.detector.scorers)
        measured = self.measurement.benchmark(
            model.detector,
            images,
            f"{model.label} on {name}",
            exports_of(kinds, self.folder, model.label, name, scorers, thresholds),
        )
        if kinds and self.is_main:
            names = measured.images[scorers[0]].names
            for line in check_written(kinds, self.folder, model.label, name, scorers, names):
                print(line, flush=True)
        hidden = name in self.images.without_truth
        results = (
            []
            if hidden
            else results_of(
                measured,
                model.label,
                name,
                fpr95=self.protocol.fpr95,
                thresholds=thresholds,
                resamples=self.evaluator.resamples,
            )
        )
        contents = self.images.contents[name]
        facts = {
            "images": len(images),
            "published_images": images.expected_images,
            "doubled_images": len(images) - len(contents.images),
            "measured": len(images) - len(measured.left_out),
            "without_anomaly_left_out": measured.left_out,
            "broken_left_out": list(images.skipped),
            "component_sizes": images.component_sizes if self.protocol.components else None,
            "sha256": contents.sha256,
        }
        needs = self._needs(model, name, known)
        cell = Cell(needs, results, measured.images, measured.examples, facts)
        if self.is_main:
            save_cell(self._path(model, f"{name}.npz"), cell)
        return cell

    def is_complete(self, model: Candidate) -> bool:
        """Return whether all cells of a model are there, so that it need not be loaded."""
        known = self._saved_known(model)
        return known is not None and all(
            self._saved_cell(model, name, known) for name in self.images.benchmarks
        )

    def _saved_known(self, model: Candidate) -> KnownClasses | None:
        if self.images.validation is None:
            return KnownClasses({}, {})
        path = self._path(model, f"{VALIDATION}.json")
        saved = json.loads(path.read_text()) if path.is_file() else {}
        if saved.get("depends_on") != self._needs(model, VALIDATION):
            return None
        return KnownClasses(saved["metrics"], saved["thresholds"])

    def _saved_cell(self, model: Candidate, name: str, known: KnownClasses) -> Cell | None:
        return load_cell(self._path(model, f"{name}.npz"), self._needs(model, name, known))

    def of_model(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return all of code, model and protocol that could change one of its numbers."""
        return {
            "code": self.code,  # another commit may count otherwise
            # By the hash of its weights, wherever they lie.
            "model": {key: value for key, value in facts.items() if key != "weights"},
            "protocol": runs.plain(OmegaConf.structured(self.protocol)),
        }

    def _needs(
        self, model: Candidate, name: str, known: KnownClasses | None = None
    ) -> dict[str, Any]:
        """Return all that could change a cell, as JSON gives it back."""
        benchmark = self.images.benchmarks.get(name)
        needs = {
            "format": FORMAT,
            **self.of_model(model.facts),
            **of_roles({"evaluator": asdict(self.evaluator)}, Role.judging, Role.reporting),
            "images": self.images.contents[name].sha256,
            "component_sizes": benchmark.component_sizes if benchmark else None,
        }
        found = dict(json.loads(json.dumps(needs)))
        return found if known is None else found | {"thresholds": known.thresholds}

    def _path(self, model: Candidate, file: str) -> Path:
        return self.folder / CELLS / model.label / file


def _named(metrics: dict[str, float], class_names: Sequence[str]) -> dict[str, float]:
    """Rename iou/3 to iou_car and its like: keys of three levels are for scorers."""
    found = {}
    for key, value in metrics.items():
        head, _, rest = key.partition("/")
        name = class_names[int(rest)] if rest.isdecimal() else rest
        found[f"{head}_{name}" if rest else head] = value
    return found
