"""Says what metrics are called, which way is better, and how their values are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

UNDEFINED = "undefined"
NOT_MEASURED = "\N{EN DASH}"
PIXELS = ("positives", "negatives")  # the same of all methods
COUNTS = (*PIXELS, "components_true", "components_predicted")


class Metric(NamedTuple):
    """Describes a metric as people read it."""

    heading: str
    better: int = 0  # 1: the higher the better, -1: the lower, 0: neither
    meaning: str = ""  # one sentence; "" where we have none


KNOWN = {
    "ap": Metric(
        "AP",
        1,
        "Average precision over all pixels of a benchmark: over falling thresholds, precision "
        "times the step in recall, summed up without interpolation.",
    ),
    "fpr95": Metric(
        "FPR95",
        -1,
        "False positive rate where 95 % of the anomalous pixels are found: the dot on the curves.",
    ),
    "auroc": Metric(
        "AUROC",
        1,
        "Chance that an anomalous pixel scores higher than a normal one; a tie counts half.",
    ),
    "f1_star": Metric("F1*", 1, "Highest pixel F1 over all thresholds: chosen knowing the truth."),
    "siou": Metric(
        "sIoU",
        1,
        "IoU of each true component with what was predicted on it, adjusted so that a prediction "
        "that spans several is not punished twice; the mean over components (SegmentMeIfYouCan).",
    ),
    "ppv": Metric(
        "PPV", 1, "Share of each predicted component that is anomalous; the mean over components."
    ),
    "component_f1": Metric(
        "F1", 1, "F1 of components, the mean over the sIoU thresholds 0.25, 0.30, …, 0.75."
    ),
    "ap_trapezoid": Metric(
        "AP trapezoid", 1, "Area under the curve by the trapezoid rule; too high where scores tie."
    ),
    "ap_bound": Metric(
        "AP bound", 0, "The AP of the scores before they were binned is no further away than this."
    ),
    "tie_fraction": Metric(
        "ties at 95 %",
        0,
        "Share of the anomalous pixels tied at the threshold of FPR95; when large, FPR95 reflects "
        "saturated or rounded scores more than ranking.",
    ),
    "f1_threshold": Metric("threshold of F1*", 0, "The score from which F1* calls a pixel one."),
    "fpr95_first": Metric("FPR95 first", -1, "FPR95 at the first threshold with recall of 95 %."),
    "fpr95_interpolated": Metric(
        "FPR95 interpolated", -1, "FPR95 on straight lines between thresholds; too low with ties."
    ),
    "fpr95_nearest": Metric(
        "FPR95 nearest", -1, "FPR95 at the threshold whose recall is nearest to 95 %, perhaps less."
    ),
    "tpr_at_fpr05": Metric("TPR at FPR 5 %", 1, "Share of the anomaly found at that many alarms."),
    "tpr_at_fpr01": Metric("TPR at FPR 1 %", 1, "Share of the anomaly found at that many alarms."),
    "tnr_at_tpr95": Metric("TNR at TPR 95 %", 1, "1 - FPR95."),
    "id_threshold": Metric(
        "threshold in use", 0, "The score that a set share of in-distribution pixels reaches."
    ),
    "id_tpr": Metric("TPR in use", 1, "Share of the anomaly found at the threshold in use."),
    "id_fpr": Metric("FPR in use", -1, "False positive rate at the threshold in use."),
    "id_f1": Metric("F1 in use", 1, "Pixel F1 at the threshold in use: nothing about it is tuned."),
    "positives": Metric("anomalous pixels"),
    "negatives": Metric("normal pixels"),
    "components_true": Metric("true components"),
    "components_predicted": Metric("predicted components"),
    "miou": Metric("mIoU", 1, "Mean IoU over the known classes, from pixels of all images."),
    "macc": Metric("mAcc", 1, "Mean recall over the known classes."),
    "aacc": Metric("aAcc", 1, "Share of the pixels whose known class is right."),
    "category_miou": Metric(
        "category mIoU", 1, "Mean IoU over categories: a car taken for a truck is right here."
    ),
}
SEMANTIC = ("miou", "macc", "aacc", "category_miou")  # without those of single classes
IOUS = {"iou_": "class", "category_iou_": "category"}  # how keys begin -> what of
MAIN = ("ap", "fpr95", "auroc", "f1_star", "siou", "ppv", "component_f1")
HEADLINE = MAIN[:2]
RECALL = 0.95  # the level of FPR95


def metric(key: str) -> Metric:
    """Return the metric of a key; one that is not listed gets a heading made of the key."""
    if key in KNOWN:
        return KNOWN[key]
    return Metric(key.replace("_", " "))


def each_iou(
    known_classes: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, list[float | None]]]:
    """Return "class" and "category", where measured -> name -> each model's IoU, in their order."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for start, kind in IOUS.items():
        for key in dict.fromkeys(key for values in known_classes.values() for key in values):
            if key.startswith(start):
                name = key.removeprefix(start).replace("_", " ")
                ious = [values.get(key) for values in known_classes.values()]
                found.setdefault(kind, {})[name] = ious
    return found


def ordered(keys: Iterable[str]) -> list[str]:
    """Return each key once: those of KNOWN in its order, then the others as they came."""
    there = dict.fromkeys(keys)
    return [key for key in KNOWN if key in there] + [key for key in there if key not in KNOWN]


def measured(keys: Iterable[str], rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return those of the keys that at least one row has."""
    return [key for key in keys if any(key in row for row in rows)]


def shown(key: str, value: float | None) -> str:
    """Write a value: "0.812", "0.0003", "12,345" of counts, "undefined" of NaN and None."""
    if value is None or math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if key in COUNTS:
        return f"{value:,.0f}"
    if key == "ap_bound":
        return f"{value:.1e}"
    if "threshold" in key:
        return f"{value:.4g}"
    return f"{value:.4f}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def shown_interval(key: str, low: float, high: float) -> str:
    """Write "[0.451, 0.604]", or "[undefined]" where either end is.

    Ends have the digits of the value itself: with fewer, a narrow interval would leave it out.
    """
    if math.isnan(low) or math.isnan(high):
        return f"[{UNDEFINED}]"
    return f"[{shown(key, low)}, {shown(key, high)}]"


def best(key: str, values: Iterable[float | None]) -> float | None:
    """Return the best of several; None for one alone, if none is defined or neither way is better.

    Values are compared as people read them, so that equals are marked together.
    """
    everyone = list(values)
    defined = [value for value in everyone if value is not None and not math.isnan(value)]
    better = metric(key).better
    if len(everyone) < 2 or not defined or not better:
        return None
    return max(defined) if better > 0 else min(defined)


def best_of_each(
    keys: Iterable[str], rows: Sequence[Mapping[str, float | None]]
) -> dict[str, float | None]:
    """Return the best value of each metric over the rows."""
    return {key: best(key, [row.get(key) for row in rows]) for key in keys}


def is_best(key: str, value: float | None, winner: float | None) -> bool:
    """Return whether a value reads the same as the best one."""
    return winner is not None and value is not None and shown(key, value) == shown(key, winner)
