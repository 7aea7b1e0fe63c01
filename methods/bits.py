"""Codes whose channels are one bit each: signs to whole-number indices and back."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from vqbench.quantizer import Quantizer, full_precision

BitOrder = Literal["first_lowest", "first_highest"]
"""Whether channel 0 is the least or the most significant bit of an index."""

MAX_BITS = 62  # what an int64 index holds, and 2 ** bits with it
MAX_JOINT_BITS = 20  # of one entropy group: 2^20 mean probabilities are 4 MiB
MAX_LISTED_BITS = 17  # above this, `codebook` would be a table that nobody reads


def check_bits(bits: int, group: int) -> None:
    """ValueError for numbers of bits that cannot be: of a code, and of a group in the codebook entropy (0: all)."""
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be from 1 to {MAX_BITS}, not {bits}")
    if not 0 <= group <= min(bits, MAX_JOINT_BITS):
        raise ValueError(f"entropy_group must be from 0 to {min(bits, MAX_JOINT_BITS)}, not {group}")


def joint_bits(bits: int, group: int) -> int:
    """Bits of a group in the codebook entropy: as asked for; for 0 all, in equal groups where they are too many."""
    return group or math.ceil(bits / math.ceil(bits / MAX_JOINT_BITS))


def matched_bits(codebook_size: int) -> int:
    """Bits of the codebook nearest in bits to `codebook_size` codes."""
    return min(max(1, round(math.log2(codebook_size))), MAX_BITS)


def bit_places(bits: int, order: BitOrder) -> Tensor:
    """(bits, 1, 1) place of each channel's bit in an index, the lowest being 0."""
    places = torch.arange(bits)
    return (places if order == "first_lowest" else places.flip(0)).view(-1, 1, 1)


def indices_of(z: Tensor, places: Tensor) -> Tensor:
    """(B, bits, h, w) → int64 (B, h, w): the bit of a channel is 1 where it is above 0, so of 0 itself it is 0."""
    return ((z > 0).long() << places).sum(1)


def signs_of(indices: Tensor, places: Tensor) -> Tensor:
    """int64 (B, h, w) → float32 (B, bits, h, w) of −1 and 1."""
    return ((indices.unsqueeze(1) >> places & 1) * 2 - 1).float()


def all_codes(places: Tensor) -> Tensor:
    """(2^bits, bits) signs of every index."""
    indices = torch.arange(2 ** len(places), device=places.device)
    return signs_of(indices.view(-1, 1, 1), places).flatten(1)


class SignQuantizer(Quantizer):
    """A quantizer whose codes are the signs of its channels, times a scale; its Config has `bits` and `spherical`."""

    places: Tensor

    def __init__(self, config: Any, order: BitOrder) -> None:
        super().__init__(config)
        self.in_channels = self.out_channels = config.bits
        self.codebook_size = 2**config.bits
        self.register_buffer("places", bit_places(config.bits, order), persistent=False)

    @classmethod
    def matched(cls, codebook_size: int, dim: int) -> dict[str, object]:
        """The number of bits nearest to `codebook_size`; it is the number of channels too, so `dim` has no say."""
        return {"bits": matched_bits(codebook_size)}

    @property
    def scale(self) -> float:
        """Of a channel's ±1: with `spherical` codes have length 1."""
        return float(self.config.bits**-0.5) if self.config.spherical else 1.0

    @property
    def codebook(self) -> Tensor | None:
        """(2^bits, bits) implicit codes, or None of more than 2^17."""
        return None if self.config.bits > MAX_LISTED_BITS else self.scale * all_codes(self.places)

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, bits, h, w) codes of ±1, or of ±1 / √bits with `spherical`."""
        return self.scale * signs_of(indices, self.places)
