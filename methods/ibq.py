"""Index backpropagation quantization. Paper: https://arxiv.org/abs/2412.02692."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from vqbench.methods.codebook import Init, as_rows, check_codebook, check_weight, initial_codebook, look_up, norms
from vqbench.methods.entropy import assign, entropy_of
from vqbench.methods.nearest import largest_product
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

_ENTROPY = {"part_of": "entropy"}


def _authors(metric: str, value: float, codes: int) -> Published:
    where = f"ImageNet 256 px validation images, f 16, K {codes}, d 256"
    return Published(metric, value, where, "the paper, whose authors trained for 330 epochs with a GAN")


@METHODS.register("ibq")
class IBQ(Quantizer):
    """Scalable image tokenization with index backpropagation quantization (Shi et al., 2024, arXiv:2412.02692).

    The code of the largest product with z, not the nearest. In the backward pass the choice is the softmax over all
    products, so every code learns from every token. Training makes the N × K logits twice, block by block
    (`vqbench.methods.entropy`); evaluation looks up alone.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `ibq`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a code, d."""
        beta: float = 0.25
        """Weight of the term that moves the chosen code alone; the one that moves z alone has weight 1."""
        entropy: bool = field(default=True, metadata={"component": "entropy"})
        """Draw each token to one code, and all tokens together to all codes."""
        entropy_weight: float = field(default=0.05, metadata=_ENTROPY)
        """Weight of the entropy terms, per-sample less codebook entropy, in nats."""
        temperature: float = field(default=0.01, metadata=_ENTROPY)
        """Of the softmax over the products that the entropies are of; that of the gradient has none."""
        init: Init = "unit_normal"
        """Start of the codes: uniform in ±1/K, normal N(0, 1/d), or unit_normal N(0, 1) (the authors')."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("beta", self.beta)
            check_weight("entropy_weight", self.entropy_weight)
            if not self.temperature > 0:
                raise ValueError(f"temperature must be positive, not {self.temperature}")

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),
        "entropy_weight": Range(0.005, 0.5, log=True, group="losses"),  # a decade on either side of the authors'
        "init": Choices(("uniform", "normal", "unit_normal"), group="codebook"),
    }

    published: ClassVar[tuple[Published, ...]] = (
        _authors("rfid", 2.24, 1024),
        _authors("rfid", 1.87, 8192),
        _authors("rfid", 1.37, 16384),
        _authors("rfid", 1.00, 262144),
        _authors("usage", 0.99, 1024),
        _authors("usage", 0.98, 8192),
        _authors("usage", 0.96, 16384),
        _authors("usage", 0.84, 262144),
    )

    config: Config

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
        """Through the softmax over all codes everything reaches z and the codes."""
        return GradientRoutes(True, True, True, True)

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to the codes of the largest product; losses in training only."""
        config, rows = self.config, as_rows(z)
        if not self.training:
            indices = largest_product(rows, self.embedding).view(z.shape[0], *z.shape[2:])
            return Quantized(look_up(indices, self.embedding), indices)
        temperature = config.temperature if config.entropy else None
        found = assign(rows, self.embedding, values=self.embedding, hard=True, entropy_temperature=temperature)
        indices = found.indices.view(z.shape[0], *z.shape[2:])
        z_q = found.latents.view(*indices.shape, -1).permute(0, 3, 1, 2)
        chosen = look_up(indices, self.embedding)
        losses = {
            "both": mse_loss(z_q, z),  # through the softmax, to all codes and to z
            "commitment": mse_loss(z, chosen.detach()),
            "codebook": config.beta * mse_loss(chosen, z.detach()),
        }
        diagnostics = norms(z, self.embedding)
        if config.entropy:
            codebook = entropy_of(found.mean)
            losses["entropy"] = config.entropy_weight * (found.per_sample - codebook)
            diagnostics |= {"per_sample_entropy": found.per_sample.detach(), "codebook_entropy": codebook.detach()}
        return Quantized(z_q, indices, losses, diagnostics=diagnostics)

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) codes."""
        return look_up(indices, self.embedding)
