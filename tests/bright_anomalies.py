"""A network one can see through, and images for it: what is bright is the anomaly."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import nn

from eomt_exp.contracts import VOID, ImageSet, LabelledImage, MaskOutput, Model, PixelOutput


class BrightnessNet(Model):
    """Known evidence falls with brightness; so bright pixels are the anomalies."""

    def __init__(self, as_masks: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.as_masks = as_masks

    def forward(self, images: torch.Tensor) -> MaskOutput | PixelOutput:
        evidence = self.scale * (1 - images.mean(dim=1, keepdim=True))  # (B, 1, H, W)
        if not self.as_masks:
            return PixelOutput(torch.cat([evidence, evidence / 2], dim=1))
        classes = torch.tensor([[[50.0, 0, 0]]]).expand(len(images), -1, -1)
        return MaskOutput(torch.logit(evidence, 1e-6), classes, torch.zeros(1), None, 2)


class NegatedEvidence:
    """A semantic scorer."""

    level: Literal["semantic", "query"] = "semantic"

    def __call__(self, output: MaskOutput | PixelOutput) -> torch.Tensor:
        return -output.semantic_scores().amax(dim=1)


class NegatedMask(NegatedEvidence):
    """The same as a scorer of queries, so that windows are averaged the other way."""

    level: Literal["semantic", "query"] = "query"


class Negated(NegatedEvidence):
    """What scores the wrong way round."""

    def __call__(self, output: MaskOutput | PixelOutput) -> torch.Tensor:
        return -super().__call__(output)


class BrightAnomalies(ImageSet):
    """Noisy grey images (16, 32) with a bright anomaly, every fourth one without; a void end."""

    num_classes = 2
    class_names = ("grey", "black")
    labels_anomalies = True
    component_sizes = (4, 2)

    def __init__(self, count: int = 8, seed: int = 0, noise: float = 60.0) -> None:
        self.count, self.seed, self.noise = count, seed, noise

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LabelledImage:
        rng = np.random.default_rng([self.seed, index])
        anomaly = np.zeros((16, 32), dtype=np.uint8)
        if index % 4 != 3:
            top, left = rng.integers(1, 8), rng.integers(1, 10)
            anomaly[top : top + 6, left : left + 8] = 1
        anomaly[:, 28:] = VOID
        bright = 60 + 110 * (anomaly == 1) + rng.normal(0, self.noise, anomaly.shape)
        bright[:, 28:] = 255  # brightest of all, and nobody may look
        image = np.repeat(bright.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        labels = np.where(anomaly == 0, 0, VOID).astype(np.uint8)
        return LabelledImage(image, labels, anomaly, f"bright {index}")
