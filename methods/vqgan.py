"""VQGAN's quantizer. Paper: https://arxiv.org/abs/2012.09841."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from vqbench.methods.codebook import (
    BetaOn,
    Init,
    check_codebook,
    check_weight,
    initial_codebook,
    look_up,
    norms,
    quantize,
    vq_losses,
)
from vqbench.methods.estimators import Estimator, estimate
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS


def _released(value: float, measured_on: str) -> Published:
    """An rFID of the authors' README; its models have beta on the codebook term, as the preset `legacy`."""
    where = f"{measured_on}, torch-fidelity; released model, trained as vqgan@legacy"
    return Published("rfid", value, where, "README of taming-transformers", ("", "legacy"))


def _rotation(value: float, latents: str) -> Published:
    """An rFID of the rotation trick's paper; its usages are per batch, which ours is not."""
    where = f"ImageNet 256 px validation images, {latents}; of the 8-bit images that their script truncates"
    return Published("rfid", value, where, "rotation trick paper", ("rotation", "rotation_released"))


@METHODS.register("vqgan")
class VQGAN(Quantizer):
    """Taming transformers for high-resolution image synthesis (Esser et al., 2021, arXiv:2012.09841).

    The nearest code in Euclidean distance, straight-through gradient, codebook trained by gradient descent.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `vqgan`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a code, d."""
        beta: float = 0.25
        """Weight of the term that beta_on names; the other term has weight 1."""
        beta_on: BetaOn = "commitment"
        """Which term beta weights: commitment is the paper, codebook the authors' released models."""
        init: Init = "uniform"
        """Start of the codes: uniform in ±1/K (the authors'), normal N(0, 1/d), or unit_normal N(0, 1)."""
        estimator: Estimator = field(default="straight_through", metadata={"added_later": True})
        """Decoder's gradient: as it stands, or turned with the latent to its code, in one of two official forms."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("beta", self.beta)

    # The released models were trained with beta on the other term than the paper says (taming-transformers, PR 58).
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "legacy": {"beta_on": "codebook"},
        # The rotation trick (arXiv:2410.06424) as its paper has it, and as its authors trained VQGANs with it.
        "rotation": {"estimator": "rotation"},
        "rotation_released": {"estimator": "rotation_vqgan", "beta_on": "codebook"},
    }

    published: ClassVar[tuple[Published, ...]] = (
        _released(7.94, "ImageNet 256 px validation images, f 16, K 1024"),
        _released(4.98, "ImageNet 256 px validation images, f 16, K 16384"),
        _rotation(4.6, "f 16, K 1024"),
        _rotation(1.1, "32 × 32 × 4, K 16384"),
        _rotation(0.27, "64 × 64 × 3, K 8192"),
    )

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),  # within which VQ-VAE (arXiv:1711.00937) saw no difference
        "init": Choices(("uniform", "normal", "unit_normal"), group="codebook"),
    }

    config: Config

    @classmethod
    def remark(cls, config: Config) -> str:
        """A rotation scales the gradient by the code's norm over the latent's, which is next to nothing at first."""
        if config.estimator != "straight_through" and config.init == "uniform":
            return f"codes start near 0 with init=uniform: {config.estimator} then hands the encoder little gradient"
        return ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        self.embedding = nn.Parameter(initial_codebook(config.codebook_size, config.dim, config.init))

    @property
    def codebook(self) -> Tensor:
        """(K, d) code vectors."""
        return self.embedding.detach()

    @property
    def gradient_routes(self) -> GradientRoutes:
        """The decoder's gradient passes to z; codes learn from the codebook term alone."""
        beta, on = self.config.beta, self.config.beta_on
        return GradientRoutes(
            decoder_to_input=True,
            decoder_to_parameters=False,
            losses_to_input=beta > 0 or on == "codebook",
            losses_to_parameters=beta > 0 or on == "commitment",
        )

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to its nearest codes; losses in training only."""
        z_q, indices = quantize(z, self.embedding)  # eq. 2
        if not self.training:
            return Quantized(z_q, indices)
        losses = vq_losses(z, z_q, self.config.beta, self.config.beta_on)  # eq. 4, its last two terms
        latents = estimate(z, z_q, self.config.estimator)
        return Quantized(latents, indices, losses, diagnostics=norms(z, self.embedding))

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) codes."""
        return look_up(indices, self.embedding)
