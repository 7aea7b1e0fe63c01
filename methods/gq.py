"""Gaussian quantization. Paper: https://arxiv.org/abs/2512.06609."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from vqbench.methods.codebook import check_codebook, check_weight, look_up, norms
from vqbench.methods.nearest import largest_product
from vqbench.quantizer import (
    Choices,
    GradientRoutes,
    Quantized,
    Quantizer,
    Range,
    TrainingState,
    full_precision,
)
from vqbench.registry import METHODS

LOG_VARIANCE_RANGE = (-30.0, 20.0)
BITS_PER_NAT = 1.4426  # as the authors write it
TOLERANCE = 0.5  # bits about the target within which a divergence has weight 1
FACTOR = 1.01  # of a multiplier in a step
# loss_per_nat / (pixel values per token) for l2 and 8 × 8 RGB pixels a token: for code that never calls `advance`.
FIRST_WEIGHT = 2 / 192
SEED = 42  # of the codebook; the authors'
MAX_SOBOL_DIM = 21201  # torch's

_BALANCE = {"part_of": "balance"}


def sobol_normal(codebook_size: int, dim: int) -> Tensor:
    """(codebook_size, dim) samples of N(0, I) from a scrambled Sobol sequence: the same in every process."""
    with unset_fake_temporarily():  # a sequence has to be drawn, where a step is counted on tensors without data too
        engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=SEED)  # type: ignore[no-untyped-call]
        uniform = engine.draw(codebook_size)
        return torch.special.ndtri(uniform.double().clamp(2**-25, 1 - 2**-25)).float()  # 0 and 1 are infinitely far


def bits_of(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) of each element, in bits."""
    return BITS_PER_NAT * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def _least_mean_largest(values: Tensor) -> Tensor:
    """(3,) over all devices, whose batches are of one size."""
    found = torch.stack([values.min(), values.mean(), values.max()])
    if torch.distributed.is_initialized():
        gathered = [torch.empty_like(found) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(gathered, found)
        rows = torch.stack(gathered)
        found = torch.stack([rows[:, 0].min(), rows[:, 1].mean(), rows[:, 2].max()])
    return found


@METHODS.register("gq")
class GaussianQuant(Quantizer):
    """Vector quantization using Gaussian variational autoencoder (Xu et al., 2025, arXiv:2512.06609).

    Training is that of a Gaussian VAE: the decoder gets a sample. The codebook is K fixed samples of the prior, which
    nothing learns; in evaluation each group of channels takes the sample that is likeliest under its posterior, prior
    apart. That works where a group's divergence from the prior is near log2 K bits, to which multipliers hold it: they
    are buffers, and move by the divergences of all devices (the authors' are numbers of each process on its own).

    `psnr_continuous` and `rfid_continuous` are of the means, where training decodes samples.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `gq`."""

        codebook_size: int = 512
        """Number of codes of a group, K."""
        dim: int = 64
        """Channels of a token."""
        group: int = 0
        """Channels of a group, each of which has an index; 0: all are one group."""
        layout: Literal["strided", "contiguous"] = "strided"
        """Group n of G is the channels n, n + G, n + 2 G … (the authors' first form), or neighbours (their second)."""
        decode: Literal["sample", "code"] = "sample"
        """What training decodes: the sample, or the code with the gradient of the sample (the second form)."""
        kl_weight: float = 0.1
        """Weight of the divergence, in bits, beside a likelihood of the pixels in nats."""
        balance: bool = field(default=True, metadata={"component": "balance"})
        """Multipliers that hold the divergence of a group to log2 K bits."""
        multiplier_max: float = field(default=1e3, metadata=_BALANCE)
        """Largest multiplier; the smallest is its inverse. The second form's is 1e7."""
        excess_falls: bool = field(default=True, metadata=_BALANCE)
        """Whether the multiplier above the target falls again; in the second form it never does, by a slip."""
        prior_weight: float = 1.0
        """Weight of the prior in the choice of a code (the authors' beta)."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("kl_weight", self.kl_weight)
            check_weight("prior_weight", self.prior_weight)
            if self.group < 0 or (self.group and self.dim % self.group):
                raise ValueError(f"group must divide dim {self.dim}, not be {self.group}")
            if (self.group or self.dim) > MAX_SOBOL_DIM:
                raise ValueError(f"a group has at most {MAX_SOBOL_DIM} channels, not {self.group or self.dim}")
            if not 1 <= self.multiplier_max < math.inf:
                raise ValueError(f"multiplier_max must be at least 1, not {self.multiplier_max}")

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The authors' GaussianQuantRegularizer2 with use_ste, slip included.
        "second": {"layout": "contiguous", "decode": "code", "multiplier_max": 1e7, "excess_falls": False},
    }

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "kl_weight": Range(0.01, 1.0, log=True, group="losses"),  # a decade on either side of the authors'
        "decode": Choices(("sample", "code"), group="latent"),
    }

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size, self.out_channels, self.in_channels = config.codebook_size, config.dim, 2 * config.dim
        self.group = config.group or config.dim
        self.num_codebooks = config.dim // self.group
        self.register_buffer("samples", sobol_normal(config.codebook_size, self.group))
        for name in ("multiplier", "shortfall", "excess"):
            self.register_buffer(name, torch.ones(()))
        self.register_buffer("kl_weight", torch.tensor(FIRST_WEIGHT * config.kl_weight))

    samples: Tensor
    multiplier: Tensor
    shortfall: Tensor
    excess: Tensor
    kl_weight: Tensor

    @classmethod
    def matched(cls, codebook_size: int, dim: int) -> dict[str, object]:
        """One group of all channels, so that a token has the codes that were asked for."""
        return {"codebook_size": codebook_size, "dim": dim}

    @property
    def codebook(self) -> Tensor | None:
        """(K, d) samples, or None where a token has several groups."""
        return self.samples if self.num_codebooks == 1 else None

    @property
    def gradient_routes(self) -> GradientRoutes:
        """A sample's: to mean and variance; there are no parameters."""
        return GradientRoutes(True, False, self.config.kl_weight > 0, False)

    def advance(self, state: TrainingState) -> None:
        """Set what a nat is worth for the next step: the authors add the divergence to nats of a likelihood."""
        self.kl_weight.copy_(self.config.kl_weight * state.loss_per_nat / state.pixel_values_per_token)

    def _grouped(self, channels: Tensor) -> Tensor:
        """(B, d, h, w) → (B, h, w, G, g)."""
        batch, _, height, width = channels.shape
        if self.config.layout == "contiguous":
            return channels.reshape(batch, -1, self.group, height, width).permute(0, 3, 4, 1, 2)
        return channels.reshape(batch, self.group, -1, height, width).permute(0, 3, 4, 2, 1)

    def _channels(self, grouped: Tensor) -> Tensor:
        """The inverse of `_grouped`."""
        if self.config.layout == "contiguous":
            return grouped.permute(0, 3, 4, 1, 2).flatten(1, 2)
        return grouped.permute(0, 4, 3, 1, 2).flatten(1, 2)

    @torch.no_grad()
    def _choose(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Indices (B, h, w, G): the largest log N(c; μ, σ²) − β log N(c; 0, 1), summed over a group."""
        means, precisions = self._grouped(mean), self._grouped(-log_variance).exp()
        # but for what is the same for all codes: Σ c μ / σ² + ½ c² (β − 1 / σ²)
        left = torch.cat([means * precisions, 0.5 * (self.config.prior_weight - precisions)], -1).flatten(0, 3)
        found = largest_product(left, torch.cat([self.samples, self.samples.square()], 1))
        return found.view(means.shape[:-1])

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """Mean and log-variance (B, 2 d, h, w) to a sample in training, to codes in evaluation."""
        mean, log_variance = z.chunk(2, 1)
        log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        chosen = self._choose(mean, log_variance)
        indices = chosen.squeeze(-1) if self.num_codebooks == 1 else chosen
        if not self.training:
            continuous = mean if self.config.decode == "sample" else None
            return Quantized(self.decode_indices(indices), indices, continuous=continuous)
        sigma = (0.5 * log_variance).exp()
        latents = mean + sigma * torch.randn_like(mean)
        if self.config.decode == "code":
            latents = latents + (self.decode_indices(indices) - latents).detach()
        loss, diagnostics = self._divergence(mean, log_variance)
        diagnostics |= {**norms(mean, self.samples), "sigma_median": sigma.detach().median()}
        return Quantized(latents, indices, {"kl": self.kl_weight * loss}, diagnostics=diagnostics)

    def _divergence(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Divergence of a token in bits, weighted by the multipliers of before this step; and what the step saw."""
        bits = self._grouped(bits_of(mean, log_variance)).sum(-1)  # (B, h, w, G)
        seen = _least_mean_largest(bits.detach())
        named = dict(zip(("bits_min", "bits_mean", "bits_max"), seen, strict=True))
        if not self.config.balance:
            return bits.sum(-1).mean(), named
        target = math.log2(self.codebook_size)
        over, under = bits > target + TOLERANCE, bits < target - TOLERANCE
        weights = self.multiplier * torch.where(over, self.excess, torch.where(under, self.shortfall, 1.0))
        loss = (weights * bits).sum(-1).mean()
        self._follow(seen, target)
        multipliers = {name: getattr(self, name).clone() for name in ("multiplier", "shortfall", "excess")}
        return loss, {**named, **multipliers}

    @torch.no_grad()
    def _follow(self, seen: Tensor, target: float) -> None:
        """Move the multipliers by a factor: to more weight where there are more bits than the target, and to less."""
        (least, mean, largest), limit = seen, self.config.multiplier_max
        falling = 1 / FACTOR if self.config.excess_falls else 1.0
        self.multiplier.mul_(torch.where(mean > target, FACTOR, 1 / FACTOR))
        self.excess.mul_(torch.where(largest > target + TOLERANCE, FACTOR, falling)).clamp_(1, limit)
        self.shortfall.mul_(torch.where(least < target - TOLERANCE, 1 / FACTOR, FACTOR)).clamp_(1 / limit, 1)

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w), or (B, h, w, G) indices to (B, d, h, w) samples of the prior."""
        if self.num_codebooks == 1:
            return look_up(indices.view(indices.shape[:3]), self.samples)
        return self._channels(self.samples[indices])
