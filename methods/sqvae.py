"""Stochastically quantized VAE, Gaussian. Paper: https://arxiv.org/abs/2205.07547."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vqbench.methods.codebook import as_rows, check_codebook, initial_codebook, look_up, norms, quantize
from vqbench.methods.nearest import argmax
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

MIN_VARIANCE = 1e-10  # the authors' floor under the variance before it divides
# 2 · 1 / 192 for l2 and 8 × 8 RGB pixels a token: a weight for code that never calls `advance`.
FIRST_WEIGHT = 2 / 192
WHOLE_BYTES = 32 * 2**20
"""Upper bound of noise that is one N × K matrix, of which autograd makes the gradient; above it, there are blocks."""
BLOCK_BYTES = 8 * 2**20
"""Upper bound of a block of rows. Several are passed over while a cache has them, and what a step frees of such a size
the next one gets again, where a matrix of hundreds of MB would come anew from the system, page by page."""
DRAWN_AT_ONCE = 2**16
"""Uniform numbers in float64 that a cache holds."""
MANY_CODES = 4096
"""Above them, where they are an even number, a CPU draws 32 random bits for each number of the noise, where
`exponential_` draws 64."""


def assignment_logits(z: Tensor, codes: Tensor, variance: Tensor) -> Tensor:
    """−Σ (z − e_k)² / 2σ² for each token and code, (N, K), up to what is the same for every code of a token.

    z is (N, d), variance (N, d) or (N, 1); the softmax over k is the assignment P(k | z).
    """
    precision = 1 / variance.clamp(min=MIN_VARIANCE)
    if precision.shape[1] == 1:
        return precision * (z @ codes.t() - 0.5 * codes.square().sum(1))
    return (precision * z) @ codes.t() - 0.5 * precision @ codes.square().t()


def latent_terms(z: Tensor, z_q: Tensor, variance: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """The two latent terms of the negative ELBO, in nats, of each of the N tokens.

    `entropy` is Σ_k p log p, minus the entropy of the assignment (the constant log K of the uniform prior is left
    out); `noise` is Σ_d (z − z_q)² / 2σ². Times the tokens of an image they are the authors' loss per image.
    """
    log_p = logits.log_softmax(1)
    return {"entropy": (log_p.exp() * log_p).sum(1), "noise": _noise(z, z_q, variance)}


def _noise(z: Tensor, z_q: Tensor, variance: Tensor) -> Tensor:
    return ((z - z_q).square() / (2 * variance.clamp(min=MIN_VARIANCE))).sum(1)


def soft_codes(logits: Tensor, codes: Tensor, gumbel: Tensor, temperature: Tensor | float) -> Tensor:
    """Gumbel-softmax mixture of the codes, (N, d): what the decoder gets in training."""
    return ((logits + gumbel) / temperature).softmax(1) @ codes


def gumbel_noise(z: Tensor, codebook_size: int) -> list[Tensor]:
    """Standard Gumbel noise of tokens z (N, d) and K codes, in the dtype of z: blocks of rows, together (N, K).

    It is one block up to WHOLE_BYTES. On a CPU `exponential_` draws a uniform number in float64 and takes its
    logarithm, one after the other: two fifths of a step with many codes. For several blocks the same numbers are drawn,
    but the logarithm is taken of many at once. Noise and state of the generator are the same; of some billions of
    numbers one may have another last bit, so that smaller matrices are filled as they were for stored trainings.
    Above MANY_CODES (an even number of them, on a CPU) they are other numbers, drawn in half the time. That depends on
    the number of codes, and not on that of tokens: the parts of a batch get what the whole gets.
    """
    tokens, width = len(z), codebook_size * z.element_size()
    rows = max(1, tokens if tokens * width <= WHOLE_BYTES else BLOCK_BYTES // width)
    # An odd number of codes would leave half a draw over where a batch ends.
    narrow = codebook_size > MANY_CODES and codebook_size % 2 == 0
    if z.device.type == "cpu" and (narrow or rows < tokens):
        sizes = (min(rows, tokens - start) for start in range(0, max(tokens, 1), rows))
        return [_fill(z.new_empty(size, codebook_size), narrow) for size in sizes]
    return list(torch.split(z.new_empty(tokens, codebook_size).exponential_().log_().neg_(), rows))


def _fill(block: Tensor, narrow: bool) -> Tensor:
    uniform = torch.empty(min(DRAWN_AT_ONCE, block.numel()), dtype=torch.float64)
    for part in torch.split(block.view(-1), DRAWN_AT_ONCE):
        minus_u = uniform[: len(part)]
        if narrow:
            drawn = torch.empty(len(part) // 2, dtype=torch.int64).random_(-(2**63), None)
            minus_u.copy_(_minus_uniform(drawn.view(torch.int32)))
        else:
            minus_u.uniform_().neg_()
        part.copy_(minus_u.log1p_()).neg_().log_().neg_()
    return block


def _minus_uniform(bits: Tensor) -> Tensor:
    """32 bits as −u in float64, u the middle of one of 2³² parts of (0, 1); of 0 or 1 the noise would be endless."""
    return bits.double().sub_(2**31 - 0.5).mul_(2.0**-32)


def noisy_assignment(
    z: Tensor, codes: Tensor, variance: Tensor, noise: list[Tensor], temperature: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`soft_codes`, the most probable code (N,) and `latent_terms` of tokens z (N, d) under `gumbel_noise`.

    Several blocks of noise are overwritten, and of their size one more matrix is kept for the backward pass; values and
    gradients are those of one block to rounding.
    """
    if len(noise) == 1:
        logits = assignment_logits(z, codes, variance)
        mixture = soft_codes(logits, codes, noise[0], temperature)
        return mixture, argmax(logits.detach()), latent_terms(z, mixture, variance, logits)
    precision = 1 / variance.clamp(min=MIN_VARIANCE)
    halves = -0.5 * codes.square()
    right = torch.cat([codes, halves if precision.shape[1] > 1 else halves.sum(1, keepdim=True)], 1)
    left = torch.cat([precision * z, precision], 1)  # so that the logits are left · right
    mixture, entropy, indices = _NoisyAssignment.apply(left, right, codes, temperature, *noise)  # type: ignore[no-untyped-call]
    return mixture, indices, {"entropy": entropy, "noise": _noise(z, mixture, variance)}


class _NoisyAssignment(torch.autograd.Function):
    """Mixture (N, d), Σ_k p log p (N,) and most probable code (N,) of logits left (N, c) · right (K, c).

    Two matrices of each block are kept: the weights of the mixture, which take the place of the noise, and the slopes
    of Σ p log p by the logits, p (log p − Σ p log p).
    """

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, codes: Tensor, temperature: Tensor, *noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixture, entropy = left.new_empty(len(left), codes.shape[1]), left.new_empty(len(left))
        indices = torch.empty(len(left), dtype=torch.int64, device=left.device)
        slopes = [torch.empty_like(block) for block in noise]
        for rows, block, slope, scratch in _by_rows(noise, slopes):
            logits = torch.mm(left[rows], right.t(), out=slope)
            chosen = argmax(logits)[:, None]
            logits -= logits.gather(1, chosen)
            weights = torch.softmax(torch.add(logits, block, out=scratch).div_(temperature), 1, out=block)
            torch.mm(weights, codes, out=mixture[rows])
            p = torch.softmax(logits, 1, out=scratch)
            logits *= p
            mean = logits.sum(1, keepdim=True)  # less than Σ p log p by the log p of the largest, where it is 0
            entropy[rows] = (mean + p.gather(1, chosen).log())[:, 0]
            indices[rows] = chosen[:, 0]
            logits.addcmul_(p, mean, value=-1)
        ctx.save_for_backward(left, right, codes, temperature, *noise, *slopes)
        ctx.mark_non_differentiable(indices)
        return mixture, entropy, indices

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, to_mixture: Tensor, to_entropy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        left, right, codes, temperature, *kept = ctx.saved_tensors
        blocks, d = len(kept) // 2, codes.shape[1]
        to_left = torch.empty_like(left)
        # transposed a CPU takes a quarter less time
        to_codes, to_right = (torch.zeros_like(of.t(), memory_format=torch.contiguous_format) for of in (codes, right))
        with torch.autocast(left.device.type, enabled=False):
            scaled = to_mixture / temperature
            for rows, weights, slopes, scratch in _by_rows(kept[:blocks], kept[blocks:]):
                to_codes.addmm_(to_mixture[rows].t(), weights)
                to_logits = torch.mm(scaled[rows], codes.t(), out=scratch).mul_(weights)
                # Of these very products, so that a row sums to 0: what is over would be multiplied by 1 / σ² below.
                to_logits.addcmul_(weights, to_logits.sum(1, keepdim=True), value=-1)
                to_logits.addcmul_(slopes, to_entropy[rows, None])
                # One column more than d, as `right` may have, would make one product a fifth slower.
                to_left[rows] = torch.cat([to_logits @ right[:, :d], to_logits @ right[:, d:]], 1)
                to_right.addmm_(left[rows].t(), to_logits)
        return to_left, to_right.t(), to_codes.t(), None, *[None] * blocks


def _by_rows(first: Sequence[Tensor], second: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """The rows of each block, the block of both matrices, and one to write to, which the next one gets again."""
    start, scratch = 0, torch.empty_like(first[0])
    for one, other in zip(first, second, strict=True):
        yield slice(start, start + len(one)), one, other, scratch[: len(one)]
        start += len(one)


@METHODS.register("sqvae")
class SQVAE(Quantizer):
    """SQ-VAE: variational Bayes on discrete representation with self-annealed stochastic quantization
    (Takida et al., 2022, arXiv:2205.07547).

    Gaussian. Training hands the decoder a soft mixture of codes, evaluation the most probable code. In training the
    noise is an N × K matrix in float32 (N = 8192, K = 16384: 0.5 GiB); logits and probabilities are kept beside
    it where they are small; where they are not, two such matrices are all that there is (`noisy_assignment`).
    Evaluation needs none of them. Its scores without quantization (`psnr_continuous`) are of the mean, which training
    mixes codes about.

    The authors minimise, with D pixel values, T tokens and B images,
        (D / 2) log(Σ (x − x̂)² / B) + mean_B Σ_T l,    l = entropy + noise of one token.
    The first term's gradient is (D / 2) ∇mse / mse, mse the mean over all elements. So times 2 w mse / D, mse held
    constant, the whole has the gradient of
        w mse + (2 w mse / D) mean_B Σ_T l  =  w mse + 2 w mse / (D / T) · mean over tokens of l:
    the harness's pixel term plus the latent terms with weight loss_per_nat / (pixel values per token), both of
    which `advance` hands in. With l1 in the recipe it is the same for Laplace noise: loss_per_nat is then w mae.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `sqvae`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a code, d."""
        variance: Literal["I", "II", "III", "IV"] = "I"
        """Posterior variance: I one for all, II one an image, III one a token, IV one a channel and token."""
        log_variance_init: float = math.log(20)
        """Start of the logarithm of the learned scalar that is part of every variance."""
        temperature: float = 1.0
        """Gumbel-softmax temperature at the start."""
        temperature_decay: float = 1e-5 / 32
        """Decay rate of the temperature, per image: exp(−decay · images). The authors' 1e-5 a step at batch 32."""
        temperature_min: float = 1e-3
        """Floor of the temperature; the authors' is 0, which their budgets never come near."""
        latent_weight: float = 1.0
        """Factor on the latent terms; 1 is the paper's balance with the pixel term."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            for f in fields(self):
                value = getattr(self, f.name)
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{f.name} must be a finite number, not {value}")
            if not 0 < self.temperature_min <= self.temperature:
                raise ValueError("temperature_min must be positive and at most temperature")
            if self.temperature_decay < 0:
                raise ValueError(f"temperature_decay must not be negative, not {self.temperature_decay}")
            if not self.latent_weight > 0:
                raise ValueError(
                    f"latent_weight must be positive, not {self.latent_weight}: nothing else holds z to a code"
                )

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        f"mode{n}": {"variance": mode} for n, mode in enumerate(("I", "II", "III", "IV"), start=1)
    }

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "latent_weight": Range(0.1, 10.0, log=True, group="losses"),  # a decade on either side of the paper's balance
        "log_variance_init": Range(0.0, 6.0, group="latent"),  # the authors' log 20 = 3.0 in the middle
        "temperature_decay": Range(1e-7, 1e-4, log=True, group="latent"),  # the authors' 3e-7 is for long trainings
        "variance": Choices(("I", "II", "III", "IV"), group="latent"),  # all that the paper compares
    }

    # `published` stays empty: the paper states mean squared errors and perplexities of batches, not our scores.

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.out_channels = config.dim
        # As the authors: the variance head is as wide as the mean in every mode but I, and is averaged for II and III.
        self.in_channels = config.dim if config.variance == "I" else 2 * config.dim
        self.embedding = nn.Parameter(initial_codebook(config.codebook_size, config.dim, "unit_normal"))
        self.log_variance = nn.Parameter(torch.tensor(float(config.log_variance_init)))
        self.register_buffer("temperature", torch.tensor(float(config.temperature)))
        self.register_buffer("latent_weight", torch.tensor(FIRST_WEIGHT * config.latent_weight))
        self.temperature: Tensor
        self.latent_weight: Tensor

    @property
    def codebook(self) -> Tensor:
        """(K, d) code vectors."""
        return self.embedding.detach()

    @property
    def gradient_routes(self) -> GradientRoutes:
        """No stop-gradient anywhere: mixture and latent terms reach z, codes and variance."""
        return GradientRoutes(True, True, True, True)

    def advance(self, state: TrainingState) -> None:
        """Set the temperature and the weight of the latent terms for the next step."""
        config = self.config
        annealed = config.temperature * math.exp(-config.temperature_decay * state.images_seen)
        self.temperature.fill_(max(annealed, config.temperature_min))
        self.latent_weight.copy_(config.latent_weight * state.loss_per_nat / state.pixel_values_per_token)

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, d, h, w) and variance, broadcastable to it: exp(head) + exp(scalar), where mode I's head is 0."""
        mode, dim = self.config.variance, self.config.dim
        head = z[:, dim:] if mode != "I" else z.new_zeros(1, 1, 1, 1)
        if mode in ("II", "III"):
            head = head.mean((1, 2, 3) if mode == "II" else 1, keepdim=True)
        return z[:, :dim], head.exp() + self.log_variance.exp()

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """Mean (and variance head) to a soft mixture of codes in training, to the most probable code in evaluation."""
        mean, variance = self._split(z)
        if not self.training:  # one variance per token does not change which code is the most probable
            precision = 1 / variance.clamp(min=MIN_VARIANCE) if self.config.variance == "IV" else None
            return Quantized(*quantize(mean, self.embedding, precision), continuous=mean)
        rows, spread = as_rows(mean), as_rows(variance.expand(len(mean), -1, *mean.shape[2:]))
        noise = gumbel_noise(rows, self.codebook_size)
        mixture, indices, terms = noisy_assignment(rows, self.embedding, spread, noise, self.temperature)
        batch, _, height, width = mean.shape
        return Quantized(
            mixture.view(batch, height, width, -1).permute(0, 3, 1, 2),
            indices.view(batch, height, width),
            {name: self.latent_weight * term.mean() for name, term in terms.items()},
            diagnostics=self._diagnostics(mean, variance),
        )

    @torch.no_grad()
    def _diagnostics(self, mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
        sigma = variance.sqrt().median()
        return {**norms(mean, self.embedding), "sigma_median": sigma, "temperature": self.temperature.clone()}

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) codes."""
        return look_up(indices, self.embedding)
