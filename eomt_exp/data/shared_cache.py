"""Keep decoded images in shared memory, so that each is decoded once for all workers and epochs."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import torch

from eomt_exp.contracts import ImageSet, LabelledImage
from eomt_exp.data.wrapped_set import WrappedSet

_NAME_BYTES = 128
_MARGIN = 256 * 2**20  # bytes left for the batches that workers hand over the same way
_SHARED_MEMORY = Path("/dev/shm")

_log = logging.getLogger(__name__)


class SharedCache(WrappedSet):
    """Caches another image set: the first access decodes, later ones copy nothing.

    Memory for every image is taken at construction, in the size of the first one; an image of
    another size is decoded each time. Works across forked and spawned workers. Where shared memory
    is too small the cache stays off and says so, for writing past its end kills a worker without a
    message. What it hands out must not be written to.
    """

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images)
        first = images[0]
        count, (height, width) = len(images), first.image.shape[:2]
        needed = count * (height * width * 5 + _NAME_BYTES + 1)
        self.is_on = _fits(needed)
        if not self.is_on:
            return
        try:
            self._pixels = _shared(count, height, width, 3)
            self._labels = _shared(count, height, width)
            self._anomaly = _shared(count, height, width)
            self._names = _shared(count, _NAME_BYTES)
            self._is_filled = _shared(count)
        except RuntimeError as error:  # a limit of this process, or another took the room meanwhile
            _log.warning("The image cache is off: %s.", error)
            self.is_on = False
            return
        self._keep(0, first)

    def __getitem__(self, index: int) -> LabelledImage:
        """Return the image as the cached set gives it."""
        if not self.is_on:
            return self._images[index]
        if self._is_filled[index]:
            name = self._names[index].numpy().tobytes().rstrip(b"\0").decode()
            return LabelledImage(
                self._pixels[index].numpy(),
                self._labels[index].numpy(),
                self._anomaly[index].numpy(),
                name,
            )
        image = self._images[index]
        self._keep(index, image)
        return image

    def _keep(self, index: int, image: LabelledImage) -> None:
        name = image.name.encode()
        pixels = np.asarray(image.image)
        if pixels.shape != self._pixels.shape[1:] or len(name) > _NAME_BYTES:
            return
        self._pixels[index].numpy()[:] = pixels
        self._labels[index].numpy()[:] = image.labels
        self._anomaly[index].numpy()[:] = image.anomaly
        self._names[index].numpy()[: len(name)] = np.frombuffer(name, dtype=np.uint8)
        self._is_filled[index] = 1  # last, so that nobody reads half an image


def _shared(*shape: int) -> torch.Tensor:
    """Allocate zeros in memory that every worker sees."""
    return torch.zeros(shape, dtype=torch.uint8).share_memory_()


def _fits(needed: int) -> bool:
    if not _SHARED_MEMORY.is_dir():
        return True  # not Linux: shared memory is ordinary memory or a file there
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed + _MARGIN <= free:
        return True
    _log.warning(
        "The image cache is off: it needs %d MiB and %d MiB spare, %s has %d MiB free. "
        "Enlarge it (docker: --shm-size) or set the cache to false.",
        needed >> 20, _MARGIN >> 20, _SHARED_MEMORY, free >> 20,
    )  # fmt: skip
    return False
