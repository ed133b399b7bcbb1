"""Describes every metric once: what it is called, how it is computed, and where it is shown.

Whoever lists metrics filters METRICS, so that a new one is an entry here and nothing else. All are
in metrics.json, CSV, MLflow and a table of the report that opens; `flags` say where else:

headline  the report's first table, figures' legends, and validations
narrow    a terminal too narrow for all
main      the other terminals, Markdown, and the report's tables
paper     LaTeX
seeds     mean and spread over the seeds of an experiment
study     the closing table of a study over seeds
known     tables of known classes
amount    a benchmark's size, which all methods share
interval  with a 95 % interval over images; `pixels` must take many rankings at once
image     also of every single image
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from eomt_exp.evaluator import operating_points as points
from eomt_exp.evaluator import ranking as rank
from eomt_exp.evaluator.ranking import Floats, Ranking

# linspace, as the benchmark has it: a ratio of exactly 0.3 must fall on the same side.
FOUND_FROM = np.linspace(0.25, 0.75, 11)


class Metric(NamedTuple):
    """Describes a metric; one without a function is counted elsewhere in this folder."""

    heading: str
    better: int = 0  # 1: the higher the better, -1: the lower, 0: neither
    meaning: str = ""  # one sentence; "" where the heading says it
    flags: str = ""  # words of the table above
    pixels: Callable[[Ranking], Any] | None = None  # (…, G) -> (…), or (G,) -> ()
    components: Callable[[Floats, Floats], float] | None = None  # sIoU (n,), PPV (m,) of them
    form: str = ""  # how its values are written, as "{:.1e}"; "": as fractions


def mean(values: Floats) -> float:
    """Return the mean; fsum does not round before the end, so the values' order cannot matter."""
    return math.fsum(values.tolist()) / len(values) if len(values) else float("nan")


def mean_f1(siou: Floats, ppv: Floats) -> float:
    """Return the mean over tau = .25, .30, ..., .75 of 2 TP / (2 TP + FN + FP).

    TP and FN are the true components with sIoU >= tau and < tau, FP the predicted ones with
    PPV < tau. 0 with only true or only predicted components, NaN with neither.
    """
    if not len(siou) and not len(ppv):
        return float("nan")
    hits = (siou[:, None] >= FOUND_FROM).sum(axis=0)
    false = (ppv[:, None] < FOUND_FROM).sum(axis=0)
    return float((2 * hits / (hits + len(siou) + false)).mean())  # TP + FN is all true ones


METRICS = {
    "ap": Metric(
        "AP", 1,
        "Average precision over all pixels of a benchmark: over falling thresholds, precision "
        "times the step in recall, summed up without interpolation.",
        "headline narrow main paper seeds study interval image", rank.average_precision,
    ),
    "fpr95": Metric(
        "FPR95", -1,
        "False positive rate where 95 % of the anomalous pixels are found: the dot on the curves.",
        "headline narrow main paper seeds study interval image", rank.fpr_at_recall,
    ),
    "auroc": Metric(
        "AUROC", 1,
        "Chance that an anomalous pixel scores higher than a normal one; a tie counts half.",
        "narrow main seeds study interval image", rank.auroc,
    ),
    "f1_star": Metric(
        "F1*", 1,
        "Highest pixel F1 over all thresholds: chosen knowing the truth.",
        "main study interval", lambda ranking: rank.best_f1(ranking)[0],
    ),
    "siou": Metric(
        "sIoU", 1,
        "IoU of each true component with what was predicted on it, adjusted so that a prediction "
        "that spans several is not punished twice; the mean over components (SegmentMeIfYouCan: "
        "8-connected, of scores above the threshold of F1*).",
        "main paper seeds",
        components=lambda siou, ppv: mean(siou),
    ),
    "ppv": Metric(
        "PPV", 1,
        "Share of each predicted component that is anomalous; the mean over components.",
        "main paper seeds",
        components=lambda siou, ppv: mean(ppv),
    ),
    "component_f1": Metric(
        "F1", 1,
        "F1 of components, the mean over the sIoU thresholds 0.25, 0.30, …, 0.75.",
        "main paper seeds",
        components=mean_f1,
    ),
    "ap_trapezoid": Metric(
        "AP trapezoid", 1,
        "Area under the curve by the trapezoid rule; too high where scores tie.",
        pixels=points.ap_trapezoid,
    ),
    "ap_bound": Metric(
        "AP bound", 0,
        "The AP of the scores before they were binned is no further away than this.",
        form="{:.1e}",
    ),
    "tie_fraction": Metric(
        "ties at 95 %", 0,
        "Share of the anomalous pixels tied at the threshold of FPR95; when large, FPR95 reflects "
        "saturated or rounded scores more than ranking.",
        pixels=points.tie_fraction,
    ),
    "f1_threshold": Metric(
        "threshold of F1*", 0, "The score from which F1* calls a pixel one.", form="{:.4g}"
    ),
    "f1_margin": Metric(
        "F1 margin", 1,
        "Width of the longest range of thresholds, in units of the score, whose pixel F1 is above "
        "0.7: how little the choice of a threshold matters (MDM-F1 of Ackermann et al., BMVC 2023, "
        "for scores between 0 and 1).",
        form="{:.4g}",
    ),
    "fpr95_first": Metric("FPR95 first", -1, "FPR95 at the first threshold with recall of 95 %."),
    "fpr95_interpolated": Metric(
        "FPR95 interpolated", -1,
        "FPR95 on straight lines between thresholds; too low with ties.",
        pixels=lambda ranking: points.fpr_interpolated(ranking, 0.95),
    ),
    "fpr95_nearest": Metric(
        "FPR95 nearest", -1,
        "FPR95 at the threshold whose recall is nearest to 95 %, perhaps less.",
        pixels=lambda ranking: points.fpr_nearest(ranking, 0.95),
    ),
    "tpr_at_fpr05": Metric(
        "TPR at FPR 5 %", 1,
        "Share of the anomaly found at that many alarms.",
        pixels=lambda ranking: points.tpr_at_fpr(ranking, 0.05),
    ),
    "tpr_at_fpr01": Metric(
        "TPR at FPR 1 %", 1,
        "Share of the anomaly found at that many alarms.",
        pixels=lambda ranking: points.tpr_at_fpr(ranking, 0.01),
    ),
    "tnr_at_tpr95": Metric(
        "TNR at TPR 95 %", 1, "1 - FPR95.", pixels=lambda ranking: 1 - rank.fpr_at_recall(ranking)
    ),
    "id_threshold": Metric(
        "threshold in use", 0,
        "The score that a share of evaluator.operating_fpr of the pixels of data.val reaches.",
        form="{:.4g}",
    ),
    "id_tpr": Metric("TPR in use", 1, "Share of the anomaly found at the threshold in use."),
    "id_fpr": Metric("FPR in use", -1, "False positive rate at the threshold in use."),
    "id_f1": Metric("F1 in use", 1, "Pixel F1 at the threshold in use: nothing about it is tuned."),
    "positives": Metric("anomalous pixels", flags="amount", form="{:,.0f}"),
    "negatives": Metric("normal pixels", flags="amount", form="{:,.0f}"),
    "components_true": Metric(
        "true components", components=lambda siou, ppv: len(siou), form="{:,.0f}"
    ),
    "components_predicted": Metric(
        "predicted components", components=lambda siou, ppv: len(ppv), form="{:,.0f}"
    ),
    "miou": Metric(
        "mIoU", 1, "Mean IoU over the known classes, from pixels of all images.", "known study"
    ),
    "macc": Metric("mAcc", 1, "Mean recall over the known classes.", "known"),
    "aacc": Metric("aAcc", 1, "Share of the pixels whose known class is right.", "known"),
    "category_miou": Metric(
        "category mIoU", 1,
        "Mean IoU over categories: a car taken for a truck is right here.",
        "known",
    ),
}  # fmt: skip


def flagged(flag: str) -> tuple[str, ...]:
    """Return the names of the metrics that have this flag, in the order of METRICS."""
    return tuple(name for name, metric in METRICS.items() if flag in metric.flags.split())


def of_pixels(ranking: Ranking | None) -> dict[str, float]:
    """Compute every metric of a ranking of pixels (G,); NaN without one."""
    functions = {name: metric.pixels for name, metric in METRICS.items() if metric.pixels}
    if ranking is None:
        return dict.fromkeys(functions, float("nan"))
    return {name: float(function(ranking)) for name, function in functions.items()}


def of_components(siou: Floats, ppv: Floats) -> dict[str, float]:
    """Compute every metric of sIoU (n,) of true and PPV (m,) of predicted components."""
    functions = {name: metric.components for name, metric in METRICS.items() if metric.components}
    return {name: float(function(siou, ppv)) for name, function in functions.items()}
