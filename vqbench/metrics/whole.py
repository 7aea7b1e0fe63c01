"""Images of different sizes, each scored at its own: what stands in the place of one array of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class WholeImages(Sequence[Pixels]):
    """uint8 (H, W, C) each, loaded when it is asked for. What is shown of several is the middle square that all have.

    Has `shape`, `ndim` and `dtype` of the array of those squares, and gives it for a list of positions.
    """

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(self, sizes: Sequence[tuple[int, int]], channels: int, load: Callable[[int], Pixels]) -> None:
        self.sizes, self.channels, self._load = tuple(sizes), channels, load

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def side(self) -> int:
        """Of the largest square that every image has."""
        return min(map(min, self.sizes))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, side, side, C)."""
        return len(self), self.side, self.side, self.channels

    @property
    def area(self) -> float:
        """Pixels of an image, on average."""
        return float(np.mean([height * width for height, width in self.sizes]))

    @overload
    def __getitem__(self, i: int) -> Pixels: ...
    @overload
    def __getitem__(self, i: slice) -> WholeImages: ...
    @overload
    def __getitem__(self, i: list[int]) -> Pixels: ...
    def __getitem__(self, i: Any) -> Any:
        """One image, some of them, or the middle squares (n, side, side, C) of a list of them."""
        if isinstance(i, slice):
            places = range(len(self))[i]
            return WholeImages([self.sizes[k] for k in places], self.channels, lambda k: self._load(places[k]))
        if isinstance(i, list):
            return np.stack([self.middle(self._load(k)) for k in i])
        return self._load(range(len(self))[i])

    def middle(self, pixels: Pixels) -> Pixels:
        """The square of (H, W, C) that every image has."""
        top, left = ((length - self.side) // 2 for length in pixels.shape[:2])
        return pixels[top : top + self.side, left : left + self.side]
