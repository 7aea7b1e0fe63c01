"""What a metric is given of an image and its reconstruction: 8 bits, rounded or cut off, or floats."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vqbench.metrics.kinds import Values


def to_8_bits(images: Tensor) -> Tensor:
    """Images in [-1, 1] → clamped and rounded to uint8."""
    return _to_255(images).round().to(torch.uint8)


def of_reconstruction(images: Tensor, values: Values) -> Tensor:
    """What a decoder gave for images in [-1, 1] → uint8, or float32 from 0 to 255."""
    if values == "rounded":
        return to_8_bits(images)
    return _cut_off(images.float().clamp(-1, 1)) if values == "truncated" else _to_255(images)


def of_reference(images: Tensor, values: Values) -> Tensor:
    """uint8 images as they are compared with what `of_reconstruction` gives."""
    if values == "truncated":
        return _cut_references().to(images.device)[images.long()]
    return images.float() if values == "floats" else images


def _to_255(images: Tensor) -> Tensor:
    return (images.float().clamp(-1, 1) + 1) * 127.5


def _cut_off(images: Tensor) -> Tensor:
    return ((images + 1) / 2 * 255).to(torch.uint8)


@functools.cache
def _cut_references() -> Tensor:
    """(256,) what is left of each 8-bit value that was brought to [-1, 1] and is cut off again: some lose one."""
    return _cut_off((torch.arange(256, dtype=torch.float64) / 127.5 - 1).float())
