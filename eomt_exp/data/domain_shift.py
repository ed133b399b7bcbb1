"""Shows a scene in another domain: other light, lens and sensor, or other weather.

Anomaly scores also rise where only the conditions have changed. A copy that differs in these alone,
trained beside its scene, tells a loss so (CG-Aug, Gao et al., NeurIPS 2024, who generate theirs).
Rules such as these help with some data sets and harm with others (their tables on ACDC and MUAD).
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import albumentations as A
import numpy as np

from eomt_exp.contracts import LabelledImage

Kind = Literal["photometric", "weather"]


def shifted(image: LabelledImage, kind: Kind, rng: np.random.Generator) -> LabelledImage:
    """Apply one change of its kind, far beyond those of the augmentation, to (H, W, 3) uint8 RGB.

    Nothing is moved: labels and anomaly are the same arrays as before.
    """
    changes = _changes(kind, image.image.shape[0])
    change = changes[rng.integers(len(changes))]
    change.set_random_seed(int(rng.integers(2**31)))
    return image._replace(image=change(image=image.image)["image"])


@cache
def _changes(kind: Kind, height: int) -> tuple[A.ImageOnlyTransform, ...]:
    """List what may happen to images of a height; flares and blurs are in pixels."""
    if kind == "photometric":
        return (
            A.ColorJitter((0.4, 1.6), (0.4, 1.6), (0.2, 1.8), (-0.1, 0.1), p=1),
            A.RandomGamma((50, 200), p=1),  # percent: dusk and glare
            A.GaussianBlur(sigma_limit=(0.8 + 0.003 * height, 1.2 + 0.01 * height), p=1),
            A.GaussNoise(std_range=(0.06, 0.15), p=1),
        )
    return (
        A.RandomFog(fog_coef_range=(0.3, 0.8), p=1),
        A.RandomRain(p=1),
        A.RandomSnow(snow_point_range=(0.1, 0.4), p=1),  # its "texture" overflows in bright pixels
        A.RandomSunFlare(src_radius=max(height // 2, 2), p=1),
    )
