"""Makes training samples a pure function of (seed, epoch, index): a resumed run is the same.

The facts behind it: worker processes, prefetching and restored generators each break bit-exact
resume as soon as an augmentation draws from any generator that lives longer than one item.
"""

from __future__ import annotations

from itertools import islice, product

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from eomt_exp.contracts import (
    ANOMALY,
    NORMAL,
    VOID,
    Exposure,
    ImageSet,
    LabelledImage,
    Sample,
    Target,
    TrainingError,
    UserError,
)
from eomt_exp.data.augmentation import Augmentation


class TrainingSet(Dataset[Sample]):
    """Frames the images of a set, pastes outliers in, and changes colours, in this order.

    Outliers are pasted into the final frame, so their scale is that of what the network sees, and
    before the colours change, so that they share light and noise with the scene.
    """

    def __init__(
        self,
        images: ImageSet,
        augmentation: Augmentation,
        exposure: Exposure | None,
        num_classes: int,
        seed: int,
    ) -> None:
        """`exposure` None pastes nothing, and the mask losses leave labelled anomalies out."""
        self.images = images
        self.augmentation = augmentation
        self.exposure = exposure
        self.outlier_target = "ignore" if exposure is None else exposure.target
        self.num_classes = num_classes
        self.seed = seed
        # In shared memory, so that workers that outlive an epoch see the next one begin.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """Return the epoch whose random draws are in force."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Call between epochs, before iterating; also reaches workers that are already running."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.images)

    def check(self, epochs: int) -> None:
        """Look at samples of this training until they can teach; mostly that is the first.

        UserError where none of the first thousand has a normal pixel, TrainingError where, with an
        exposure, none has an anomaly or a copy. Call before workers start: it changes the epoch.
        """
        knows, exposes = False, self.exposure is None
        for epoch, index in islice(product(range(epochs), range(len(self))), 1000):
            self.set_epoch(epoch)
            sample = self[index]
            knows |= bool((sample.target.anomaly == NORMAL).any())
            exposes |= sample.copy is not None or bool((sample.target.anomaly == ANOMALY).any())
            if knows and exposes:
                break
        self.set_epoch(0)
        if not knows:
            raise UserError(
                "None of the first 1,000 training samples has a pixel that is labelled and no "
                "anomaly, so there is nothing to learn. task=doctor looks into the label maps."
            )
        if not exposes:
            raise TrainingError(
                "outlier_exposure pastes nothing into the first 1,000 training samples: objects "
                "find no place, or paste_probability is too low. task=preview shows samples; "
                "outlier_exposure=none trains without."
            )

    def __getitem__(self, index: int) -> Sample:
        """Return a sample of augmentation.image_size; UserError for a label beyond the classes."""
        rng = np.random.default_rng([self.seed, self.epoch, index])
        # Drawn before the paste, so that runs with and without outliers see the same frames.
        frame_seed, colour_seed = (int(draw) for draw in rng.integers(2**31, size=2))
        scene = self.augmentation.geometric(self.images[index], frame_seed)
        if self.exposure is None:
            return self._sample(scene, colour_seed)
        sample = self._sample(self.exposure(scene, rng), colour_seed)
        copy = self.exposure.shifted(scene, rng)
        # One camera took both, so the scene's light and weather are all that differs.
        return sample if copy is None else sample._replace(copy=self._sample(copy, colour_seed))

    def _sample(self, image: LabelledImage, colour_seed: int) -> Sample:
        image = self.augmentation.photometric(image, colour_seed)
        # Three times as fast as a transposing copy, with the same result.
        planes = np.stack(cv2.split(np.ascontiguousarray(image.image)))  # (3, H, W) uint8
        pixels = torch.from_numpy(planes).float().div_(255)
        return Sample(pixels, self._target(image), image.name, image.pasted)

    def _target(self, image: LabelledImage) -> Target:
        labels = np.ascontiguousarray(image.labels)
        anomaly = np.array(image.anomaly)  # its own memory: the cached maps are not to be written
        adds_class = self.outlier_target == "outlier_class"
        if adds_class:
            labels = np.where(anomaly == ANOMALY, np.uint8(self.num_classes), labels)
        # OpenCV counts bytes as they are; np.bincount would first make them eight times as large.
        counts = cv2.calcHist([labels], [0], None, [VOID + 1], [0, VOID + 1])
        classes = np.flatnonzero(counts[:VOID])
        count = self.num_classes + adds_class
        if classes.size and classes[-1] >= count:
            raise UserError(
                f"{image.name} holds class {classes[-1]}, but classes run from 0 to {count - 1}; "
                f"check data.num_classes={self.num_classes}."
            )
        masks = labels[None] == classes[:, None, None].astype(np.uint8)  # (M, H, W)
        # What is known not to be void but not of which class it is says nothing about any mask.
        ignores = self.outlier_target == "ignore"
        unknown = anomaly != VOID if ignores else anomaly == NORMAL
        ignore = (labels == VOID) & unknown
        return Target(
            torch.from_numpy(masks),
            torch.from_numpy(classes.astype(np.int64)),
            torch.from_numpy(anomaly),
            torch.from_numpy(ignore),
        )
