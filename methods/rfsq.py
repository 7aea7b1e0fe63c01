"""Residual finite scalar quantization. Papers: https://arxiv.org/abs/2309.15505 and https://arxiv.org/abs/2411.19842."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

from vqbench.methods.fsq import FSQ, RECOMMENDED, Size, levels_of, symmetric
from vqbench.quantizer import Choices, Published, Quantized, Range, full_precision
from vqbench.registry import METHODS

# Sizes between the paper's, for a codebook that is used several times; at least five levels, as the paper advises.
_BETWEEN: tuple[tuple[int, ...], ...] = ((5, 5), (8, 5), (5, 5, 5), (7, 5, 5), (8, 7, 7))


@METHODS.register("rfsq")
class RFSQ(FSQ):
    """Scaling transformers for low-bitrate high-quality speech coding (Parker et al., 2024, arXiv:2411.19842).

    FSQ of what FSQ has left over: symmetric levels, each time on a grid that is L times finer. No losses and no
    parameters. As in vector-quantize-pytorch, z is first squashed to where the last grid still reaches, and each step
    clamps; a step passes the decoder's gradient on by itself, so inside all grids z gets it once for each step.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `rfsq`."""

        levels: tuple[int, ...] | tuple[Size] = (5, 5)
        """Levels of each channel, in each step the same, or FSQ's choice for a size by its name (2^10)."""
        steps: int = 2
        """How many times what is left over is quantized; each has an index."""

        def __post_init__(self) -> None:
            object.__setattr__(self, "levels", levels_of(self.levels))
            if math.prod(levels_of(self.levels)) >= 2**63:
                raise ValueError(f"the product of the levels {self.levels} does not fit an int64 index")
            if self.steps < 1:
                raise ValueError(f"steps must be at least 1, not {self.steps}")
            if max(levels_of(self.levels)) ** (self.steps - 1) > 2**20:
                raise ValueError(f"{self.steps} steps of {max(levels_of(self.levels))} levels are finer than float32")

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"three": {"steps": 3}}

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "steps": Choices((1, 2, 3, 4), group="codebook"),
    }

    published: ClassVar[tuple[Published, ...]] = ()  # the paper is of speech

    config: Any

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.num_codebooks = config.steps

    @classmethod
    def matched(cls, codebook_size: int, dim: int) -> dict[str, object]:
        """The levels whose two steps together are nearest to `codebook_size` in bits."""
        steps, wanted = cls.Config().steps, math.log2(codebook_size)
        listed = (*RECOMMENDED.values(), *_BETWEEN)
        return {"levels": min(listed, key=lambda levels: abs(steps * math.log2(math.prod(levels)) - wanted))}

    @property
    def codebook(self) -> None:
        """None: a token has a code of each step."""
        return

    def _scales(self) -> Tensor:
        """(steps, channels, 1, 1): the size of the grid of each step, 1, 1 / L, 1 / L² …"""
        steps = torch.arange(self.config.steps, device=self._levels.device).view(-1, 1, 1, 1)
        return self._levels.float() ** -steps

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, channels, h, w) to the sum of its codes, indices (B, h, w, steps)."""
        reach = 1 + 1 / (self._levels - 1)
        left = reach * torch.tanh(z / reach)
        latents, indices = torch.zeros_like(z), []
        for scale in self._scales():
            digits, codes = symmetric(hardtanh(left / scale), self._levels)
            latents = latents + scale * codes
            left = left - (scale * codes).detach()
            indices.append((digits * self._basis).sum(1))
        whole = torch.stack(indices, -1)
        return Quantized(latents if self.training else self.decode_indices(whole), whole)

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w, steps) indices to (B, channels, h, w) sums of codes."""
        latents = torch.zeros((), device=indices.device)
        for scale, chosen in zip(self._scales(), indices.unbind(-1), strict=True):
            latents = latents + scale * (self._digits(chosen) * (2 / (self._levels - 1)) - 1)
        return latents
