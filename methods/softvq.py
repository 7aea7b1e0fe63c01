"""SoftVQ, and the discrete code that it is compared by. Paper: https://arxiv.org/abs/2412.10958."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqbench.methods.codebook import (
    Init,
    check_codebook,
    check_weight,
    initial_codebook,
    norms,
)
from vqbench.methods.entropy import Assignment, assign, entropy_of
from vqbench.quantizer import Choices, GradientRoutes, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

ENTROPY_EPS = 1e-6  # the authors', under the logarithm of mean probabilities

_ENTROPY = {"part_of": "entropy"}


@METHODS.register("softvq")
class SoftVQ(Quantizer):
    """SoftVQ-VAE: efficient 1-dimensional continuous tokenizer (Chen et al., 2024, arXiv:2412.10958).

    Training hands the decoder a mixture of all codes, weighted by a softmax over cosines: no discrete code. What is
    scored is the code of the largest weight, which the decoder was never trained on; `psnr_continuous` and
    `rfid_continuous` are of the mixture, which is what the paper reports. Indices are (B, h, w) in the order of z: the
    authors' are mixed up between images where there is more than one codebook.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `softvq`."""

        codebook_size: int = 512
        """Number of codes of each codebook, K."""
        dim: int = 64
        """Channels of a code, d."""
        splits: int = 1
        """Codebooks: the tokens of an image, row by row, are cut into so many equal parts, each with its own."""
        temperature: float = 0.07
        """Of the softmax that weights the codes (tau)."""
        normalise: bool = field(default=True, metadata={"component": "normalise"})
        """Latents and codes of length 1 where they meet; the default of the authors' model, not of their class."""
        entropy: bool = field(default=True, metadata={"component": "entropy"})
        """Draw each token to one code, and all tokens together to all codes; moves z, not the codes."""
        entropy_weight: float = field(default=0.01, metadata=_ENTROPY)
        """Weight of the entropy terms, per-sample less codebook entropy, in nats."""
        entropy_temperature: float = field(default=0.01, metadata=_ENTROPY)
        """Of the softmax that the entropies are of."""
        init: Init = "uniform"
        """Start of the codes: uniform in ±1/K (the authors'), normal N(0, 1/d), or unit_normal N(0, 1); normalised."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("entropy_weight", self.entropy_weight)
            for name in ("temperature", "entropy_temperature"):
                if not 0 < getattr(self, name) < math.inf:
                    raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
            if self.splits < 1:
                raise ValueError(f"splits must be at least 1, not {self.splits}")

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "entropy_weight": Range(0.001, 0.1, log=True, group="losses"),  # a decade on either side of the authors'
        "temperature": Range(0.01, 0.5, log=True, group="latent"),
    }

    # `published` stays empty: the paper's scores are of continuous latents, and of another backbone.

    config: Config

    @classmethod
    def remark(cls, config: Config) -> str:
        """Its codes are not what it trains."""
        return (
            "trains a mixture of codes, which is not discrete: its scores are of the code of the largest weight, "
            "psnr_continuous and rfid_continuous of the mixture"
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        books = [initial_codebook(config.codebook_size, config.dim, config.init) for _ in range(config.splits)]
        codes = torch.stack(books)
        self.embedding = nn.Parameter(normalize(codes, dim=2) if config.normalise else codes)  # (splits, K, d)

    def _codes(self) -> Tensor:
        return normalize(self.embedding, dim=2) if self.config.normalise else self.embedding

    @property
    def codebook(self) -> Tensor | None:
        """(K, d) effective code vectors, or None of more than one codebook."""
        return self._codes()[0].detach() if self.config.splits == 1 else None

    @property
    def gradient_routes(self) -> GradientRoutes:
        """The mixture reaches both, the entropies z alone."""
        drawn = self.config.entropy and self.config.entropy_weight > 0
        return GradientRoutes(True, True, drawn, False)

    def _split(self, by_token: Tensor) -> list[Tensor]:
        """(B, d, h, w) as one (B, tokens / splits, d) for each codebook. ValueError where they do not divide."""
        tokens, splits = by_token.flatten(2).transpose(1, 2), self.config.splits
        if tokens.shape[1] % splits:
            raise ValueError(f"{tokens.shape[1]} tokens of an image cannot be cut into splits={splits} equal parts")
        return list(tokens.chunk(splits, 1))

    def _joined(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """The inverse of `_split`, of rows (B · tokens / splits, d) for each codebook."""
        whole = torch.cat([part.view(like.shape[0], -1, part.shape[-1]) for part in parts], 1)
        return whole.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to mixtures of codes in training; in evaluation to codes, beside their mixtures."""
        config, codes = self.config, self._codes()
        unit = normalize(z, dim=1) if config.normalise else z
        entropy = config.entropy_temperature if config.entropy and self.training else None
        found = [
            assign(
                part.reshape(-1, config.dim),
                book.detach(),  # the logits move z alone
                values=book,
                temperature=config.temperature,
                entropy_temperature=entropy,
            )
            for part, book in zip(self._split(unit), codes, strict=True)
        ]
        mixture = self._joined([part.latents for part in found], z)
        indices = self._joined([part.indices.unsqueeze(1) for part in found], z).squeeze(1)
        if not self.training:
            return Quantized(self.decode_indices(indices), indices, continuous=mixture)
        losses, diagnostics = {}, norms(unit, codes)
        if config.entropy:
            losses["entropy"], named = self._entropy(found)
            diagnostics |= named
        diagnostics["mixture_rms"] = mixture.detach().square().mean().sqrt()
        return Quantized(mixture, indices, losses, diagnostics=diagnostics)

    def _entropy(self, found: list[Assignment]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and diagnostics; the mean assignment is over all tokens, whichever codebook is theirs."""
        per_sample = torch.stack([part.per_sample for part in found]).mean()
        codebook = entropy_of(torch.stack([part.mean for part in found]).mean(0), eps=ENTROPY_EPS)
        named = {"per_sample_entropy": per_sample.detach(), "codebook_entropy": codebook.detach()}
        return self.config.entropy_weight * (per_sample - codebook), named

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) codes, of length 1 where they are normalised."""
        parts = self._split(indices.unsqueeze(1))
        chosen = [book[part.flatten()] for part, book in zip(parts, self._codes(), strict=True)]
        return self._joined(chosen, indices.unsqueeze(1))
