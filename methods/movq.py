"""MoVQ: a decoder whose norms are modulated by the codes. Paper: https://arxiv.org/abs/2209.09002."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vqbench.methods.codebook import (
    BetaOn,
    Init,
    check_codebook,
    check_weight,
    initial_codebook,
    look_up,
    norms,
    quantize,
    straight_through,
    vq_losses,
)
from vqbench.methods.vaevq_paper import baseline
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

_MODULATION = {"part_of": "modulation"}


def _sber(metric: str, value: float, parameters: str) -> Published:
    where = f"ImageNet 256 px, f 8, K 16384, d 4, {parameters} parameters; its protocol is not stated"
    return Published(metric, value, where, "README of ai-forever/MoVQGAN, an implementation by others", ("released",))


def _of_paper(metric: str, value: float) -> Published:
    where = "ImageNet 256 px validation images, 16 × 16 × 4 codes, K 1024 for all chunks"
    return Published(metric, value, where, "the paper", ("paper",))


class SpatialModulation(nn.Module):
    """Scale and shift of each place, linear in the latent that lies there, of what a norm has made."""

    def __init__(self, latent_channels: int, channels: int, has_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1) if has_conv else None
        self.scale, self.shift = (nn.Conv2d(latent_channels, channels, 1) for _ in range(2))

    def forward(self, normalised: Tensor, latents: Tensor) -> Tensor:
        """(B, channels, H, W), and latents (B, latent_channels, h, w) → (B, channels, H, W)."""
        side = normalised.shape[2:]
        if self.conv is not None:
            latents = self.conv(interpolate(latents, side))
        # a 1×1 convolution of what was repeated is the repeated convolution, for a fraction of the work
        scale, shift = (interpolate(of(latents), side) for of in (self.scale, self.shift))
        return normalised * scale + shift


@METHODS.register("movq")
class MoVQ(Quantizer):
    """MoVQ: modulating quantized vectors for high-fidelity image generation (Zheng et al., 2022, arXiv:2209.09002).

    The look-up is `vqgan`'s. What is new is in the decoder, all of whose norms are scaled and shifted, place by place,
    by linear maps of the codes there; those maps are parameters of the decoder. The paper also cuts a token into
    chunks that share one codebook (`@paper`), and then has several indices a token. The authors released no code;
    `@released` is the implementation of others (ai-forever/MoVQGAN), without chunks.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `movq`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a token, d; a code has d / chunks."""
        modulation: bool = field(default=True, metadata={"component": "modulation"})
        """Norms of the decoder are scaled and shifted by the codes at their place."""
        modulation_conv: bool = field(default=False, metadata=_MODULATION)
        """A 3×3 convolution of the codes, at the size of each norm, before they modulate it (an option as released)."""
        chunks: int = 1
        """Parts of a token that are looked up in the one codebook each: K to this power codes a token."""
        beta: float = 0.25
        """Weight of the term that beta_on names; the other term has weight 1."""
        beta_on: BetaOn = "commitment"
        """Which term beta weights: commitment is the paper, codebook the implementation that is released."""
        init: Init = "uniform"
        """Start of the codes: uniform in ±1/K, normal N(0, 1/d), or unit_normal N(0, 1)."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("beta", self.beta)
            if self.chunks < 1 or self.dim % self.chunks:
                raise ValueError(f"chunks must divide dim, {self.dim}, into equal parts: {self.chunks} does not")

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "paper": {"chunks": 4},
        "released": {"beta_on": "codebook"},
    }

    published: ClassVar[tuple[Published, ...]] = (
        _of_paper("rfid", 1.12),
        _of_paper("psnr", 22.42),
        _of_paper("ssim", 0.673),
        _sber("rfid", 0.965, "67M"),
        _sber("rfid", 0.776, "102M"),
        _sber("rfid", 0.686, "270M"),
        *baseline("rfid", 4.49, 8.91),
        *baseline("psnr", 21.12, 25.33),
        *baseline("ssim", 0.57, 0.85),
    )

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),  # as vqgan's
        "init": Choices(("uniform", "normal", "unit_normal"), group="codebook"),
    }

    config: Config

    @classmethod
    def remark(cls, config: Config) -> str:
        """Chunks multiply the bits of a token, and `matched` counts on one."""
        if config.chunks == 1:
            return ""
        messages = (
            f"{config.chunks} chunks of {config.codebook_size} codes make {config.codebook_size**config.chunks:,}"
        )
        return f"{messages} messages of a token: codebook_size is that of one chunk, set it beside chunks"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size, self.num_codebooks = config.codebook_size, config.chunks
        self.in_channels = self.out_channels = config.dim
        codes = initial_codebook(config.codebook_size, config.dim // config.chunks, config.init)
        self.embedding = nn.Parameter(codes)

    def decoder_modulation(self, channels: int) -> nn.Module | None:
        """Scale and shift by the codes (spatially conditional normalisation); None where `modulation` is off."""
        if not self.config.modulation:
            return None
        return SpatialModulation(self.out_channels, channels, self.config.modulation_conv)

    @property
    def codebook(self) -> Tensor | None:
        """(K, d) code vectors; None where a token has several of them."""
        return self.embedding.detach() if self.num_codebooks == 1 else None

    @property
    def gradient_routes(self) -> GradientRoutes:
        """The decoder's gradient passes to z, that of its norms too; codes learn from the codebook term alone."""
        beta, on = self.config.beta, self.config.beta_on
        return GradientRoutes(True, False, beta > 0 or on == "codebook", beta > 0 or on == "commitment")

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to its nearest codes, indices (B, h, w), or (B, h, w, G) for G chunks; losses in training."""
        chunks = self.config.chunks
        z_q, indices = quantize(z.reshape(-1, z.shape[1] // chunks, *z.shape[2:]), self.embedding)
        z_q = z_q.view(z.shape)
        if chunks > 1:
            indices = indices.view(-1, chunks, *indices.shape[1:]).movedim(1, -1)
        if not self.training:
            return Quantized(z_q, indices)
        losses = vq_losses(z, z_q, self.config.beta, self.config.beta_on)
        return Quantized(straight_through(z, z_q), indices, losses, diagnostics=norms(z, self.embedding))

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices as `forward` gave them to (B, d, h, w) codes."""
        if self.num_codebooks == 1:
            return look_up(indices, self.embedding)
        each = torch.stack([look_up(part, self.embedding) for part in indices.unbind(-1)], 1)  # (B, G, d / G, h, w)
        return each.flatten(1, 2)
