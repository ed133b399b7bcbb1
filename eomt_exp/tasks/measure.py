"""Measures models on benchmarks and known classes, cell by cell, and keeps each finished cell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Subset

from eomt_exp import runs
from eomt_exp.config_keys import Role, of_roles
from eomt_exp.contracts import ImageSet, LabelledImage
from eomt_exp.data.loader import image_loader
from eomt_exp.data.resized import Resized
from eomt_exp.engine.device import agreed, resolve_precision
from eomt_exp.engine.evaluation import Settings, measure_benchmark, measure_known_classes, shard
from eomt_exp.engine.progress import progress
from eomt_exp.engine.score_store import remove_left_over
from eomt_exp.files import write_text
from eomt_exp.report.cells import FORMAT, Cell, load_cell, save_cell
from eomt_exp.report.results import operating_thresholds, results_of
from eomt_exp.schema import EvaluatorConfig, ProtocolConfig, ScoreType
from eomt_exp.tasks.benchmark_exports import exports_of
from eomt_exp.tasks.candidate import Candidate, KnownClasses
from eomt_exp.tasks.image_sets import VALIDATION, ImageSets
from eomt_exp.tracking.provenance import git_facts

CELLS = "cells"


class Measurement:
    """Measures the cells of one evaluation, under one protocol, in the folder of its run."""

    def __init__(self, cfg: DictConfig, run_dir: Path, accelerator: Any) -> None:
        self.protocol: ProtocolConfig = OmegaConf.to_object(cfg.protocol)  # type: ignore[assignment]
        self.evaluator: EvaluatorConfig = OmegaConf.to_object(cfg.evaluator)  # type: ignore[assignment]
        self.run_dir, self.accelerator = run_dir, accelerator
        cpu = accelerator.device.type == "cpu"
        self.precision = resolve_precision(self.protocol.precision, cpu)
        self.num_workers = cfg.trainer.num_workers
        self.code = git_facts()  # asks git: once, not for every cell
        if accelerator.is_main_process:
            remove_left_over(run_dir)
        accelerator.wait_for_everyone()

    def known_classes(self, model: Candidate, images: ImageSets) -> KnownClasses:
        """Measure them or read the finished cell; empty where evaluator.known_classes is false."""
        if images.validation is None:
            return KnownClasses({}, {})
        if (saved := agreed(self._saved_known(model, images))) is not None:
            return saved
        view = self._view(model, images.validation)
        mine = shard(view, self.accelerator.process_index, self.accelerator.num_processes)
        with self._bar(len(mine), f"known classes of {model.label}") as bar:
            metrics, counts = measure_known_classes(
                model.detector,
                reader(view, mine, self.num_workers)(range(len(mine))),
                view.num_classes,
                images.validation.class_categories,
                self.evaluator.bits,
                self.protocol.scores is ScoreType.float16,
                bar.advance,
            )
        thresholds = operating_thresholds(counts, self.evaluator.operating_fpr)
        found = KnownClasses(_named(metrics, view.class_names), thresholds)
        if self.accelerator.is_main_process:
            needs = self._needs(model, images, VALIDATION)
            path = self._path(model, f"{VALIDATION}.json")
            write_text(path, json.dumps({"depends_on": needs, **vars(found)}))
        return found

    def _saved_known(self, model: Candidate, images: ImageSets) -> KnownClasses | None:
        path = self._path(model, f"{VALIDATION}.json")
        saved = json.loads(path.read_text()) if path.is_file() else {}
        if saved.get("depends_on") != self._needs(model, images, VALIDATION):
            return None
        return KnownClasses(saved["metrics"], saved["thresholds"])

    def cell(self, model: Candidate, images: ImageSets, name: str, known: KnownClasses) -> Cell:
        """Measure one benchmark, or read its finished cell."""
        needs = self._needs(model, images, name) | {"thresholds": known.thresholds}
        path = self._path(model, f"{name}.npz")
        saved = load_cell(path, needs)
        if agreed(saved is not None):
            assert saved is not None
            return saved
        view = self._view(model, images.benchmarks[name])
        mine = shard(view, self.accelerator.process_index, self.accelerator.num_processes)
        settings = self._settings(images.benchmarks[name])
        with self._bar(len(mine), f"{model.label} on {name}") as bar:
            measured = measure_benchmark(
                model.detector,
                reader(view, mine, self.num_workers),
                len(mine),
                settings,
                bar.advance,
                exports_of(
                    self.evaluator.exports,
                    self.run_dir,
                    model.label,
                    name,
                    tuple(model.detector.scorers),
                    known.thresholds,
                ),
            )
        results = results_of(
            measured,
            model.label,
            name,
            fpr95=self.protocol.fpr95,
            thresholds=known.thresholds,
            resamples=self.evaluator.resamples,
        )
        facts = {
            "images": len(images.benchmarks[name]),
            "published_images": images.benchmarks[name].expected_images,
            "doubled_images": len(images.benchmarks[name]) - len(images.contents[name].images),
            "measured": len(images.benchmarks[name]) - len(measured.left_out),
            "without_anomaly_left_out": measured.left_out,
            "broken_left_out": list(images.benchmarks[name].skipped),
            "component_sizes": settings.components,
            "sha256": images.contents[name].sha256,
        }
        cell = Cell(needs, results, measured.images, measured.examples, facts)
        if self.accelerator.is_main_process:
            save_cell(path, cell)
        return cell

    def is_complete(self, model: Candidate, images: ImageSets) -> bool:
        """Return whether all cells of a model are there, so that it need not be loaded."""
        known = KnownClasses({}, {})
        if images.validation is not None:
            saved = self._saved_known(model, images)
            if saved is None:
                return False
            known = saved
        return all(
            load_cell(
                self._path(model, f"{name}.npz"),
                self._needs(model, images, name) | {"thresholds": known.thresholds},
            )
            for name in images.benchmarks
        )

    def _settings(self, images: ImageSet) -> Settings:
        return Settings(
            scratch=self.run_dir,
            scratch_bytes=int(self.evaluator.scratch_gb * 1e9 / self.accelerator.num_processes),
            bits=self.evaluator.bits,
            half=self.protocol.scores is ScoreType.float16,
            skip_empty=self.protocol.skip_images_without_anomaly,
            components=images.component_sizes if self.protocol.components else None,
            num_examples=self.evaluator.figures,
        )

    def _needs(self, model: Candidate, images: ImageSets, name: str) -> dict[str, Any]:
        """Return all that could change a cell, as JSON gives it back."""
        facts = {key: value for key, value in model.facts.items() if key != "weights"}
        benchmark = images.benchmarks.get(name)
        needs = {
            "format": FORMAT,
            "code": self.code,  # another commit may count otherwise
            "model": facts,  # by the hash of its weights, wherever they lie
            "protocol": runs.plain(OmegaConf.structured(self.protocol)),
            **of_roles({"evaluator": asdict(self.evaluator)}, Role.judging, Role.reporting),
            "images": images.contents[name].sha256,
            "component_sizes": benchmark.component_sizes if benchmark else None,
        }
        return dict(json.loads(json.dumps(needs)))

    def _path(self, model: Candidate, file: str) -> Path:
        return self.run_dir / CELLS / model.label / file

    def _view(self, model: Candidate, images: ImageSet) -> ImageSet:
        """Return the images as the protocol shows them."""
        if not self.protocol.resize:
            return images
        height, width = model.cfg.data.image_size
        return Resized(images, (height, width))

    def _bar(self, total: int, text: str) -> Any:
        return progress(total, text, enabled=self.accelerator.is_main_process)


def reader(
    images: ImageSet, mine: Sequence[int], num_workers: int
) -> Callable[[Sequence[int]], Iterator[LabelledImage]]:
    """Read images by positions in this process's share; the next ones are decoded meanwhile."""

    def read(positions: Sequence[int]) -> Iterator[LabelledImage]:
        chosen: Any = Subset(cast(Any, images), [mine[position] for position in positions])
        return image_loader(chosen, num_workers)

    return read


def _named(metrics: dict[str, float], class_names: Sequence[str]) -> dict[str, float]:
    """Rename iou/3 to iou_car and its like: keys of three levels are for scorers."""
    found = {}
    for key, value in metrics.items():
        head, _, rest = key.partition("/")
        name = class_names[int(rest)] if rest.isdecimal() else rest
        found[f"{head}_{name}" if rest else head] = value
    return found
