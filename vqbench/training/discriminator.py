"""PatchGAN discriminator (Isola et al., 2016, arXiv:1611.07004), as VQGAN uses it."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Images (B, image_channels, R, R) → logits (B, 1, h, w), one for each overlapping patch; positive means real.

    `layers` strided 4×4 convolutions, one that is not strided, and the logits; BatchNorm from the second on.
    """

    def __init__(self, channels: int = 64, layers: int = 3, image_channels: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(image_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < layers else 1
            blocks += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),  # BatchNorm brings the bias
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.layers(images)


def _initialise(module: nn.Module) -> None:
    # DCGAN's initial values, which PatchGAN kept
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
