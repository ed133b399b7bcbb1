"""Gives losses that weigh classes what they need to know of the training labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eomt_exp.contracts import VOID, ImageSet, Loss
from eomt_exp.data.loader import image_loader
from eomt_exp.losses.mask_classification import MaskClassification


def weigh_classes(losses: Mapping[str, Loss], images: ImageSet, num_workers: int) -> None:
    """Let each loss turn its `class_weights` into numbers; auto reads all labels once."""
    for loss in losses.values():
        if isinstance(loss, MaskClassification) and loss.class_weights is not None:
            is_auto = loss.class_weights == "auto"
            counts = images_of_classes(images, num_workers) if is_auto else []
            loss.weigh_classes(images.class_names, counts)


def images_of_classes(images: ImageSet, num_workers: int) -> list[int]:
    """Return, for each known class, how many images show it."""
    present = [np.unique(item.labels) for item in image_loader(images, num_workers)]
    counts = np.bincount(np.concatenate(present), minlength=VOID + 1)
    return [int(count) for count in counts[: images.num_classes]]
