"""What every encoder does to an image before its own layers see it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PixelEncoder(nn.Module):
    """Base of the encoders: ImageNet's normalisation, as buffers with the official names, and sides
    that are whole cells.

    `cell` is the side of a cell in pixels, `cell_words` what an error calls it.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, cell: int, cell_words: str) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self._cell, self._cell_words = cell, cell_words

    def normalised(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> the same, normalised; ValueError unless in whole cells."""
        self.check_size((images.shape[-2], images.shape[-1]), "image sides")
        return (images - self.pixel_mean) / self.pixel_std

    def check_size(self, size: tuple[int, int], what: str) -> None:
        """Raise ValueError unless both sides of (H, W) are multiples of a cell."""
        if any(side % self._cell for side in size):
            fitting = [max(1, round(side / self._cell)) * self._cell for side in size]
            raise ValueError(
                f"{what} must be multiples of {self._cell_words}, got {tuple(size)}; try {fitting}."
            )
