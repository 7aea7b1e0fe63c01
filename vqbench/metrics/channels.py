"""Images of any number of channels for networks that look at RGB: each channel by itself, repeated."""

from __future__ import annotations

from torch import Tensor

from vqbench.metrics.kinds import RGB


def each_as_rgb(images: Tensor) -> Tensor:
    """(B, C, H, W) of any dtype → (B · C, 3, H, W): each channel repeated, those of an image one after the other."""
    return images.flatten(0, 1).unsqueeze(1).expand(-1, RGB, -1, -1)


def for_rgb(images: Tensor) -> Tensor:
    """(B, 3, H, W) as they are, else `each_as_rgb`."""
    return images if images.shape[1] == RGB else each_as_rgb(images)
