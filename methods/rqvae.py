"""Residual quantization. Paper: https://arxiv.org/abs/2203.01941."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from vqbench.methods.codebook import (
    Init,
    as_rows,
    check_codebook,
    check_weight,
    initial_codebook,
    look_up,
    norms,
    quantize,
    straight_through,
)
from vqbench.methods.ema import EMACodebook, FirstCount, check_decay, check_epsilon
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

_OPEN = {"paper_unspecified": True}
_RESTART, _COMMITMENT = {"part_of": "restart"}, {"part_of": "commitment"}


def _of_paper(value: float, levels: int) -> Published:
    where = f"ImageNet 256 px validation images, f 32, 8 × 8 × {levels} codes, K 16384 for all levels"
    return Published("rfid", value, where, "the paper")


@METHODS.register("rqvae")
class RQVAE(Quantizer):
    """Autoregressive image generation using residual quantization (Lee et al., 2022, arXiv:2203.01941).

    Each level quantizes what the levels before it left of the latent, and the decoder gets the sum of their codes. A
    code is a moving average of the residuals assigned to it; dead ones start again from residuals of the batch.

    All levels of a step search the codebooks as they were before it, which then move once: the indices of training
    decode to the latents of training. The authors' code moves a codebook after each level, so that with a shared one
    level 2 searches what level 1 has just changed (`update=each_level`). `codebook_size` is that of one level; asked
    for K codes a token, `matched` gives each of the default's four levels the fourth root of K.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `rqvae`."""

        codebook_size: int = 5
        """Number of codes of one level, K; a token has this to the power of `levels`."""
        dim: int = 64
        """Channels of a code, d."""
        levels: int = 4
        """How many codes a token is the sum of, L."""
        shared: bool = True
        """One codebook for all levels (the paper's), or one for each."""
        update: Literal["after_all_levels", "each_level"] = "after_all_levels"
        """When the codes move: once a step, or (authors' code) after each level's look-up; not shared, that is one."""
        decay: float = 0.99
        """Share of counts and sums that an update keeps."""
        epsilon: float = 1e-5
        """What is added to each count before it divides, relative to their sum."""
        first_count: FirstCount = field(default=1, metadata=_OPEN)
        """The counts at the start: 1, or 0 as in the authors' code, survivable with restart alone."""
        commitment: bool = field(default=True, metadata={"component": "commitment"})
        """Draw the latents to the running sums of their codes."""
        beta: float = field(default=0.25, metadata=_COMMITMENT)
        """Weight of the commitment, which is a mean over the levels."""
        restart: bool = field(default=True, metadata={"component": "restart"})
        """Start dead codes again from residuals of the batch, with count and sum."""
        restart_below: float = field(default=1.0, metadata=_RESTART)
        """A code is dead whose moving average of residuals an update is under this; it depends on the batch size."""
        init: Init = "unit_normal"
        """Start of the codes: unit_normal N(0, 1) (the authors'), normal N(0, 1/d), or uniform in ±1/K."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            if self.levels < 1:
                raise ValueError(f"levels must be at least 1, not {self.levels}")
            check_decay(self.decay)
            check_epsilon(self.epsilon)
            check_weight("beta", self.beta)
            check_weight("restart_below", self.restart_below)

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "released": {"update": "each_level", "first_count": 0},
        "separate": {"shared": False},
    }

    published: ClassVar[tuple[Published, ...]] = (_of_paper(3.20, 4), _of_paper(2.69, 8), _of_paper(1.83, 16))

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),  # as vqgan's
        "shared": Choices((True, False), group="codebook"),
        "decay": Choices((0.8, 0.9, 0.99), group="codebook"),
        "init": Choices(("uniform", "normal", "unit_normal"), group="codebook"),
    }

    config: Config

    @classmethod
    def matched(cls, codebook_size: int, dim: int) -> dict[str, object]:
        """Codes of a level so that the default's levels have together about `codebook_size` messages a token.

        512 gives 5 codes a level, 625 messages; the least is 2 codes a level, 16 messages. A number of levels of your
        own wants its own `codebook_size` beside it.
        """
        return {"codebook_size": max(2, round(codebook_size ** (1 / cls.Config.levels))), "dim": dim}

    @classmethod
    def remark(cls, config: Config) -> str:
        """Counts from 0 without restart lose the codebook in a step; `matched` counts on the default's levels."""
        if config.levels != cls.Config.levels:
            size, levels = config.codebook_size, config.levels
            messages = f"{levels} levels of {size} codes make {size**levels:,} messages of a token"
            return f"{messages}: codebook_size is that of one level, set it beside levels"
        if config.first_count == 0 and not config.restart:
            return "first_count=0 throws the codes far away in the first step, and without restart they stay there"
        return ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size, self.num_codebooks = config.codebook_size, config.levels
        self.in_channels = self.out_channels = config.dim
        self.books = nn.ModuleList(
            EMACodebook(
                initial_codebook(config.codebook_size, config.dim, config.init),
                config.decay,
                config.epsilon,
                config.first_count,
            )
            for _ in range(1 if config.shared else config.levels)
        )

    def _book(self, level: int) -> EMACodebook:
        book = self.books[0 if self.config.shared else level]
        assert isinstance(book, EMACodebook)
        return book

    @property
    def codebook(self) -> Tensor | None:
        """(K, d) codes where there is one level; the sums of several are K to the power of L."""
        return self._book(0).codes.clone() if self.num_codebooks == 1 else None

    @property
    def gradient_routes(self) -> GradientRoutes:
        """The codes learn without gradients."""
        commits = self.config.commitment and self.config.beta > 0
        return GradientRoutes(True, False, commits, False)

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to the sums of its codes, indices (B, h, w, L); in training the codes then move."""
        at_once = self.config.update == "each_level"
        sums, indices, residuals, shares = [torch.zeros_like(z)], [], [], []
        for level in range(self.num_codebooks):
            residual = z.detach() - sums[-1]
            z_q, chosen = quantize(residual, self._book(level).codes)
            sums.append(sums[-1] + z_q)
            indices.append(chosen)
            residuals.append(residual)
            if self.training and at_once:
                shares.append(self._update(level, [residual], [chosen]))
        stacked = torch.stack(indices, -1)
        if not self.training:
            return Quantized(sums[-1], stacked)
        losses = {}
        if self.config.commitment:
            apart = torch.stack([mse_loss(z, partial) for partial in sums[1:]])
            losses["commitment"] = self.config.beta * apart.mean()
        codes = torch.stack([book.codes for book in self.books if isinstance(book, EMACodebook)])
        diagnostics = {**norms(z, codes), "residual_rms": (z.detach() - sums[-1]).square().mean().sqrt()}
        if not at_once:
            shares = self._update_all(residuals, indices)
        if self.config.restart:
            diagnostics["restarted"] = torch.stack(shares).mean()
        return Quantized(straight_through(z, sums[-1]), stacked, losses, diagnostics=diagnostics)

    def _update(self, level: int, residuals: list[Tensor], indices: list[Tensor]) -> Tensor:
        rows = torch.cat([as_rows(part) for part in residuals])
        chosen = torch.cat([part.flatten() for part in indices])
        return self._book(level).update(rows, chosen, self.config.restart_below if self.config.restart else 0.0)

    def _update_all(self, residuals: list[Tensor], indices: list[Tensor]) -> list[Tensor]:
        if self.config.shared:
            return [self._update(0, residuals, indices)]
        return [self._update(level, *([part[level]] for part in (residuals, indices))) for level in range(len(indices))]

    def partial_latents(self, indices: Tensor) -> Tensor:
        """(B, h, w, L) indices to (L, B, d, h, w): what the first one, two … L levels add up to."""
        sums = [torch.zeros((), device=indices.device)]
        for level in range(self.num_codebooks):
            sums.append(sums[-1] + look_up(indices[..., level], self._book(level).codes))
        return torch.stack(sums[1:])

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w, L) indices, or (B, h, w) of one level, to (B, d, h, w) sums of codes."""
        return self.partial_latents(indices if indices.ndim == 4 else indices[..., None])[-1]
