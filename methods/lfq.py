"""Lookup-free quantization. Paper: https://arxiv.org/abs/2310.05737."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from vqbench.methods.bits import (
    BitOrder,
    SignQuantizer,
    all_codes,
    bit_places,
    check_bits,
    indices_of,
    joint_bits,
)
from vqbench.methods.codebook import as_rows, check_weight, straight_through
from vqbench.methods.entropy import Entropies, Logarithm, assign, bit_entropies, entropy_of
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Range, full_precision
from vqbench.registry import METHODS

MAX_CLAMPED_BITS = 14  # where each code of each token has to be looked at

_MAGVIT = "README of Open-MAGVIT2, whose authors trained it for 270 epochs with a GAN"
_ENTROPY = {"part_of": "entropy"}


def _magvit(metric: str, value: float, px: int) -> Published:
    return Published(metric, value, f"ImageNet {px} px validation images, f 16, K 262144", _MAGVIT)


@METHODS.register("lfq")
class LFQ(SignQuantizer):
    """Language model beats diffusion: tokenizer is key to visual generation (Yu et al., 2023, arXiv:2310.05737).

    Lookup-free: each channel is one bit, its sign. No parameters; entropy terms keep all codes in use. As in
    Open-MAGVIT2, channel 0 is the lowest bit of an index (`bit_order`), and a channel of exactly 0 is −1.

    The joint codebook entropy of 2^18 codes needs no matrix of tokens by codes: a token's probabilities are a product
    over its bits (`vqbench.methods.entropy`).
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `lfq`."""

        bits: int = 9
        """Channels of a token, each one bit: 2^bits codes."""
        entropy: bool = field(default=True, metadata={"component": "entropy"})
        """Draw each token to one code, and all tokens together to all codes."""
        entropy_weight: float = field(default=0.1, metadata=_ENTROPY)
        """Weight of the entropy terms, per-sample less codebook entropy, in nats."""
        diversity: float = field(default=1.0, metadata=_ENTROPY)
        """Weight of the codebook entropy relative to the per-sample entropy."""
        temperature: float = field(default=0.01, metadata=_ENTROPY)
        """Of the softmax over 2 z·c that the entropies are of."""
        entropy_group: int = field(default=0, metadata=_ENTROPY)
        """Bits of a group in the codebook entropy; 0: the joint entropy (of more than 20 bits, in equal groups)."""
        entropy_logarithm: Logarithm = field(default="added", metadata=_ENTROPY)
        """Near p = 0: log(p + 1e-5) of mean probabilities, or log(max(p, 1e-5)) everywhere (lucidrains')."""
        commitment: bool = field(default=True, metadata={"component": "commitment"})
        """Draw z to its code."""
        beta: float = field(default=0.25, metadata={"part_of": "commitment"})
        """Weight of the commitment, a mean over all elements."""
        spherical: bool = False
        """Normalise z, and codes to length 1, as lucidrains' option; see `bsq` for the method of that kind."""
        bit_order: BitOrder = "first_lowest"
        """Whether channel 0 is the lowest bit of an index (Open-MAGVIT2) or the highest (lucidrains)."""

        def __post_init__(self) -> None:
            check_bits(self.bits, self.entropy_group)
            for name in ("entropy_weight", "diversity", "beta"):
                check_weight(name, getattr(self, name))
            if not self.temperature > 0:
                raise ValueError(f"temperature must be positive, not {self.temperature}")
            if self.entropy_logarithm == "clamped" and joint_bits(self.bits, self.entropy_group) > MAX_CLAMPED_BITS:
                raise ValueError(
                    f"entropy_logarithm=clamped looks at each code of each token, so entropy_group must be at most "
                    f"{MAX_CLAMPED_BITS} bits"
                )

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The defaults of vector-quantize-pytorch, which many have trained with.
        "lucidrains": {"commitment": False, "entropy_logarithm": "clamped", "bit_order": "first_highest"},
    }

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "entropy_weight": Range(0.01, 1.0, log=True, group="losses"),  # a decade on either side of the authors'
        "beta": Range(0.05, 1.0, log=True, group="losses"),
        "temperature": Range(0.003, 1.0, log=True, group="latent"),
    }

    published: ClassVar[tuple[Published, ...]] = (
        _magvit("rfid", 1.17, 256),
        _magvit("psnr", 21.90, 256),
        _magvit("usage", 1.0, 256),
        _magvit("rfid", 1.18, 128),
        _magvit("psnr", 25.08, 128),
        Published(
            "rfid",
            2.88,
            "ImageNet 128 px validation images, f 8, K 65536",
            "table of the SimVQ paper, whose authors trained it",
        ),
    )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.bit_order)

    @property
    def gradient_routes(self) -> GradientRoutes:
        """Straight-through signs; entropies and commitment reach z, and there are no parameters."""
        c = self.config
        drawn = (c.entropy and c.entropy_weight > 0) or (c.commitment and c.beta > 0)
        return GradientRoutes(True, False, drawn, False)

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, bits, h, w) to its signs."""
        config = self.config
        z = normalize(z, dim=1) if config.spherical else z
        indices = indices_of(z, self.places)
        codes: Tensor = self.decode_indices(indices)
        if not self.training:
            return Quantized(codes, indices)
        losses, diagnostics = {}, {"latent_rms": z.detach().square().mean().sqrt()}
        if config.entropy:
            found = self.entropies(as_rows(z))
            losses["entropy"] = config.entropy_weight * (found.per_sample - config.diversity * found.codebook)
            diagnostics |= {f"{name}_entropy": value.detach() for name, value in found._asdict().items()}
        if config.commitment:
            losses["commitment"] = config.beta * mse_loss(z, codes)
        return Quantized(straight_through(z, codes), indices, losses, diagnostics=diagnostics)

    def entropies(self, rows: Tensor) -> Entropies:
        """Of softmax(2 z·c / temperature): the logits of a bit's two values are 4 z s / temperature apart, ±s."""
        config = self.config
        log_odds, group = 4 * self.scale / config.temperature * rows, joint_bits(config.bits, config.entropy_group)
        if config.entropy_logarithm == "added":
            return bit_entropies(log_odds, group)
        per_sample, codebook = [], []
        for part in torch.split(log_odds, group, 1):  # a clamp under the logarithm is no sum over bits
            signs = all_codes(bit_places(part.shape[1], "first_highest").to(part.device))
            found = assign(part / 2, signs, entropy_temperature=1.0, floor=1e-5)
            per_sample.append(found.per_sample)
            codebook.append(entropy_of(found.mean, "clamped"))
        return Entropies(torch.stack(per_sample).sum(), torch.stack(codebook).sum())
