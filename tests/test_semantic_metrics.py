"""The known classes' confusion matrix and its categories (Cityscapes' second mIoU)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from eomt_exp.evaluator.semantic import ConfusionMatrix

CATEGORIES = ("flat", "vehicle", "vehicle", "human")  # road, car, bus, person


def case_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 19, (3, 40, 50)).astype(np.uint8)
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 19, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = 255
    return predicted, labels


def test_classes_and_categories_agree_with_scikit_learn() -> None:
    predicted, labels = case_of(0)
    rng, names = np.random.default_rng(3), np.array(["a", "b", "c", "d", "e"])
    of_class = rng.permutation(np.concatenate([np.arange(5), rng.integers(0, 5, 14)]))
    matrix = ConfusionMatrix(19, categories=names[of_class].tolist())
    for guess, truth in zip(predicted, labels, strict=True):  # accumulated, not averaged
        matrix.update(torch.from_numpy(guess), truth)
    seen = labels != 255
    truth, guess = labels[seen], predicted[seen]
    np.testing.assert_array_equal(matrix.counts, confusion_matrix(truth, guess))
    found = matrix.results()
    per_class = jaccard_score(truth, guess, average=None)
    per_category = jaccard_score(of_class[truth], of_class[guess], average=None)
    assert [found[f"iou/{c}"] for c in range(19)] == pytest.approx(per_class.tolist())
    assert [found[f"category_iou/{n}"] for n in names] == pytest.approx(per_category.tolist())
    assert found["miou"] == pytest.approx(per_class.mean())
    assert found["category_miou"] == pytest.approx(per_category.mean())
    recalls = [(guess[truth == c] == c).mean() for c in range(19)]
    assert found["macc"] == pytest.approx(np.mean(recalls))
    assert found["aacc"] == pytest.approx((truth == guess).mean())


def test_hand_worked_confusion() -> None:
    matrix = ConfusionMatrix(4)  # class 2 is only guessed, class 3 never occurs
    matrix.update(np.array([0, 0, 1, 2, 9]), np.array([0, 1, 1, 1, 255], np.uint8))
    found = matrix.results()
    assert [found[f"iou/{c}"] for c in range(3)] == pytest.approx([1 / 2, 1 / 3, 0])
    assert np.isnan(found["iou/3"])
    assert found["miou"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert found["macc"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["aacc"] == 0.5
    assert not any(key.startswith("category") for key in found)


def test_hand_worked_categories() -> None:
    matrix = ConfusionMatrix(4, categories=CATEGORIES)
    truth = np.array([0, 0, 1, 1, 2, 3, 255], np.uint8)
    matrix.update(np.array([0, 1, 1, 2, 1, 0, 9]), truth)
    found = matrix.results()
    # flat: 1 right, 1 missed (taken for a car), 1 claimed (a person); vehicle: 3 right, 1 claimed.
    assert found["category_iou/flat"] == pytest.approx(1 / 3)
    assert found["category_iou/vehicle"] == pytest.approx(3 / 4)
    assert found["category_iou/human"] == 0
    assert found["category_miou"] == pytest.approx((1 / 3 + 3 / 4 + 0) / 3)
    # A car taken for a bus stays wrong among the classes.
    assert [found[f"iou/{c}"] for c in range(4)] == pytest.approx([1 / 3, 1 / 4, 0, 0])


def test_what_never_occurs_is_undefined_and_left_out_of_the_mean() -> None:
    matrix = ConfusionMatrix(4, categories=CATEGORIES)
    matrix.update(np.array([0, 7]), np.array([255, 255], np.uint8))
    assert all(np.isnan(value) for value in matrix.results().values())
    matrix.update(np.array([0, 1]), np.array([0, 2]))
    found = matrix.results()
    assert np.isnan(found["category_iou/human"])
    assert found["category_miou"] == 1.0


def test_shards_add_up_and_keep_their_categories() -> None:
    whole, total = (ConfusionMatrix(19, categories=["a"] * 9 + ["b"] * 10) for _ in range(2))
    for seed in range(3):
        part = ConfusionMatrix(19)
        part.update(*case_of(seed))
        whole.update(*case_of(seed))
        total.merge(part)
    assert total.results() == whole.results()
    assert "category_iou/b" in total.results()
    with pytest.raises(ValueError, match="3 classes into 19"):
        total.merge(ConfusionMatrix(3))


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([0, 3], [0, 1], r"predicted holds \[3\]"),
        ([0, -1], [0, 1], r"predicted holds \[-1\]"),
        ([0, 1], [0, 7], r"labels holds \[7\]"),
        ([0, 1, 1], [0, 1], r"\(3,\).*\(2,\)"),
        ([0.2, 1.0], [0, 1], "argmax"),
    ],
)
def test_refuses_and_counts_nothing(predicted: list, labels: list, message: str) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(predicted), np.array(labels, np.uint8))
    assert not matrix.counts.any()


def test_refuses_counts_of_classes_and_categories_that_do_not_fit() -> None:
    for num_classes in (0, 256):
        with pytest.raises(ValueError, match="num_classes"):
            ConfusionMatrix(num_classes)
    with pytest.raises(ValueError, match="got 2 for 3"):
        ConfusionMatrix(3, categories=("flat", "human"))
