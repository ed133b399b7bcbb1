"""Watches the queries of a trained mask model: what each predicts, and which lie on anomalies.

After Maskomaly (Ackermann et al., BMVC 2023): some queries stand for one class, others come to lie
on what is of no class. Which ones they are is an accident of the training, so they are found anew
for every model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eomt_exp.contracts import VOID

Array = NDArray[Any]


class QueryStatistics(NamedTuple):
    """Holds what was seen of Q queries with C class outputs."""

    times: Array  # (Q, C) int64, how often the query's likeliest output was this one
    sure: Array  # (Q, C) int64, of these how often its probability was high
    ious: Array  # (Q,) mean over images of the mask's IoU with the anomaly; NaN without an image
    images: Array  # (Q,) int64, images that have a value

    def shares(self) -> Array:
        """Return (Q, C), which share of all predictions of a query were sure and of this class."""
        return self.sure / np.maximum(self.times.sum(axis=1, keepdims=True), 1)

    def specialised(self, num_classes: int, min_share: float) -> dict[int, int]:
        """Return {query: known class} where this share of its predictions are sure and of it."""
        shares = self.shares()[:, :num_classes]
        chosen = np.flatnonzero(shares.max(axis=1) >= min_share)
        return {int(query): int(shares[query].argmax()) for query in chosen}

    def ranking(self) -> list[int]:
        """List all queries by falling mean IoU; those without a value are last."""
        return np.argsort(-self.ious, kind="stable").tolist()  # numpy puts NaN last

    def outlier_queries(self, min_iou: float) -> list[int]:
        """List the queries whose mean IoU with the anomaly is above this, best first."""
        return [query for query in self.ranking() if self.ious[query] > min_iou]


class QueryCounts:
    """Counts prediction by prediction and image by image; `statistics()` says what came of it."""

    def __init__(self, min_confidence: float, mask_threshold: float) -> None:
        """Call a prediction sure from this probability on, and a pixel covered above that one."""
        self.min_confidence, self.mask_threshold = min_confidence, mask_threshold
        self._times: Array | int = 0
        self._sure: Array | int = 0
        self._ious: list[Array] = []

    def add_predictions(self, class_logits: Tensor) -> None:
        """Count one prediction of every query in every window, (B, Q, C)."""
        confidence, predicted = class_logits.softmax(dim=-1).max(dim=-1)
        chosen = torch.nn.functional.one_hot(predicted, class_logits.shape[-1])
        sure = chosen * (confidence >= self.min_confidence)[..., None]
        self._times = self._times + chosen.sum(dim=0).cpu().numpy()
        self._sure = self._sure + sure.sum(dim=0).cpu().numpy()

    def add_image(self, windows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Compare the masks of one image with its anomalies, summed over its windows.

        Of each window mask_logits (Q, h, w) and the truth (h, w): 0 normal, 1 anomaly, VOID. What
        is void counts for neither the mask nor the anomaly. A query without a pixel in either has
        no IoU in this image.
        """
        pixels = torch.zeros(2, 1, dtype=torch.int64)  # in both, in either
        for mask_logits, truth in windows:
            counts = truth != VOID
            covered = (mask_logits.sigmoid() > self.mask_threshold) & counts
            anomaly = truth == 1
            both, either = covered & anomaly, covered | anomaly
            pixels = pixels + torch.stack([both, either]).sum(dim=(2, 3)).cpu()
        self._ious.append((pixels[0].double() / pixels[1]).numpy())  # 0 / 0 is NaN

    def statistics(self) -> QueryStatistics:
        """Return all that was counted, of at least one prediction and one image."""
        ious = np.array(self._ious, dtype=np.float64)  # (images, Q)
        images = np.isfinite(ious).sum(axis=0)
        with np.errstate(invalid="ignore"):
            means = np.nansum(ious, axis=0) / images
        return QueryStatistics(np.asarray(self._times), np.asarray(self._sure), means, images)
