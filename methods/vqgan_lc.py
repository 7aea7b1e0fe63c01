"""VQGAN-LC: a frozen codebook of pretrained features. Paper: https://arxiv.org/abs/2406.11837."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from vqbench.methods.codebook import (
    BetaOn,
    check_codebook,
    check_weight,
    look_up,
    mapped,
    norms,
    quantize,
    straight_through,
    vq_losses,
)
from vqbench.methods.vaevq_paper import baseline
from vqbench.quantizer import (
    Artifact,
    Choices,
    GradientRoutes,
    Published,
    Quantized,
    Quantizer,
    Range,
    full_precision,
)
from vqbench.registry import METHODS

_CHANNELS = 768  # of Inception's Mixed_6e; of the paper's CLIP ViT-L/14 too, by chance
_PRETRAINED = {"part_of": "pretrained"}


def _table(value: float, downsampling: int, codes: int) -> Published:
    where = f"ImageNet 256 px validation images, f {downsampling}, K {codes}, d 8, centres of CLIP features, clean-fid"
    return Published("rfid", value, where, "the paper", ("released",))


@METHODS.register("vqgan_lc")
class VQGANLC(Quantizer):
    """Scaling the codebook size of VQGAN to 100,000 with a utilization rate of 99%
    (Zhu et al., 2024, arXiv:2406.11837).

    The codes are a learned linear map of vectors that stay what they are: centres of the patch features that a
    pretrained network has of training images, so that each stands for something that occurs. The paper's network is
    CLIP; here it is the Inception that rFID needs anyway, or `centres` names a file of vectors, CLIP's for example.
    Where neither can be had (`vqbench check`, the features track) normal random vectors stand for them.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `vqgan_lc`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a code, d; the authors' is 8 (`@released`)."""
        pretrained: bool = field(default=True, metadata={"component": "pretrained"})
        """Centres of pretrained features; without it vectors drawn from N(0, 1)."""
        frozen: bool = field(default=True, metadata={"component": "frozen"})
        """Whether the vectors under the map stay as they are, or learn too."""
        centres: str = field(default="", metadata=_PRETRAINED)
        """A .npy file of K vectors, (K, channels); empty for centres of Inception's features."""
        channels: int = field(default=_CHANNELS, metadata=_PRETRAINED)
        """Channels of the centres: 768 unless a file has others."""
        images: int = field(default=512, metadata=_PRETRAINED)
        """Training images, at most, whose patches are clustered; 289 patches each."""
        beta: float = 0.33
        """Weight of the term that beta_on names; the other term has weight 1."""
        beta_on: BetaOn = "codebook"
        """Which term beta weights: codebook, from which alone the map learns, as in the authors' code."""
        weight: float = 0.1
        """Weight of both terms together (the authors' rate_q)."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("beta", self.beta)
            check_weight("weight", self.weight)
            if self.channels < 1:
                raise ValueError(f"channels must be at least 1, not {self.channels}")
            if self.channels != _CHANNELS and not self.centres:
                raise ValueError(f"channels is {_CHANNELS} without a file of centres, not {self.channels}")
            if self.images < 1:
                raise ValueError(f"images must be at least 1, not {self.images}")

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"released": {"dim": 8}}

    published: ClassVar[tuple[Published, ...]] = (
        _table(4.97, 16, 1024),
        _table(3.01, 16, 16384),
        _table(2.75, 16, 50000),
        _table(2.62, 16, 100000),
        _table(1.29, 8, 100000),
        *baseline("rfid", 3.52, 9.78),
        *baseline("psnr", 21.48, 26.59),
        *baseline("ssim", 0.62, 0.89),
    )

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),  # as vqgan's
        "weight": Range(0.1, 1.0, log=True, group="losses"),
    }

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        vectors = torch.randn(config.codebook_size, config.channels)
        self.embedding = nn.Parameter(vectors, requires_grad=not config.frozen)
        self.projection = nn.Linear(config.channels, config.dim)
        nn.init.normal_(self.projection.weight, std=config.dim**-0.5)

    @classmethod
    def artifact(cls, config: Config) -> Artifact | None:
        """The centres; None where the vectors are random ones."""
        if not config.pretrained:
            return None
        shape = (config.codebook_size, config.channels)
        if config.centres:
            return Artifact("file", shape, path=config.centres, field="centres")
        return Artifact("patch_centres", shape, images=config.images)

    @torch.no_grad()
    def receive(self, artifact: Tensor) -> None:
        """Centres (K, channels) take the place of the random vectors."""
        self.embedding.copy_(artifact)

    @property
    def codebook(self) -> Tensor:
        """(K, d) effective code vectors, after the map."""
        with torch.no_grad(), torch.autocast(self.embedding.device.type, enabled=False):
            return mapped(self.embedding, self.projection).detach()

    @property
    def gradient_routes(self) -> GradientRoutes:
        """As vqgan's; what learns is the map, from the codebook term."""
        c = self.config
        commits, moves = c.beta > 0 or c.beta_on == "codebook", c.beta > 0 or c.beta_on == "commitment"
        return GradientRoutes(True, False, commits and c.weight > 0, moves and c.weight > 0)

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to its nearest codes; losses in training only."""
        codes = mapped(self.embedding, self.projection)
        z_q, indices = quantize(z, codes)
        if not self.training:
            return Quantized(z_q, indices)
        terms = vq_losses(z, z_q, self.config.beta, self.config.beta_on)
        losses = {name: self.config.weight * term for name, term in terms.items()}
        return Quantized(straight_through(z, z_q), indices, losses, diagnostics=norms(z, codes))

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) effective codes, after the map."""
        return look_up(indices, mapped(self.embedding, self.projection))
