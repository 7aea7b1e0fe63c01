"""Binary spherical quantization. Paper: https://arxiv.org/abs/2406.07548."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from vqbench.methods.bits import SignQuantizer, check_bits, indices_of, joint_bits
from vqbench.methods.codebook import as_rows, check_weight, straight_through
from vqbench.methods.entropy import Entropies, bit_entropies
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Range, full_precision
from vqbench.registry import METHODS

ENTROPY_EPS = 1e-8  # the authors', under the logarithm of mean probabilities

_ENTROPY = {"part_of": "entropy"}


def _authors(metric: str, value: float, weights: str) -> Published:
    where = f"ImageNet 256 px validation images (Lanczos), 32×32 tokens of 18 bits, {weights}"
    return Published(metric, value, where, "bsq-vit, whose authors trained a ViT for 1M steps with a GAN")


@METHODS.register("bsq")
class BSQ(SignQuantizer):
    """Image and video tokenization with binary spherical quantization (Zhao et al., 2024, arXiv:2406.07548).

    Each token is a unit vector, its code the signs of it over √d. No parameters; entropy terms keep all codes in use.
    As in the authors' code, channel 0 is the highest bit of an index, a channel of exactly 0 is negative, and the
    straight-through gradient passes before the division, so z gets 1 / √d of it.

    The authors name two ways to take the entropies. "analytical" is per bit, `entropy_group` 1, whatever their group
    size says; "group" is `entropy_group` bits together. The per-sample entropy is the same in both. Their trainer
    begins with three times the weight, for 2000 steps: that is left out.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `bsq`."""

        bits: int = 9
        """Channels of a token, d, each one bit: 2^bits codes."""
        spherical: bool = field(default=True, metadata={"component": "spherical"})
        """Normalise z, and codes to length 1; without, z is as it comes and codes are ±1."""
        entropy: bool = field(default=True, metadata={"component": "entropy"})
        """Draw each token to one code, and all tokens together to all codes."""
        entropy_weight: float = field(default=0.1, metadata=_ENTROPY)
        """Weight of the entropy terms over inverse_temperature (the authors' zeta, and their weight of all losses)."""
        per_sample_weight: float = field(default=1.0, metadata=_ENTROPY)
        """Weight of the per-sample entropy (gamma0)."""
        diversity: float = field(default=1.0, metadata=_ENTROPY)
        """Weight of the codebook entropy (gamma)."""
        inverse_temperature: float = field(default=1.0, metadata=_ENTROPY)
        """Of the softmax over 2 z·c that the entropies are of; the terms are divided by it."""
        entropy_group: int = field(default=1, metadata=_ENTROPY)
        """Bits of a group in the codebook entropy: 1 as released; 0: all together (more than 20, in equal groups)."""
        commitment: bool = field(default=False, metadata={"component": "commitment"})
        """Draw z to its code; off as released."""
        beta: float = field(default=0.25, metadata={"part_of": "commitment"})
        """Weight of the commitment, summed over channels."""

        def __post_init__(self) -> None:
            check_bits(self.bits, self.entropy_group)
            for name in ("entropy_weight", "per_sample_weight", "diversity", "beta"):
                check_weight(name, getattr(self, name))
            if not self.inverse_temperature > 0:
                raise ValueError(f"inverse_temperature must be positive, not {self.inverse_temperature}")

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The codebook entropy of all codes together, which the authors' groups come near to.
        "joint": {"entropy_group": 0},
    }

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "entropy_weight": Range(0.01, 1.0, log=True, group="losses"),  # a decade on either side of the authors'
        "beta": Range(0.05, 1.0, log=True, group="losses"),
        "inverse_temperature": Range(0.3, 100.0, log=True, group="latent"),
    }

    published: ClassVar[tuple[Published, ...]] = (
        _authors("rfid", 1.34, "weights as trained"),
        _authors("rfid", 1.23, "averaged weights"),
        _authors("psnr", 24.8, "weights as trained or averaged, not said"),
        _authors("rfid", 1.14, "with the per-bit entropy, weights as trained or averaged, not said"),
    )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, "first_highest")

    @property
    def gradient_routes(self) -> GradientRoutes:
        """Straight-through signs; entropies and commitment reach z, and there are no parameters."""
        c = self.config
        moved = c.entropy_weight > 0 and (c.per_sample_weight > 0 or c.diversity > 0)
        return GradientRoutes(True, False, (c.entropy and moved) or (c.commitment and c.beta > 0), False)

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, bits, h, w) to the signs of its unit vector."""
        config = self.config
        z = normalize(z, dim=1) if config.spherical else z
        indices = indices_of(z, self.places)
        codes: Tensor = self.decode_indices(indices)
        if not self.training:
            return Quantized(codes, indices)
        losses, diagnostics = {}, {}
        if config.entropy:
            found = self.entropies(as_rows(z))
            penalty = config.per_sample_weight * found.per_sample - config.diversity * found.codebook
            losses["entropy"] = config.entropy_weight * penalty / config.inverse_temperature
            diagnostics = {f"{name}_entropy": value.detach() for name, value in found._asdict().items()}
        if config.commitment:
            losses["commitment"] = config.beta * (z - codes).square().sum(1).mean()
        return Quantized(straight_through(self.scale * z, codes), indices, losses, diagnostics=diagnostics)

    def entropies(self, rows: Tensor) -> Entropies:
        """Of softmax(2 z·c · inverse_temperature): the logits of a bit's two values are 4 z s / temperature apart."""
        log_odds = 4 * self.scale * self.config.inverse_temperature * rows
        group = joint_bits(self.config.bits, self.config.entropy_group)
        return bit_entropies(log_odds, group, eps=ENTROPY_EPS)
