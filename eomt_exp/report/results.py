"""Makes of counts the numbers people read: metrics by protocol, intervals, slices, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eomt_exp.engine.evaluation import Measured
from eomt_exp.evaluator.bootstrap import intervals, over_seeds, paired
from eomt_exp.evaluator.components import ComponentCounts
from eomt_exp.evaluator.image_counts import ImageCounts
from eomt_exp.evaluator.metrics import flagged
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.report.cells import Cell
from eomt_exp.report.leaderboard import (
    Comparison,
    Histogram,
    OverSeeds,
    Result,
    SizeRow,
    TnrRow,
    image_rows,
)
from eomt_exp.schema import Fpr95

SIZES = (300, 1_000, 3_000, 10_000, 30_000, 100_000)  # pixels: ends of the slices by size
COMPARED = "ap"


class SeededRun(NamedTuple):
    """Says which experiment and seed a model is of."""

    experiment: str
    group: str  # the same for runs that differ in their seed alone
    seed: int
    weights: str  # hash of them


def results_of(
    measured: Measured,
    model: str,
    benchmark: str,
    *,
    fpr95: Fpr95,
    thresholds: Mapping[str, float],
    resamples: int,
) -> list[Result]:
    """Make a Result a scorer; `thresholds` are those set on in-distribution validation, if any."""
    return [
        Result(
            model=model,
            scorer=scorer,
            benchmark=benchmark,
            metrics=metrics_of(counts, measured.components.get(scorer), fpr95)
            | _in_use(counts, thresholds.get(scorer)),
            intervals=_intervals(measured.images[scorer], fpr95, resamples),
            curves=counts.curves(),
            histogram=Histogram(*counts.histogram()),
            images=image_rows(measured.images[scorer]),
            sizes=_size_rows(measured.components.get(scorer)),
            tnr=[row for row in map(TnrRow._make, counts.tnr_table()) if row.tnr == row.tnr],
        )
        for scorer, counts in measured.counts.items()
    ]


def metrics_of(
    counts: PixelCounts, components: ComponentCounts | None, fpr95: Fpr95
) -> dict[str, float]:
    """Return the metrics of a scorer, FPR95 by the protocol's definition."""
    found = counts.results()
    if fpr95 is Fpr95.interpolated:
        chosen = found["fpr95_interpolated"]
        found |= {"fpr95": chosen, "tnr_at_tpr95": 1 - chosen, "fpr95_first": found["fpr95"]}
    return found | (components.results() if components is not None else {})


def compared(cells: Sequence[Cell], resamples: int) -> list[Comparison]:
    """Compare a benchmark's best method, by AP, with each other one on the same images."""
    if not resamples:
        return []
    methods = [
        (result, cell.images[result.scorer])
        for cell in cells
        for result in cell.results
        if result.metrics[COMPARED] == result.metrics[COMPARED]
    ]
    methods.sort(key=lambda entry: -entry[0].metrics[COMPARED])
    found = []
    for result, images in methods[1:]:
        best, best_images = methods[0]
        if not _same_pixels(images, best_images):
            continue  # another size, where the protocol measures at the model's own
        numbers = paired(best_images, images, COMPARED, resamples=resamples)
        found.append(Comparison(result.benchmark, COMPARED, best.method, result.method, *numbers))
    return found


def gathered_over_seeds(
    results: Sequence[Result], runs: Mapping[str, SeededRun]
) -> list[OverSeeds]:
    """Compute mean and spread of experiments that have several seeds; `runs` is by model."""
    groups: dict[tuple[str, str, str, str], dict[str, tuple[int, float]]] = {}
    names: dict[str, str] = {}
    for result in results:
        run = runs.get(result.model)
        if run is None:
            continue
        names[run.group] = run.experiment
        for metric in flagged("seeds"):
            value = result.metrics.get(metric, float("nan"))
            if value == value:
                key = (run.group, result.scorer, result.benchmark, metric)
                groups.setdefault(key, {})[run.weights] = (run.seed, value)  # one model counts once
    found = []
    for (group, scorer, benchmark, metric), entries in groups.items():
        seeds, values = zip(*sorted(entries.values()), strict=True)
        if len(values) > 1:
            mean, std, _ = over_seeds(values)
            found.append(OverSeeds(names[group], scorer, benchmark, metric, mean, std, seeds))
    return found


def operating_thresholds(counts: Mapping[str, PixelCounts], fpr: float) -> dict[str, float]:
    """Return by scorer the threshold that this share of in-distribution pixels reaches."""
    found = {name: part.threshold_at_fpr(fpr) for name, part in counts.items()}
    return {name: threshold for name, threshold in found.items() if threshold == threshold}


def _in_use(counts: PixelCounts, threshold: float | None) -> dict[str, float]:
    """Measure at a threshold that can be set in advance; f1_star's is chosen knowing the truth."""
    if threshold is None:
        return {}
    found = counts.at_threshold(threshold)
    return {"id_threshold": threshold} | {f"id_{k}": found[k] for k in ("tpr", "fpr", "f1")}


def _intervals(images: ImageCounts, fpr95: Fpr95, resamples: int) -> dict[str, tuple[float, float]]:
    if not resamples:
        return {}
    found = intervals(images, resamples=resamples)
    if fpr95 is not Fpr95.first:
        del found["fpr95"]  # that of the other definition
    return {name: pair for name, pair in found.items() if pair[0] == pair[0]}


def _same_pixels(a: ImageCounts, b: ImageCounts) -> bool:
    ours, theirs = a.metrics(), b.metrics()
    return a.names == b.names and all(
        np.array_equal(ours[kind], theirs[kind]) for kind in ("positives", "negatives")
    )


def _size_rows(components: ComponentCounts | None) -> list[SizeRow]:
    rows = [] if components is None else components.by_size(SIZES)
    return [row for row in map(SizeRow._make, rows) if row.components]
