"""Classes grouped into categories: Cityscapes' second mIoU, beside the one of the classes."""

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from eomt_exp.evaluator.semantic import ConfusionMatrix

CATEGORIES = ("flat", "vehicle", "vehicle", "human")  # road, car, bus, person


def test_a_hand_worked_case_of_categories() -> None:
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


def test_classes_and_categories_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    names = np.array(["a", "b", "c", "d", "e"])
    of_class = rng.permutation(np.concatenate([np.arange(5), rng.integers(0, 5, 14)]))
    labels = rng.integers(0, 19, (3, 40, 50)).astype(np.uint8)
    guess = np.where(rng.random(labels.shape) < 0.5, labels, rng.integers(0, 19, labels.shape))
    labels[rng.random(labels.shape) < 0.2] = 255
    matrix = ConfusionMatrix(19, categories=names[of_class].tolist())
    for one in zip(guess, labels, strict=True):
        matrix.update(*one)
    found, seen = matrix.results(), labels != 255
    truth, guess = labels[seen], guess[seen]
    per_class = jaccard_score(truth, guess, average=None)
    per_category = jaccard_score(of_class[truth], of_class[guess], average=None)
    assert [found[f"iou/{c}"] for c in range(19)] == pytest.approx(per_class.tolist())
    assert [found[f"category_iou/{n}"] for n in names] == pytest.approx(per_category.tolist())
    assert found["category_miou"] == pytest.approx(per_category.mean())
    assert found["miou"] == pytest.approx(per_class.mean())


def test_a_category_that_never_occurs_is_undefined_and_left_out_of_the_mean() -> None:
    matrix = ConfusionMatrix(4, categories=CATEGORIES)
    matrix.update(np.array([0, 1]), np.array([0, 2]))
    found = matrix.results()
    assert np.isnan(found["category_iou/human"])
    assert found["category_miou"] == 1.0


def test_without_categories_the_results_are_as_before() -> None:
    plain, grouped = ConfusionMatrix(4), ConfusionMatrix(4, categories=CATEGORIES)
    for matrix in (plain, grouped):
        matrix.update(np.array([0, 1, 1, 3]), np.array([0, 2, 1, 3]))
    assert not any(key.startswith("category") for key in plain.results())
    shared = plain.results().items()
    assert shared <= grouped.results().items()


def test_shards_keep_their_categories() -> None:
    whole = ConfusionMatrix(4, categories=CATEGORIES)
    part = ConfusionMatrix(4, categories=CATEGORIES)
    whole.update(np.array([0, 1]), np.array([0, 0]))
    part.update(np.array([1, 2]), np.array([2, 2]))
    whole.merge(part)
    assert whole.results()["category_iou/flat"] == pytest.approx(1 / 2)
    assert whole.results()["category_iou/vehicle"] == pytest.approx(2 / 3)


def test_a_category_for_each_class_is_asked_for() -> None:
    with pytest.raises(ValueError, match="got 2 for 3"):
        ConfusionMatrix(3, categories=("flat", "human"))
