"""Enlarge feature maps from the patch grid to that of the masks, as EoMT does."""

from __future__ import annotations

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


class ScaleBlock(nn.Module):
    """Doubles the resolution: transposed convolution, GELU, depth-wise convolution, LayerNorm.

    The transposed convolution's windows do not overlap (kernel = stride = 2), so it is one matrix
    product per pixel and a shuffle. With gradients that is how it is computed, channels last:
    the backward of `conv_transpose2d` is the largest single item of a training step.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, 2h, 2w)."""
        if not (torch.is_grad_enabled() and (x.requires_grad or self.conv1.weight.requires_grad)):
            return self.norm(self._convolved(x))
        batch, dim, height, width = x.shape
        weight = self.conv1.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * D, D)
        assert self.conv1.bias is not None
        # (B, h, w, 4 D); the input mostly is a transposed row of tokens: nothing is copied here.
        fine = self.act(F.linear(x.permute(0, 2, 3, 1), weight, self.conv1.bias.repeat(4)))
        fine = fine.view(batch, height, width, 2, 2, dim).transpose(2, 3)
        fine = fine.reshape(batch, 2 * height, 2 * width, dim).permute(0, 3, 1, 2)
        fine = self.conv2(fine).permute(0, 2, 3, 1)  # channels last throughout
        norm = self.norm
        return F.layer_norm(fine, (dim,), norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)

    def cells(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, D, h, w) -> (B, D, *grid): forward's output, shrunk bilinearly to a coarser grid.

        By an even factor, bilinear interpolation is the mean of the four pixels in the middle of
        each cell, so the others are not normalised. Not for gradients: `forward` is faster there.
        """
        fine = self._convolved(x)
        step = fine.shape[-1] // grid[1]
        middle = (step // 2 - 1, step // 2)
        pixels = [fine[..., row::step, column::step] for row in middle for column in middle]
        norm, mixed = self.norm, torch.stack(pixels, dim=1).movedim(2, -1)  # (B, 4, *grid, D)
        mixed = F.layer_norm(mixed, mixed.shape[-1:], norm.weight, norm.bias, norm.eps)
        return mixed.mean(dim=1).movedim(-1, 1)

    def _convolved(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.conv1(x)))
