"""Training images in an endless order that depends on the seed and the set, and on nothing else."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vqbench.data.images import Images, Pixels, centre_crop

_ORDER, _AUGMENTATION = 0, 1  # two families of random streams of one seed


def _generator(seed: int, family: int, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(family, number)))


class Order:
    """An endless order of `count` things: each stands once in every epoch, whose order follows from (seed, epoch)."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._current: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def item(self, position: int) -> int:
        """Which thing stands at a position."""
        if position < 0:
            raise IndexError(f"positions count from 0, not {position}")
        epoch, place = divmod(position, self.count)
        known, order = self._current
        if known != epoch:
            order = _generator(self.seed, _ORDER, epoch).permutation(self.count)
            self._current = (epoch, order)
        return int(order[place])


class TrainingStream(Dataset[Tensor]):
    """Position in the stream → image, cropped and flipped, as uint8 (C, R, R).

    Whoever loads images sends bytes, a quarter of what floats are; `to_input` makes floats of a whole batch, on the
    device that trains. Position p is the p-th training image that a run sees, counted over all epochs, devices and
    workers. Which image it is, its crop and its flip follow from (seed, p): so a run that resumes at p goes on exactly,
    and every method sees the same images in the same order. `len` is one epoch, positions have no end.
    """

    def __init__(self, images: Images, resolution: int, seed: int, random_crop: bool, flip: bool) -> None:
        if not len(images):
            raise ValueError("a training stream needs at least one image")
        self.images = images
        self.resolution = resolution
        self.seed = seed
        self.random_crop = random_crop
        self.flip = flip
        self._order = Order(len(images), seed)

    def __len__(self) -> int:
        return len(self.images)

    def item(self, position: int) -> int:
        """Which image stands at a position; each stands once in every epoch of `len` positions."""
        return self._order.item(position)

    def __getitem__(self, position: int) -> Tensor:
        pixels = self._augment(self.images.load(self.item(position)), position)
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))

    def _augment(self, pixels: Pixels, position: int) -> Pixels:
        R = self.resolution
        generator = _generator(self.seed, _AUGMENTATION, position)
        top, left = (int(generator.integers(side - R + 1)) for side in pixels.shape[:2])
        mirrored = (
            generator.random() < 0.5
        )  # drawn whether or not it is used: one switch leaves the other's draws alone
        crop = pixels[top : top + R, left : left + R] if self.random_crop else centre_crop(pixels, R)
        return crop[:, ::-1] if self.flip and mirrored else crop
