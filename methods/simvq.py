"""SimVQ: a frozen codebook under one linear map. Paper: https://arxiv.org/abs/2411.02038."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from vqbench.methods.codebook import (
    BetaOn,
    Init,
    check_codebook,
    check_weight,
    initial_codebook,
    look_up,
    mapped,
    norms,
    quantize,
    vq_losses,
)
from vqbench.methods.estimators import Estimator, estimate
from vqbench.methods.vaevq_paper import baseline
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

_PROJECTION = {"part_of": "projection"}


def _table_1(codes: str, rfid: float, psnr: float, ssim: float) -> tuple[Published, ...]:
    where = f"ImageNet 128 px validation images, f 8, K {codes}"
    source = "table 1 of the paper"
    return (
        Published("rfid", rfid, where, source),
        Published("psnr", psnr, where, source),
        Published("ssim", ssim, where, source),
        Published("usage", 1.0, where, source),
    )


@METHODS.register("simvq")
class SimVQ(Quantizer):
    """Addressing representation collapse in vector quantized models with one linear layer
    (Zhu et al., 2024, arXiv:2411.02038).

    The codes are a learned linear map W e + b of vectors e that stay as they were drawn: each step moves all codes,
    also those that no latent chose. From an index to its code the way goes through the map too (the authors'
    `get_codebook_entry` leaves it out). Without `projection` the vectors themselves learn, and it is `vqgan` with
    `init=normal`.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `simvq`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a code, d."""
        projection: bool = field(default=True, metadata={"component": "projection"})
        """Codes as a learned linear map of the vectors; without it they are the vectors, which then learn."""
        frozen: bool = field(default=True, metadata=_PROJECTION)
        """Whether the vectors under the map stay as they were drawn."""
        bias: bool = field(default=True, metadata=_PROJECTION)
        """Whether the map has a bias, as the authors' has; vector-quantize-pytorch's has none."""
        beta: float = 0.25
        """Weight of the term that beta_on names; the other term has weight 1."""
        beta_on: BetaOn = "commitment"
        """Which term beta weights."""
        estimator: Estimator = "straight_through"
        """Decoder's gradient: as it stands, or turned with the latent to its code, in one of two official forms."""
        init: Init = "normal"
        """Draw of the vectors: normal N(0, 1/d) (the authors'), unit_normal N(0, 1), or uniform in ±1/K."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("beta", self.beta)

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # vector-quantize-pytorch's form of it
        "rotation": {"bias": False, "estimator": "rotation"},
    }

    published: ClassVar[tuple[Published, ...]] = (
        *_table_1("1024", 3.67, 22.34, 0.708),
        *_table_1("8192", 2.98, 23.23, 0.747),
        *_table_1("65536", 2.24, 24.15, 0.784),
        *_table_1("262144", 1.99, 24.68, 0.803),
        *baseline("rfid", 1.86, 4.36),
        *baseline("psnr", 22.02, 29.82),
        *baseline("ssim", 0.66, 0.93),
    )

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),  # as vqgan's
        "frozen": Choices((True, False), group="codebook"),  # the authors say that both train
        "init": Choices(("uniform", "normal", "unit_normal"), group="codebook"),
    }

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        drawn = initial_codebook(config.codebook_size, config.dim, config.init)
        self.embedding = nn.Parameter(drawn, requires_grad=not (config.projection and config.frozen))
        self.projection = nn.Linear(config.dim, config.dim, config.bias) if config.projection else None

    @property
    def codebook(self) -> Tensor:
        """(K, d) effective code vectors, after the map."""
        with torch.no_grad(), torch.autocast(self.embedding.device.type, enabled=False):
            return mapped(self.embedding, self.projection).detach()

    @property
    def gradient_routes(self) -> GradientRoutes:
        """As vqgan's; what learns is the map."""
        beta, on = self.config.beta, self.config.beta_on
        return GradientRoutes(True, False, beta > 0 or on == "codebook", beta > 0 or on == "commitment")

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to its nearest codes; losses in training only."""
        codes = mapped(self.embedding, self.projection)
        z_q, indices = quantize(z, codes)
        if not self.training:
            return Quantized(z_q, indices)
        losses = vq_losses(z, z_q, self.config.beta, self.config.beta_on)
        return Quantized(estimate(z, z_q, self.config.estimator), indices, losses, diagnostics=norms(z, codes))

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) effective codes, after the map."""
        return look_up(indices, mapped(self.embedding, self.projection))
