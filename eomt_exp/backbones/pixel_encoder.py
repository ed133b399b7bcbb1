"""Normalise images, and check their sides, before an encoder's own layers see them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eomt_exp.contracts import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PixelEncoder(nn.Module):
    """Holds ImageNet's normalisation as buffers with the official names, and checks image sides.

    Sides must be whole cells: `cell` is a cell's side in pixels, `cell_name` its name in errors.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, cell: int, cell_name: str) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self._cell, self._cell_name = cell, cell_name

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise (B, 3, H, W) RGB in [0, 1]; raise UserError unless sides are whole cells."""
        self.check_size((images.shape[-2], images.shape[-1]), "image sides")
        return (images - self.pixel_mean) / self.pixel_std

    def check_size(self, size: tuple[int, int], what: str) -> None:
        """Raise UserError unless both sides of (H, W) are multiples of a cell."""
        if any(side % self._cell for side in size):
            fitting = [max(1, round(side / self._cell)) * self._cell for side in size]
            raise UserError(
                f"{what} must be multiples of {self._cell_name}, got {tuple(size)}; try {fitting}."
            )
