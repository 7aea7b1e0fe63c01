"""Finite scalar quantization. Paper: https://arxiv.org/abs/2309.15505."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

from vqbench.methods.codebook import straight_through
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

Size = Literal["2^4", "2^6", "2^8", "2^9", "2^10", "2^11", "2^12", "2^14", "2^16"]

# Table 1 of the paper and the authors' code; for 2^12 the appendix misprints 7,5,5,5, which is 875 codes.
RECOMMENDED: dict[str, tuple[int, ...]] = {
    "2^4": (5, 3),
    "2^6": (8, 8),
    "2^8": (8, 6, 5),
    "2^9": (8, 8, 8),
    "2^10": (8, 5, 5, 5),
    "2^11": (8, 8, 6, 5),
    "2^12": (7, 5, 5, 5, 5),
    "2^14": (8, 8, 8, 6, 5),
    "2^16": (8, 8, 8, 5, 5, 5),
}

MARGIN = 1e-3  # the bounded value may pass the outermost level by this fraction, so that the level is reached
MAX_LISTED_CODES = 2**17  # above this, `codebook` would be a table that nobody reads


_SIMVQ = ("ImageNet 128 px validation images, f 8, K 64000", "table of the SimVQ paper, whose authors trained it")


def levels_of(given: tuple[int | str, ...] | str) -> tuple[int, ...]:
    """Levels as they are given, or those of a recommended size by its name. ValueError for what is neither."""
    names = (given,) if isinstance(given, str) else tuple(given)
    if len(names) == 1 and names[0] in RECOMMENDED:
        return RECOMMENDED[str(names[0])]
    levels = tuple(n for n in names if isinstance(n, int) and n >= 2)
    if not levels or len(levels) != len(names):
        raise ValueError(
            f"levels must be whole numbers of at least 2, or one of {', '.join(RECOMMENDED)}, not {given!r}"
        )
    return levels


def symmetric(bounded: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Digits, int64 in [0, L), and levels from −1 to 1 at equal distances of what is in [−1, 1], straight through."""
    place = (levels - 1) * (bounded + 1) / 2 + 0.5
    digits = place.detach().floor().long().clamp(min=torch.zeros_like(levels), max=levels - 1)
    return digits, 2 / (levels - 1) * straight_through(place, digits.float()) - 1


@METHODS.register("fsq")
class FSQ(Quantizer):
    """Finite scalar quantization: VQ-VAE made simple (Mentzer et al., 2023, arXiv:2309.15505).

    Each channel is bounded and rounded to a few levels; the codebook is their product and has no parameters.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `fsq`."""

        levels: tuple[int, ...] | tuple[Size] = ("2^9",)
        """Levels of each channel (8,5,5,5), or the paper's choice for a size by its name (2^10)."""
        symmetric: bool = field(default=False, metadata={"added_later": True})
        """Levels at equal distances from −1 to 1, of an even number too (Parker et al., 2024, arXiv:2411.19842)."""
        noise_dropout: float = field(default=0.0, metadata={"added_later": True})
        """Share of the coordinates that get noise of ±0.5 in training, as lucidrains has it; needs symmetric."""

        def __post_init__(self) -> None:
            # Stored as numbers, so that a name and what it stands for are one configuration.
            object.__setattr__(self, "levels", levels_of(self.levels))
            if math.prod(levels_of(self.levels)) >= 2**63:
                raise ValueError(f"the product of the levels {self.levels} does not fit an int64 index")
            if not 0 <= self.noise_dropout < 1:
                raise ValueError(f"noise_dropout must be from 0 to below 1, not {self.noise_dropout}")
            if self.noise_dropout > 0 and not self.symmetric:
                raise ValueError("noise_dropout has no meaning without symmetric: set symmetric=true")

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "symmetric": {"symmetric": True},
        "noise": {"symmetric": True, "noise_dropout": 0.5},
    }

    # Nothing but the levels can be chosen; the sizes of Table 1.
    search_space: ClassVar[Mapping[str, Range | Choices]] = {"levels": Choices(tuple(RECOMMENDED), group="codebook")}

    # The paper's own FIDs are against training images, and of sampled images: neither is rFID.
    published: ClassVar[tuple[Published, ...]] = (
        Published("usage", 1.0, "ImageNet 256 px, K 1000, in MaskGIT", "the paper"),
        Published("rfid", 2.80, *_SIMVQ),
        Published("psnr", 23.63, *_SIMVQ),
        Published("ssim", 0.758, *_SIMVQ),
    )

    config: Config

    def __init__(self, config: Any) -> None:  # of this class, or of one that is made of its levels
        super().__init__(config)
        levels = levels_of(config.levels)
        self.codebook_size = math.prod(levels)
        self.in_channels = self.out_channels = len(levels)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]  # the first level varies fastest
        self.register_buffer("_levels", torch.tensor(levels).view(-1, 1, 1), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis).view(-1, 1, 1), persistent=False)
        self._levels: Tensor
        self._basis: Tensor

    @classmethod
    def matched(cls, codebook_size: int, dim: int) -> dict[str, object]:
        """The recommended levels nearest to `codebook_size` in bits; the number of channels follows from them.

        The table ends at 15 and 64000 codes, and what is asked for beyond gets these: 2 becomes 15, and 2^18 becomes
        64000. Set `levels` for another size. The size in use is the quantizer's `codebook_size`.
        """
        return {"levels": min(RECOMMENDED.values(), key=lambda x: abs(math.log2(math.prod(x) / codebook_size)))}

    @property
    def codebook(self) -> Tensor | None:
        """(product of levels, channels) implicit codes, or None above MAX_LISTED_CODES."""
        if self.codebook_size > MAX_LISTED_CODES:
            return None
        indices = torch.arange(self.codebook_size, device=self._levels.device)
        codes: Tensor = self.decode_indices(indices.view(-1, 1, 1))
        return codes.flatten(1)

    @property
    def gradient_routes(self) -> GradientRoutes:
        """Straight-through rounding; neither losses nor parameters."""
        return GradientRoutes(True, False, False, False)

    def _bound(self, z: Tensor) -> Tensor:
        """f of section 3.1: each channel into an interval of (almost) L − 1, so that rounding gives L values."""
        half_length = (self._levels - 1) * (1 + MARGIN) / 2
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        # Even L rounds off centre. atanh brings z = 0 to the level 0; the paper's tan is a slip that its author
        # acknowledged. At L = 2 that shift would sit where tanh is flat, so the two levels split at z = 0 instead.
        shift = torch.where(self._levels > 2, torch.atanh(offset / half_length), 0.0)
        return torch.tanh(z + shift) * half_length - offset

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, channels, h, w) to the nearest levels, scaled into [−1, 1]."""
        if self.config.symmetric:
            return self._symmetric(z)
        bounded, half = self._bound(z), self._levels // 2
        # From L = 1001 on the margin is more than half a level, hence the clamp.
        digits = (torch.round(bounded.detach()).long() + half).clamp(min=torch.zeros_like(half), max=self._levels - 1)
        latents = (digits - half) / half
        if self.training:
            latents = bounded / half + (latents - bounded / half).detach()
        return Quantized(latents, (digits * self._basis).sum(1))

    def _symmetric(self, z: Tensor) -> Quantized:
        digits, latents = symmetric(torch.tanh(z), self._levels)
        indices = (digits * self._basis).sum(1)
        if not self.training:
            return Quantized(self.decode_indices(indices), indices)
        if self.config.noise_dropout > 0:
            chosen = torch.full_like(latents, self.config.noise_dropout).bernoulli_().bool()
            noise = torch.rand_like(latents) - 0.5  # in code units: for many levels more than the distance of two
            # At ±1, where the last levels lie, torch 2.11's clamp passes a gradient and 2.14's does not; hardtanh never
            # does, as the library's values have it.
            latents = hardtanh(torch.where(chosen, latents + noise, latents))
        return Quantized(latents, indices)

    def _digits(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, channels, h, w) in [0, L)."""
        return indices.unsqueeze(1) // self._basis % self._levels

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, channels, h, w) levels in [−1, 1]."""
        if self.config.symmetric:
            return self._digits(indices) * (2 / (self._levels - 1)) - 1
        half = self._levels // 2
        return (self._digits(indices) - half) / half
