"""Which validation images people are shown, and whose reconstructions a cell keeps. No torch here: reports read it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Value = TypeVar("_Value", bound=np.generic)

SHOWN = 8
"""Images of the small grid, `recon.png`."""
KEPT_BYTES = 16 << 20
"""Reconstructions that a cell keeps, before compression: all 192 of `photos` at 32 pixels, 80 images at 256."""


def shown_positions(n: int) -> list[int]:
    """Positions of the images that people are shown: at most 8, spread evenly over a split of n."""
    return _spread(n, min(n, SHOWN))


def kept_positions(n: int, resolution: int, channels: int = 3) -> list[int]:
    """Positions of the images, R×R, whose reconstructions are kept: all n of a split, or as many as fit 16 MiB.

    Never fewer than those that are shown, which are always among them: for that, a part of a split is a multiple of 8.
    """
    fit = max(KEPT_BYTES // (channels * resolution * resolution), SHOWN)
    return _spread(n, n if n <= fit else fit - fit % SHOWN)


def as_pictures(images: NDArray[_Value]) -> NDArray[_Value]:
    """Images (n, R, R, C) as people see them: RGB as it is, else (n, R, C · R), each channel grey, side by side."""
    n, height, width, channels = images.shape
    return images if channels == 3 else images.transpose(0, 1, 3, 2).reshape(n, height, channels * width)


def _spread(n: int, count: int) -> list[int]:
    return [i * n // count for i in range(count)]
