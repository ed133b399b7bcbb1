"""Reads the images a model is measured on once, and compares them with those it has seen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from eomt_exp import runs
from eomt_exp.build import build, build_all
from eomt_exp.contracts import ImageSet, UserError
from eomt_exp.data.files.file_set import FileSet
from eomt_exp.data.loader import image_loader
from eomt_exp.data.shared_cache import SharedCache
from eomt_exp.data.wrapped_set import FirstImages
from eomt_exp.engine.device import from_all, is_first_process
from eomt_exp.engine.evaluation import shard
from eomt_exp.engine.progress import progress
from eomt_exp.engine.seen_images import FILE_NAME as SEEN
from eomt_exp.engine.seen_images import (
    Contents,
    SeenImages,
    contents_of,
    digests_of,
    in_words,
    read_digests,
)
from eomt_exp.schema import FIT, ScoreSpace

KEPT_BYTES = 2 << 30  # of memory, in each process, for the images that it will measure on
VALIDATION = "data.val"
TUNING = "tuning."  # and the set's name: a benchmark may be called the same
# What data.val and tuning sets are there for: they may choose, but not teach.
_VALIDATES = ("validation", "selection", "tuning", "mining")


class ImageSets(NamedTuple):
    """Holds what a model is measured on."""

    benchmarks: dict[str, ImageSet]
    validation: ImageSet | None  # for the known classes
    tuning: dict[str, ImageSet]  # anomalies it is validated on while it trains
    contents: dict[str, Contents]  # of benchmarks by name, of "data.val" and "tuning.<name>"
    without_truth: frozenset[str] = frozenset()  # benchmarks whose score maps can only be exported


def build_image_sets(cfg: DictConfig, training: bool = False) -> ImageSets:
    """Build benchmarks, data.val and, for a training or the weights of an ensemble, tuning sets.

    Each file is read once now, so that none can fail after training. UserError for tuning sets
    that the training would never be validated on, or for lack of what an ensemble is fitted on.
    """
    nodes = runs.plain(cfg)
    validates = training and cfg.trainer.validate_every > 0
    if training and cfg.tuning and not validates:
        raise UserError(
            f"benchmark@tuning={next(iter(cfg.tuning))} is for the validation during "
            "training, and trainer.validate_every=0 means none: type trainer.validate_every=1."
        )
    fits_space = bool(cfg.ensemble) and cfg.fusion.space is ScoreSpace.cdf
    fits_weights = bool(cfg.ensemble) and cfg.fusion.weights == FIT
    if fits_space and not cfg.data.val:
        raise UserError(
            "fusion.space=cdf is fitted on data.val, which is null: type fusion.space=rank."
        )
    if fits_weights and not cfg.tuning:
        raise UserError(
            "fusion.weights=fit wants scenes with anomalies that are no benchmark: add "
            "benchmark@tuning=pasted_validation."
        )
    asks_known_classes = cfg.evaluator.known_classes or validates or fits_space
    benchmarks = build_all(cfg.benchmark, "benchmark")
    validation = build(cfg.data.val, VALIDATION) if asks_known_classes and cfg.data.val else None
    tuning = build_all(cfg.tuning, "tuning") if validates or fits_weights else {}
    contents: dict[str, Contents] = {}

    def read(images: ImageSet, name: str, node: Any) -> ImageSet:
        images = limited(images, cfg.data.limit)
        images, contents[name] = read_sets.measured(images, name, node, cfg.trainer.num_workers)
        return images

    read_benchmarks = {
        name: read(one, name, nodes["benchmark"][name]) for name, one in benchmarks.items()
    }
    return ImageSets(
        read_benchmarks,
        read(validation, VALIDATION, nodes["data"]["val"]) if validation is not None else None,
        {name: read(one, TUNING + name, nodes["tuning"][name]) for name, one in tuning.items()},
        contents,
        _without_truth(cfg, read_benchmarks, contents),
    )


def _without_truth(
    cfg: DictConfig, benchmarks: dict[str, ImageSet], contents: dict[str, Contents]
) -> frozenset[str]:
    """Return the benchmarks none of whose pixels is labelled an anomaly; UserError to measure one.

    The truth of test sets is mostly hidden, and their label maps are missing, or dummies.
    """
    found = frozenset(
        name
        for name, images in benchmarks.items()
        if images.reads_files and cfg.data.limit is None and not contents[name].has_anomaly
    )
    if found and not cfg.evaluator.exports:
        first = min(found)
        raise UserError(
            f"benchmark={first}: no pixel is labelled an anomaly, as where the truth is hidden or "
            f"its label maps are dummies, so nothing can be measured. Type benchmark.{first}.split="
            "validation where it has one, evaluator.exports=[smiyc] to write score maps for its "
            f"server, or look with task=doctor benchmark={first}."
        )
    return found


class ReadSets:
    """Keeps the image sets that this process has read, for its later stages and jobs."""

    def __init__(self) -> None:
        self._measured: dict[str, tuple[ImageSet, Contents]] = {}  # by configuration
        self._room = KEPT_BYTES
        self._training: dict[str, tuple[ImageSet, Contents | None]] = {}

    def training(self, cfg: DictConfig) -> tuple[ImageSet, Contents | None]:
        """Return data.train, read once, and its contents; with data.cache it is in shared memory.

        Filled at once because decoding or drawing beside a training step slows both down; kept for
        the next stage of this process, which mostly trains on the same images. With
        evaluator.verify=false and no cache nothing is read, so nothing is known of the contents.
        """
        key = json.dumps([runs.plain(cfg)["data"]["train"], cfg.data.limit], sort_keys=True)
        if key in self._training:
            return self._training[key]
        images = limited(build(cfg.data.train, "data.train"), cfg.data.limit)
        contents: Contents | None = None
        if cfg.data.cache and (cached := SharedCache(images)).is_on:
            images = cached
        if isinstance(images, SharedCache) or cfg.evaluator.verify:
            contents = read_contents(images, cfg.data.name, cfg.trainer.num_workers)
        self._training.clear()  # one set at a time: memory is for this job's images
        if contents is not None:
            self._training[key] = images, contents
        return images, contents

    def forget_files(self) -> None:
        """Forget sets of files to measure on, as files may change between two commands."""
        drawn = {key: kept for key, kept in self._measured.items() if not kept[0].reads_files}
        self._measured, self._room = drawn, KEPT_BYTES

    def measured(
        self, images: ImageSet, name: str, node: Any, num_workers: int
    ) -> tuple[ImageSet, Contents]:
        """Return a set to measure on and its contents, read or drawn once for all.

        Images of files stay in memory while there is room; later ones are read again when measured.
        """
        key = json.dumps([node, len(images)], sort_keys=True)
        if key in self._measured:
            return self._measured[key]
        if not images.reads_files:
            images = SharedCache(images)
        if isinstance(images, FileSet):
            images.room = self._room
        found = read_contents(images, name, num_workers)
        if isinstance(images, FileSet):
            self._room, images.room = images.room, 0
        if images.reads_files and is_first_process():
            first = images.locations(0)[0]
            print(f"{name}: {len(images)} images, the first is {first}", flush=True)
        self._measured[key] = images, found
        return images, found


read_sets = ReadSets()


def limited(images: ImageSet, limit: int | None) -> ImageSet:
    """Return a set's first images, as many as data.limit says; None: as it is."""
    return images if limit is None else FirstImages(images, limit)


def read_contents(images: ImageSet, name: str, num_workers: int) -> Contents:
    """Read a set's contents; DataError for a broken image.

    Each process fills a cache as a whole; of other sets they share the images.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    is_cached = isinstance(images, SharedCache)
    mine = shard(images, 0, 1) if is_cached else shard(images, rank, world)
    with progress(len(mine), f"read {name}", enabled=is_first_process()) as bar:
        if not is_cached:
            return contents_of(from_all(read_digests(images, mine, bar.advance)))
        found = []
        for item in image_loader(images, num_workers):
            found.append(digests_of(item))
            bar.advance()
    return contents_of(found)


def seen_image_warnings(seen: SeenImages, images: ImageSets, allowed: bool) -> dict[str, str]:
    """Return a warning for each set with seen images; UserError where that is not allowed."""
    found: dict[str, str] = {}
    now = SeenImages()  # what this evaluation sets its thresholds by
    if VALIDATION in images.contents:
        now.add("validation", images.contents[VALIDATION].images)
    for name, contents in images.contents.items():
        besides = _VALIDATES if name == VALIDATION or name.startswith(TUNING) else ()
        overlaps = seen.overlap(contents, besides) + now.overlap(contents, besides)
        if overlaps := list({overlap.name: overlap for overlap in overlaps}.values()):
            found[name] = in_words(overlaps, name)
    if found and not allowed:
        raise UserError(
            f"{'; '.join(found.values())}. A result on them would not be one: take other images, "
            "or force it with evaluator.allow_seen_images=true, which adds a warning to it."
        )
    return found


def record(training: Contents | None, images: ImageSets, tuned_on: str | None = None) -> SeenImages:
    """Return what a model that is trained now will have seen.

    Settings that were chosen by what the study at `tuned_on` has seen have seen it too; UserError
    where that is no folder with a record.
    """
    seen = SeenImages()
    if training is None:
        seen.unknown.append("training images, with evaluator.verify=false")
    else:
        seen.add("training", training.images)
    if VALIDATION in images.contents:
        seen.add("validation", images.contents[VALIDATION].images)
    for name in images.tuning:
        seen.add("tuning", images.contents[TUNING + name].images)
    if tuned_on is not None:
        if not (Path(tuned_on) / SEEN).is_file():
            raise UserError(
                f"tuned_on={tuned_on} has no {SEEN}: it is the folder of a study (outputs/studies/"
                "<study>) or of a run; tuned_on=null where nothing was tuned."
            )
        seen.include(SeenImages.load(Path(tuned_on)))
    return seen
