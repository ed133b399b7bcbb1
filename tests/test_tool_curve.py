"""The curve of SegmentMeIfYouCan's tool against the tool's algorithm, restated line by line."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.metrics import auc

from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.evaluator.tool_curve import ON_THE_CURVE, ToolCounts
from tests.oracle import SCORES, same

Frame = tuple[np.ndarray, np.ndarray]  # scores and labels
SHARED_HIGHEST = ("constant", "six_levels", "two_levels", "float16", "tiny_range_and_zeros")


def binary_confusion_matrix(prob: np.ndarray, is_true: np.ndarray) -> tuple[np.ndarray, ...]:
    """Thresholds of one frame, falling, and its true and false positives between two of them."""
    at_true, at_false = prob[is_true], prob[~is_true]
    low, high = np.min(prob), np.max(prob)
    eps = max(float(high - low) * 1e-2, 1e-2)
    bins = [[float(low) - eps, float(high) + eps]]
    for part in (at_true, at_false):
        if part.size:
            bins.append(np.quantile(part, np.linspace(0, 1, min(768 // 2, part.size))))
    edges = np.unique(np.concatenate(bins))
    tp, fp = (np.histogram(part, bins=edges)[0][::-1] for part in (at_true, at_false))
    return edges[::-1][1:], tp, fp


def tool(frames: list[Frame]) -> dict[str, float]:
    """aggregate_dynamic_bins and curves_from_cmats, the sort made stable."""
    parts = [binary_confusion_matrix(s[y < 255], y[y < 255].astype(bool)) for s, y in frames]
    thresholds, tp, fp = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(thresholds, kind="stable")[::-1]
    thresholds = thresholds[order]
    tp, fp = (np.cumsum(column[order].astype(np.float64)) for column in (tp, fp))
    fn, tn = tp[-1] - tp, fp[-1] - fp
    is_last_of_equals = np.nonzero(thresholds[:-1] != thresholds[1:])[0]
    unique = np.concatenate([[0], is_last_of_equals, [len(tp) - 1]])
    tp, fp, fn, tn, thresholds = (column[unique] for column in (tp, fp, fn, tn, thresholds))
    tp, fp = np.concatenate([[0], tp]), np.concatenate([[0], fp])
    fn, tn = np.concatenate([[fn[-1] + tp[-1]], fn]), np.concatenate([[tn[-1] + fp[-1]], tn])
    thresholds = np.concatenate([[np.inf], thresholds])
    precision = np.ones(len(tp))
    precision[tp + fp > 0] = (tp / (tp + fp + 1e-300))[tp + fp > 0]
    recall, fpr = tp / (tp + fn), fp / (fp + tn)
    f1 = 2 * tp / (2 * tp + fp + fn)
    return {
        "ap": np.sum(np.diff(recall) * precision[1:]),
        "trapezoid": auc(recall, precision),
        "auroc": auc(fpr, recall),
        "fpr95": fpr[np.searchsorted(recall, 0.95)],
        "tnr_at_tpr95": 1 - fpr[np.searchsorted(recall, 0.95)],
        "f1_star": np.max(f1),
        "f1_threshold": float(np.float16(thresholds[np.argmax(f1)])),
    }


def some_frames(name: str, sizes: tuple[int, ...] = (9000, 300, 3000, 700, 40)) -> list[Frame]:
    """Frames of other sizes and shares of anomaly; the last but one has none, a tenth is void."""
    rng = np.random.default_rng(5)
    frames = []
    for index, size in enumerate(sizes):
        labels = (rng.random(size) < (0.02, 0.3)[index % 2]).astype(np.uint8)
        labels[:] *= index != len(sizes) - 2
        with np.errstate(over="ignore"):
            scores = SCORES[name](rng, labels).astype(np.float16)
        labels[rng.random(size) < 0.1] = 255
        frames.append((scores, labels))
    return frames


def counted(frames: list[Frame]) -> ToolCounts:
    counts = ToolCounts(bits=17)
    for scores, labels in frames:
        counts.update(scores, labels)
    return counts


def test_the_restatement_prints_what_the_tool_printed() -> None:
    # Cells 45 and 46 of dev_pr_curve.ipynb in its repository, where 128 images are alike.
    frame = (np.float32([0, 0, 0.9, 0.1, 1, 1]), np.array([0, 0, 0, 1, 1, 1]))
    found = tool([frame] * 128)
    assert (found["ap"], found["trapezoid"]) == (0.9166666666666666, 0.9027777777777777)


@pytest.mark.parametrize(
    "name",
    ["uniform", "gaussian", "inverted", "perfect", "constant", "rba", "six_levels", "two_levels",
     "saturated_confidence", "float16", "hard_tail", "tiny_range_and_zeros"],
)  # fmt: skip
def test_every_number_is_the_tools(name: str) -> None:
    # Where images share the highest score, the tool's numbers depend on which of them comes first,
    # and its pool of processes takes them as they come.
    frames = some_frames(name)
    found, counts = counted(frames).results(), counted(frames)
    answers = [tool(frames[index:] + frames[:index]) for index in range(len(frames))]
    same_answers = [
        all(found[metric] == pytest.approx(one[metric], abs=2e-15) for metric in ON_THE_CURVE)
        and found["f1_threshold"] == one["f1_threshold"]
        for one in answers
    ]
    assert any(same_answers)
    assert all(same_answers) or name in SHARED_HIGHEST
    assert counts.f1_threshold() == found["f1_threshold"]


def test_only_what_is_on_the_curve_differs_from_the_exact_numbers() -> None:
    frames, exact = some_frames("gaussian"), PixelCounts(bits=17)
    for scores, labels in frames:
        exact.update(scores, labels)
    found, plain = counted(frames).results(), exact.results()
    assert {name for name in plain if found[name] != plain[name]} == {
        *ON_THE_CURVE, "f1_threshold", "ap_bound",
    }  # fmt: skip
    assert plain["ap_bound"] == 0
    assert found["ap_bound"] == abs(found["ap"] - plain["ap"]) < 0.02


def test_shards_in_any_order_equal_one_run_and_travel_between_processes() -> None:
    frames = some_frames("six_levels")
    whole = counted(frames)
    parts = [pickle.loads(pickle.dumps(counted([frame]))) for frame in frames]
    for first in range(len(frames)):
        total = ToolCounts(bits=17)
        for part in parts[first:] + parts[:first]:
            total.merge(part)
        assert same(total, whole)


def test_without_a_positive_or_a_pixel_there_is_no_curve() -> None:
    counts = counted([(np.float16([0.5, 0.25]), np.uint8([0, 255])), (np.zeros(0), np.uint8([]))])
    assert np.isnan([counts.f1_threshold(), counts.results()["ap"]]).all()


@pytest.mark.parametrize("score", [np.inf, -np.inf, 1e6, 0.1])
def test_scores_that_the_tool_cannot_bin_are_refused_and_not_counted(score: float) -> None:
    counts = counted([])
    with pytest.raises(ValueError, match=r"finite.*half precision.*protocol\.curve=exact"):
        counts.update(np.float32([0.5, score]), np.uint8([0, 1]))
    assert counts.results()["negatives"] == 0
