"""Turn scores and labels into arrays, and refuse those that cannot be counted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def float32_array(scores: np.ndarray | Tensor) -> NDArray[np.float32]:
    """Return scores (…) rounded to float32."""
    if isinstance(scores, Tensor):
        return scores.detach().cpu().float().numpy()
    with np.errstate(over="ignore"):  # a float64 beyond float32 is inf, which is a score
        return np.asarray(scores, np.float32)


def integer_array(
    labels: np.ndarray | Tensor, name: str = "anomaly", advice: str = "convert it to uint8"
) -> np.ndarray:
    """Return labels (…) as they are; raise ValueError with the advice unless they are integers."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind not in "bui":
        raise ValueError(f"{name} must be integers, got {array.dtype}; {advice}.")
    return array


def counted_pixels(
    scores: NDArray[np.float32], anomaly: np.ndarray, void: int
) -> NDArray[np.bool_]:
    """Return which pixels of (…) are not void.

    Raises ValueError for a label other than 0, 1 and void, and where a pixel that counts has NaN.
    """
    counted = anomaly != void
    if (wrong := counted & (anomaly != 0) & (anomaly != 1)).any():
        examples = np.unique(anomaly[wrong])[:5].tolist()
        allowed = f"0 (normal), 1 (anomaly) and {void} (void)"
        raise ValueError(f"anomaly holds {examples}; allowed are {allowed}: remap the labels.")
    if bad := int(np.count_nonzero(np.isnan(scores) & counted)):
        fix = f"fix the scorer, or label these pixels {void} to leave them out."
        raise ValueError(f"{bad} of {np.count_nonzero(counted)} scores are NaN; {fix}")
    return counted
