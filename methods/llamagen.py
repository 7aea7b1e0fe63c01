"""VQGAN-FC, the quantizer of LlamaGen. Papers: https://arxiv.org/abs/2110.04627 and https://arxiv.org/abs/2406.06525."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import normalize

from vqbench.methods.codebook import (
    BetaOn,
    Init,
    as_rows,
    check_codebook,
    check_weight,
    initial_codebook,
    look_up,
    norms,
    quantize,
    straight_through,
    vq_losses,
)
from vqbench.methods.entropy import Entropies, assign, entropy_of
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

DIM = 8  # the authors', of every size of codebook

_ENTROPY = {"part_of": "entropy"}
_LC = "VQGAN-LC's table, whose authors trained VQGAN-FC"


def _authors(metric: str, value: float, downsampling: int, more: str = "") -> Published:
    where = f"ImageNet 256 px validation images, f {downsampling}, K 16384, d 8, evaluator of guided diffusion{more}"
    return Published(metric, value, where, "LlamaGen, trained for 40 epochs with a GAN")


def _lc(value: float, codes: int) -> Published:
    return Published("rfid", value, f"ImageNet 256 px validation images, f 16, K {codes}, d 8, clean-fid", _LC)


@METHODS.register("llamagen")
class LlamaGen(Quantizer):
    """Autoregressive model beats diffusion: Llama for scalable image generation (Sun et al., 2024, arXiv:2406.06525).

    VQGAN with factorized codes (Yu et al., 2021): few channels, and latents and codes of length 1, so that the nearest
    code is the one of the largest cosine. The decoder gets the unit code. The entropy terms are off, as released.

    A narrow code is what the method is, so of a recipe's `codebook_dim` it takes no more than 8 channels;
    `--set llamagen.dim=…` gives it others.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `llamagen`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = DIM
        """Channels of a code, d; a recipe's codebook_dim is taken up to 8."""
        normalise: bool = field(default=True, metadata={"component": "normalise"})
        """Latents and codes of length 1 wherever they meet."""
        beta: float = 0.25
        """Weight of the term that beta_on names; the other term has weight 1."""
        beta_on: BetaOn = "commitment"
        """Which term beta weights; the authors' is commitment, as in the paper of VQ-VAE."""
        entropy: bool = field(default=False, metadata={"component": "entropy"})
        """Draw each token to one code, and all tokens together to all codes."""
        entropy_weight: float = field(default=0.1, metadata=_ENTROPY)
        """Weight of the entropy terms, per-sample less codebook entropy, in nats."""
        temperature: float = field(default=0.01, metadata=_ENTROPY)
        """Of the softmax over −|z − e|² that the entropies are of."""
        init: Init = "uniform"
        """Start of the codes: uniform in ±1/K (the authors'), normal N(0, 1/d), or unit_normal N(0, 1); normalised."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("beta", self.beta)
            check_weight("entropy_weight", self.entropy_weight)
            if not self.temperature > 0:
                raise ValueError(f"temperature must be positive, not {self.temperature}")

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"entropy": {"entropy": True}}

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),
        "entropy_weight": Range(0.01, 1.0, log=True, group="losses"),
        "init": Choices(("uniform", "normal", "unit_normal"), group="codebook"),
    }

    published: ClassVar[tuple[Published, ...]] = (
        _authors("rfid", 2.19, 16),
        _authors("psnr", 20.79, 16),
        _authors("ssim", 0.675, 16, "; its data range is twice the images', which makes it higher"),
        _authors("usage", 0.97, 16, "; of the last 65,536 tokens"),
        _authors("rfid", 0.59, 8),
        _lc(4.82, 1024),
        _lc(4.29, 16384),
        _lc(4.96, 50000),
        _lc(4.65, 100000),
        Published(
            "rfid",
            2.63,
            "ImageNet 128 px validation images, f 8, K 65536",
            "table of the SimVQ paper, whose authors trained VQGAN-FC",
        ),
    )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        codes = initial_codebook(config.codebook_size, config.dim, config.init)
        self.embedding = nn.Parameter(normalize(codes, dim=1) if config.normalise else codes)

    @classmethod
    def matched(cls, codebook_size: int, dim: int) -> dict[str, object]:
        """The size as asked for, and at most 8 channels: a wider code would be another method."""
        return {"codebook_size": codebook_size, "dim": min(dim, DIM)}

    def _codes(self) -> Tensor:
        return normalize(self.embedding, dim=1) if self.config.normalise else self.embedding

    @property
    def codebook(self) -> Tensor:
        """(K, d) effective code vectors, of length 1 where they are normalised."""
        return self._codes().detach()

    @property
    def gradient_routes(self) -> GradientRoutes:
        """Those of vqgan; the entropies reach both."""
        c = self.config
        entropy = c.entropy and c.entropy_weight > 0
        return GradientRoutes(
            decoder_to_input=True,
            decoder_to_parameters=False,
            losses_to_input=c.beta > 0 or c.beta_on == "codebook" or entropy,
            losses_to_parameters=c.beta > 0 or c.beta_on == "commitment" or entropy,
        )

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to the codes of the largest cosine; losses in training only."""
        config, codes = self.config, self._codes()
        unit = normalize(z, dim=1) if config.normalise else z
        z_q, indices = quantize(unit, codes)
        if not self.training:
            return Quantized(z_q, indices)
        losses, diagnostics = vq_losses(unit, z_q, config.beta, config.beta_on), norms(unit, codes)
        if config.entropy:
            found = self.entropies(as_rows(unit), codes)
            losses["entropy"] = config.entropy_weight * (found.per_sample - found.codebook)
            diagnostics |= {f"{name}_entropy": value.detach() for name, value in found._asdict().items()}
        return Quantized(straight_through(unit, z_q), indices, losses, diagnostics=diagnostics)

    def entropies(self, rows: Tensor, codes: Tensor) -> Entropies:
        """Of softmax(−|z − e|² / temperature), in which |z|² is the same for all codes."""
        temperature = self.config.temperature
        bias = -codes.square().sum(1) / temperature
        found = assign(2 / temperature * rows, codes, bias, entropy_temperature=1.0)
        return Entropies(found.per_sample, entropy_of(found.mean))

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) codes, of length 1 where they are normalised."""
        return look_up(indices, self._codes())
