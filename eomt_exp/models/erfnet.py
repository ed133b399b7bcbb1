"""ERFNet (Romera et al., T-ITS 2018) is a small convolutional network with a class at every pixel.

It is the baseline of the road benchmarks, without queries and masks. Its trick is to split each
3 x 3 convolution of a residual block into 3 x 1 and 1 x 3. Names follow the official state dict, so
published weights load as they are; of those, `encoder.output_conv` is not here: it is the head with
which the encoder was trained alone, and no pixel's logits pass through it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eomt_exp.contracts import Model, Part, PixelOutput, UserError
from eomt_exp.models.image_sides import check_sides

STRIDE = 8  # of the encoder; sides that it does not divide would come back in another size
_EPS = 1e-3  # of every BatchNorm, in training as in the published weights


class ERFNet(Model):
    """Computes logits of the known classes at every pixel of an image.

    With `void_output` there is one output more, the last, for pixels without a label; so it is in
    the published weights (19 classes of Cityscapes and void). It is no known class and is left out
    of what comes back.
    """

    def __init__(self, *, num_classes: int, void_output: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder = Encoder()
        self.decoder = Decoder(num_classes + int(void_output))

    def forward(self, images: Tensor) -> PixelOutput:
        """(B, 3, H, W) RGB in [0, 1], as it is, without mean and deviation -> (B, K, H, W).

        Raises UserError where 8 does not divide H and W.
        """
        check_sides(images, STRIDE, "erfnet")
        return PixelOutput(self.decoder(self.encoder(images))[:, : self.num_classes])

    def parts(self) -> list[Part]:
        """List the encoder's blocks, the decoder's, and the last convolution."""
        layers = self.encoder.layers
        initial = (*self.encoder.initial_block.parameters(),)
        parts = [Part("initial block", "backbone", len(layers), initial)]
        for index, layer in enumerate(layers):
            behind = len(layers) - 1 - index
            parts.append(Part(f"encoder layer {index}", "backbone", behind, (*layer.parameters(),)))
        for index, layer in enumerate(self.decoder.layers):
            parts.append(Part(f"decoder layer {index}", "head", 0, (*layer.parameters(),)))
        return [*parts, Part("class output", "head", 0, (*self.decoder.output_conv.parameters(),))]

    def set_trainable(self, which: str) -> None:
        """Take only "all": the groups of the mask transformers are not in this network."""
        if which != "all":
            raise UserError(
                f"model=erfnet has no queries or heads to train alone, got trainable={which}; "
                "type trainable=all."
            )
        self.requires_grad_(True)


class Encoder(nn.Module):
    """Shrinks to an eighth of the image's sides; its residual blocks are more and more dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.initial_block = Downsampler(3, 16)
        self.layers = nn.Sequential(
            Downsampler(16, 64),
            *(NonBottleneck1d(64, dropout=0.03) for _ in range(5)),
            Downsampler(64, 128),
            *(NonBottleneck1d(128, dropout=0.3, dilation=d) for d in 2 * (2, 4, 8, 16)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 128, H/8, W/8)."""
        return self.layers(self.initial_block(images))


class Decoder(nn.Module):
    """Enlarges to the image's sides by transposed convolutions, without skips from the encoder."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Upsampler(128, 64),
            *(NonBottleneck1d(64) for _ in range(2)),
            Upsampler(64, 16),
            *(NonBottleneck1d(16) for _ in range(2)),
        )
        self.output_conv = nn.ConvTranspose2d(16, num_outputs, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 128, h, w) -> (B, outputs, 8h, 8w)."""
        return self.output_conv(self.layers(x))


class Downsampler(nn.Module):
    """Halves the sides: a strided convolution's new channels beside the max-pooled old ones."""

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, wider - channels, kernel_size=3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(wider, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h/2, w/2)."""
        return F.relu(self.bn(torch.cat([self.conv(x), F.max_pool2d(x, 2)], dim=1)))


class NonBottleneck1d(nn.Module):
    """Adds a residual of two 3 x 3 convolutions, both split; the second one is dilated."""

    def __init__(self, channels: int, dropout: float = 0.0, dilation: int = 1) -> None:
        super().__init__()
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(channels, eps=_EPS)
        self.conv3x1_2 = nn.Conv2d(
            channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)
        )
        self.conv1x3_2 = nn.Conv2d(
            channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)
        )
        self.bn2 = nn.BatchNorm2d(channels, eps=_EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        y = F.relu(self.conv3x1_1(x))
        y = F.relu(self.bn1(self.conv1x3_1(y)))
        y = F.relu(self.conv3x1_2(y))
        y = self.bn2(self.conv1x3_2(y))
        return F.relu(self.dropout(y) + x)


class Upsampler(nn.Module):
    """Doubles the sides by a transposed convolution."""

    def __init__(self, channels: int, narrower: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            channels, narrower, kernel_size=3, stride=2, padding=1, output_padding=1
        )
        self.bn = nn.BatchNorm2d(narrower, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w)."""
        return F.relu(self.bn(self.conv(x)))
