"""`task=predict` points a trained model at pictures or a video: what is anomalous in them?"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from eomt_exp import runs
from eomt_exp.contracts import DataError, UserError
from eomt_exp.data.files.pictures import PictureFile, find_pictures
from eomt_exp.data.video import VIDEO_SUFFIXES, Frame, Video, VideoWriter, join
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.device import num_processes
from eomt_exp.engine.progress import progress
from eomt_exp.files import write_text
from eomt_exp.report.overlay import HeatScale, overlay
from eomt_exp.report.predictions import Writer, print_regions, write_gallery, write_tables
from eomt_exp.run_folders import working_in
from eomt_exp.schema import PredictConfig, typed
from eomt_exp.tasks.evaluate import as_trained, opened
from eomt_exp.tasks.mined_queries import fitted_scorers, mine_where_asked

SCALE, VIDEO, PARTS = "scale.json", "overlay.mp4", "parts"
AHEAD = 4  # pictures that are decoded, and as many that are written, beside the model's work
FIRST = 8  # pictures that the scale of the colours is taken from
# What decides what is written of a picture.
DECIDE = ("input", "threshold", "score", "scorer", "task", "protocol")
FRAMES_OF_A_PART = 100  # of a video: what an interrupted command does again at most

T = TypeVar("T")
Seen = tuple[T, np.ndarray, np.ndarray]  # what was looked at, its pixels (H, W, 3), score (H, W)


def run(cfg: DictConfig) -> None:
    """Write into Hydra's folder what the model at cfg.checkpoint finds in cfg.input."""
    if num_processes() > 1:
        raise UserError("task=predict is one process; start one for each part of the pictures.")
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    options = typed(cfg.task, PredictConfig, "task")
    if OmegaConf.is_missing(cfg, "input") or not cfg.input:
        raise UserError("task=predict needs input=<image, folder, zip, 'pattern', video, or ->.")
    video = _video(str(cfg.input))
    pictures = [] if video else find_pictures(_paths(str(cfg.input)))
    with working_in(run_dir, Path(cfg.paths.outputs)):
        cfg = as_trained(cfg)
        if cfg.score not in cfg.scorer:
            raise UserError(f"score={cfg.score} is not in scorer=[{','.join(cfg.scorer)}].")
        with open_dict(cfg):
            cfg.scorer = {cfg.score: cfg.scorer[cfg.score]}
        with opened(cfg, run_dir) as (source, load):
            mine_where_asked(cfg, source, load)
            fitted_scorers(cfg, source)
            threshold = _threshold(cfg, source)
            writer = Writer(
                run_dir, threshold, options.smallest, options.maps, options.overlays, options.masks
            )
            work = _Work(load(cfg), writer, options.on_broken == "skip")
            runs.begin(cfg, run_dir, besides=DECIDE)
            if video:
                _predict_video(work, video)
            else:
                _predict_pictures(work, pictures, f"{source}, {cfg.score}")


class _Work:
    """Runs things through the detector, decoding and writing beside it, and times all three."""

    def __init__(self, detector: Detector, writer: Writer, skips: bool) -> None:
        self.detector, self.writer, self.skips = detector, writer, skips
        self.broken: list[str] = []
        self.seconds = {"waiting for pictures": 0.0, "waiting for files": 0.0}
        self._scale_path = writer.folder / SCALE

    def refuse(self, error: DataError) -> None:
        """Raise it, or name it and go on, as task.on_broken says."""
        if not self.skips:
            raise DataError(f"{error} Go on without it: task.on_broken=skip.") from error
        self.broken.append(str(error))
        print(f"left out: {error}", flush=True)

    def scored(self, items: Iterable[T], decode: Callable[[T], np.ndarray]) -> Iterator[Seen[T]]:
        """Yield each item with its pixels and its score, in order."""
        waiting: deque[tuple[T, np.ndarray]] = deque()

        def images() -> Iterator[np.ndarray]:
            with ThreadPoolExecutor(1) as pool:
                for item, future in _ahead(pool, decode, items):
                    try:
                        with self._timed("waiting for pictures"):
                            image = future.result()
                    except DataError as error:
                        self.refuse(error)
                        continue
                    waiting.append((item, image))
                    yield image

        for found in self.detector.stream(images(), known=False):
            item, image = waiting.popleft()
            yield item, image, found.scores[self.detector.score]

    def scale(self, seen: Iterator[Seen[T]]) -> tuple[HeatScale, Iterator[Seen[T]]]:
        """Return the scale of the colours, that of the first pictures, and these again."""
        first = [*zip(range(FIRST), seen, strict=False)] if not self._scale_path.is_file() else []
        again = [one for _, one in first]
        if again:
            scale = HeatScale.of([score for *_, score in again], self.writer.threshold)
            write_text(self._scale_path, json.dumps(scale._asdict()))
        elif self._scale_path.is_file():
            scale = HeatScale(**json.loads(self._scale_path.read_text()))
        else:
            scale = HeatScale(0.0, 1.0)  # of no picture at all
        return scale, chain(again, seen)

    def write_beside(self, jobs: Iterable[Callable[[], object]]) -> None:
        """Do the jobs in order in another thread, so many behind the model at most."""
        with ThreadPoolExecutor(1) as pool:
            left: deque[Future[object]] = deque()
            for job in jobs:
                left.append(pool.submit(job))
                if len(left) > AHEAD:
                    with self._timed("waiting for files"):
                        left.popleft().result()
            with self._timed("waiting for files"):
                for future in left:
                    future.result()

    def print_times(self, count: int, seconds: float) -> None:
        """Say how long it took, and what the model waited for."""
        rest = ", ".join(f"{100 * s / seconds:.1f} % {name}" for name, s in self.seconds.items())
        model = 100 * (1 - sum(self.seconds.values()) / seconds)
        print(f"{count} in {seconds:.1f} s: {model:.1f} % in the model, {rest}.", flush=True)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def _predict_pictures(work: _Work, pictures: Sequence[PictureFile], title: str) -> None:
    writer = work.writer
    left = [one for one in pictures if not writer.is_done(one.name)]
    start = time.perf_counter()
    with progress(len(pictures), "predict", len(pictures) - len(left)) as bar:
        scale, seen = work.scale(work.scored(left, PictureFile.decoded))

        def jobs() -> Iterator[Callable[[], object]]:
            for picture, image, score in seen:
                yield partial(writer.write, picture.name, image, score, scale)
                bar.advance()

        work.write_beside(jobs())
    if left:
        work.print_times(len(left), time.perf_counter() - start)
    found = writer.all_found(one.name for one in pictures)
    write_tables(found, writer.folder)
    if writer.overlays:
        lead = f"{len(found)} pictures. " + _about(writer.threshold, work.broken)
        print(f"page       {write_gallery(found, writer.folder, title, lead)}", flush=True)
    _print_folder(work, found)


def _predict_video(work: _Work, video: Video) -> None:
    """Write the video with heat over it; whole parts of an earlier try are kept."""
    writer, folder = work.writer, work.writer.folder / PARTS
    done = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    first = sum(part["frames"] for part in done)
    found = [one for part in done for one in part["found"]]
    start = time.perf_counter()
    with progress(max(video.length, first), "predict", first) as bar:
        frames = (one for one in video.frames(work.refuse) if one.number >= first)
        scale, seen = work.scale(work.scored(frames, lambda frame: frame.image))
        count = 0

        def jobs() -> Iterator[Callable[[], object]]:
            nonlocal count
            part: _Part | None = None
            for frame, image, score in seen:
                if part is None:
                    part = _Part(folder / f"{frame.number:08d}", video, image.shape[:2])
                yield partial(part.add, writer, frame, score, scale)
                bar.advance()
                count += 1
                if count % FRAMES_OF_A_PART == 0:
                    yield partial(part.close, found)
                    part = None
            if part is not None:
                yield partial(part.close, found)

        work.write_beside(jobs())
    if not found:
        raise DataError(f"{video.path} has no frame that can be decoded.")
    join(sorted(folder.glob("*.nut")), writer.folder / VIDEO)
    if count:
        work.print_times(count, time.perf_counter() - start)
    write_tables(found, writer.folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    print(f"video      {writer.folder / VIDEO}", flush=True)
    _print_folder(work, found)


class _Part:
    """Writes some successive frames; what says so is written last."""

    def __init__(self, path: Path, video: Video, size: tuple[int, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.found = path, list[dict[str, Any]]()
        self.writer = VideoWriter(path.with_suffix(".nut"), video, (size[0], size[1]))

    def add(self, writer: Writer, frame: Frame, score: np.ndarray, scale: HeatScale) -> None:
        mask = None if writer.threshold is None else score >= writer.threshold
        self.writer.write(overlay(frame.image, score, scale, mask), frame.time)
        self.found.append(writer.found(f"{frame.number:06d}", score))

    def close(self, found: list[dict[str, Any]]) -> None:
        self.writer.close()
        saved = {"frames": len(self.found), "found": self.found}
        write_text(self.path.with_suffix(".json"), json.dumps(saved))
        found += self.found


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], np.ndarray], items: Iterable[T]
) -> Iterator[tuple[T, Future[np.ndarray]]]:
    """Yield each item with its work, which began some items before."""
    waiting: deque[tuple[T, Future[np.ndarray]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _video(text: str) -> Video | None:
    path = Path(text).expanduser()
    return Video(path) if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() else None


def _paths(text: str) -> list[str]:
    return [line.strip() for line in sys.stdin if line.strip()] if text == "-" else [text]


def _threshold(cfg: DictConfig, source: str | Path) -> float | None:
    """Return the one typed or the run's; say so where there is none."""
    if cfg.threshold is not None:
        return float(cfg.threshold)
    found = runs.validated(source).thresholds.get(cfg.score)
    if found is None:
        print(
            f"{source} has no threshold for {cfg.score}: no masks, no regions. Type threshold=….",
            flush=True,
        )
    return found


def _about(threshold: float | None, broken: Sequence[str]) -> str:
    found = "No threshold is set." if threshold is None else f"Regions reach {threshold:.4g}."
    return found + (f" {len(broken)} could not be read." if broken else "")


def _print_folder(work: _Work, found: Sequence[dict[str, Any]]) -> None:
    if work.writer.threshold is not None:
        print_regions(found)
    print(f"folder     {work.writer.folder}", flush=True)
    if work.broken:
        print(f"{len(work.broken)} could not be read and were left out.", flush=True)
