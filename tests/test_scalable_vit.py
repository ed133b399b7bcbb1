"""ScalableViT as an encoder: vit-pytorch's numbers, any image size, errors by name."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from eomt_exp.backbones.scalable_vit import ScalableViT


def encoder_of(**changes) -> ScalableViT:
    options = {
        "image_size": (32, 64), "embed_dim": 32, "depth": [1, 2, 3], "heads": [1, 1, 2],
        "reduction": [4, 2, 1], "window": [4, 4, 2], "head_dim": 8, "expansion": 2,
    }  # fmt: skip
    return ScalableViT(**options | changes)


def images_of(height: int = 32, width: int = 64, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def library_maps(encoder: ScalableViT, images: torch.Tensor) -> list[torch.Tensor]:
    """The end of every stage, as vit-pytorch's own modules compute it."""
    cells = encoder.backbone.to_patches((images - encoder.pixel_mean) / encoder.pixel_std)
    maps = []
    for transformer, downsample in encoder.backbone.layers:
        maps.append(transformer(cells))
        cells = maps[-1] if downsample is None else downsample(maps[-1])
    return maps


def our_maps(encoder: ScalableViT, images: torch.Tensor) -> list[torch.Tensor]:
    *finer, cells = encoder.pyramid(images)
    for index in range(len(encoder.stages[-1])):
        cells = encoder.block(index, cells)
    return [*finer, cells]


@pytest.mark.parametrize("window", [[4, 4, 2], [8, None, None]])
def test_the_forward_pass_gives_the_librarys_numbers(window: list[int | None]) -> None:
    torch.manual_seed(0)
    encoder = encoder_of(window=window).double()
    images = images_of(64, 128).double()
    for ours, theirs in zip(our_maps(encoder, images), library_maps(encoder, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_map_off_the_windows_is_the_librarys_on_a_map_with_a_longer_rim() -> None:
    torch.manual_seed(0)
    encoder = encoder_of(window=[None, None, 4]).double()
    _, _, cells = encoder.pyramid(images_of(48, 80).double())
    ssa, first, peg, second, iwsa = encoder.backbone.layers[-1][0].layers[0]
    assert cells.shape[-2:] == (3, 5)
    expected = ssa(cells) + cells
    expected = peg(first(expected) + expected)
    expected = second(expected) + expected
    longer = F.pad(expected, (0, 3, 0, 1), mode="replicate")
    expected = iwsa(longer)[..., :3, :5] + expected
    torch.testing.assert_close(encoder.block(0, cells), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"multiples of 16.*got \(30, 64\).*try \[32, 64\]"),  # the images given to it
        ({"image_size": (40, 64)}, r"multiples of 16.*got \(40, 64\).*try \[32, 64\]"),
        ({"embed_dim": 30}, r"multiple of 4 with 3 stages, got 30; try 32"),
        ({"depth": [1, 1]}, r"one number per stage, got depth=\[1, 1\]"),
        ({"heads": [0, 1, 2]}, r"backbone\.heads must hold whole numbers from 1"),
    ],
)
def test_what_cannot_be_built_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder_of(**changes).pyramid(torch.zeros(1, 3, 30, 64))
