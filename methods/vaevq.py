"""VAEVQ and its three switchable components. Paper: https://arxiv.org/abs/2511.06863."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

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
    straight_through,
    vq_losses,
)
from vqbench.methods.dcr import moments, squared_w2_to_normal, squared_w2_to_standard_normal
from vqbench.methods.processes import alone, mean_over_processes
from vqbench.methods.vaevq_paper import PAPER_ROWS, PUBLISHED
from vqbench.quantizer import Choices, GradientRoutes, PaperRow, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # the clamp of every latent-diffusion VAE, and of the authors' code
DEFAULT_KL_WEIGHT = 1e-6  # per image, as latent diffusion has it; the paper names no weight

_OPEN = {"paper_unspecified": True}  # a choice that the paper leaves open
_VLQ, _RCS, _DCR = {"part_of": "vlq"}, {"part_of": "rcs"}, {"part_of": "dcr"}  # without the component, no effect
_SIGMA = {"part_of": ("vlq", "rcs")}
_LATER = {"added_later": True}
_MOMENTS_DECAY = 0.99  # per step, as codebooks that are moving averages have it


def rcs_per_token(z_q: Tensor, mean: Tensor, sigma: Tensor | float) -> Tensor:
    """½ Σ_d ((z_q − μ) / σ)² for each token, (B, h, w): equation 7, which stops no gradient but sigma's."""
    return 0.5 * ((z_q - mean) / sigma).square().sum(1)


def kl_per_image(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, I)) summed over an image, (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))


def _fixed_noise(like: Tensor) -> Tensor:
    """(d, h, w) standard normal noise that is the same in every call: evaluation is deterministic."""
    return torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(0)).to(like)


def _over_processes(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The moments of all devices' latents together, from those of each one's."""
    if alone():
        return mean, covariance
    whole = mean_over_processes(mean)
    apart = mean - whole
    return whole, mean_over_processes(covariance + apart.outer(apart))


@METHODS.register("vaevq")
class VAEVQ(Quantizer):
    """VAEVQ: enhancing discrete visual tokenization through variational modeling (Yang et al., 2026, arXiv:2511.06863).

    vlq: the encoder emits a normal per token, its sample is decoded beside the code. rcs: the distance of code and
    mean in units of sigma replaces the VQ losses. dcr: the codebook is drawn to a normal. With all three off and
    a free codebook it is `vqgan` to the last bit. Without vlq there is no sigma: rcs is a symmetric squared distance
    (sigma is 1 whatever rcs_sigma_min), and the gradient straight-through whatever the estimator.

    Equation 7 as printed (rcs_sigma_min 0) has no equilibrium: reconstruction shrinks sigma, and 1 / sigma² grows
    without bound. The default floor of 0.5 bounds the weight by 4; the diagnostics `precision_max` (1 / sigma²),
    `alignment_rms` and `sigma_under_floor` show what it hides. Equation 11 draws the codes to N(0, I), where no latent
    is; by default they are drawn to the moments of the latents' means. How the open choices were settled, and what the
    first default (`vaevq@first`) did in long trainings: docs/vaevq.md.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `vaevq`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a code, d."""
        vlq: bool = field(default=True, metadata={"component": "vlq"})
        """Variational latent quantization: encoder head with log-variance, sampling, dual path, KL."""
        rcs: bool = field(default=True, metadata={"component": "rcs"})
        """Representation coherence strategy (eq. 7) instead of codebook and commitment losses."""
        dcr: bool = field(default=True, metadata={"component": "dcr"})
        """Distribution consistency regularization of the codebook (eq. 11)."""
        kl_weight: float | None = field(default=None, metadata=_OPEN | _VLQ)
        """Weight of the KL term; None is 1e-6 with vlq, and without it there is no such term."""
        kl_reduction: Literal["image", "mean"] = field(default="image", metadata=_OPEN | _VLQ)
        """KL summed over each image, or its mean over all elements."""
        sigma_init: float = field(default=0.1, metadata=_OPEN | _VLQ)
        """Sigma where the encoder's log-variance head says 0, which is about where it starts."""
        dual_weight: float = field(default=1.0, metadata=_VLQ)
        """Weight of the sample's reconstruction beside the code's (eq. 4: 1)."""
        quantize: Literal["sample", "mean"] = field(default="sample", metadata=_VLQ)
        """What is quantized in training: the sample (eq. 2) or the mean (authors' code)."""
        evaluate: Literal["mean", "sample"] = field(default="mean", metadata=_OPEN | _VLQ)
        """What is quantized in evaluation; the sample's noise is one fixed pattern, the same for every image."""
        rcs_weight: float = field(default=1.0, metadata=_RCS)
        """Weight of rcs (lambda_rcs)."""
        rcs_sigma: Literal["detached", "live"] = field(default="detached", metadata=_SIGMA)
        """Whether rcs moves sigma: not in eq. 7, but in the authors' code."""
        rcs_sigma_min: float = field(default=0.5, metadata=_OPEN | _SIGMA | {"first_default": 0.1})
        """Floor under sigma in rcs, where there is a sigma; 0 is eq. 7 as printed, which collapses."""
        rcs_reduction: Literal["mean", "sum"] = field(default="mean", metadata=_OPEN | _RCS)
        """Over the channels; over tokens and images it is always the mean."""
        dcr_weight: float = field(default=0.1, metadata=_DCR)
        """Weight of dcr (lambda_dcr)."""
        dcr_target: Literal["prior", "means", "samples"] = field(
            default="means", metadata=_OPEN | _DCR | _LATER | {"first_default": "prior"}
        )
        """The normal that dcr draws the codes to: N(0, I) (eq. 11), or that of the latents: means or samples."""
        dcr_moments: Literal["detached", "live"] = field(default="detached", metadata=_OPEN | _DCR | _LATER)
        """Whether dcr moves the latents that are its target."""
        dcr_reduction: Literal["mean", "sum"] = field(
            default="mean", metadata=_OPEN | _DCR | _LATER | {"first_default": "sum"}
        )
        """Over the channels: eq. 11 is a sum, as eq. 7 is; where one is a mean, the other should be."""
        estimator: Literal["straight_through", "reparameterised"] = field(
            default="straight_through", metadata=_OPEN | _VLQ
        )
        """Decoder's gradient: to z as it stands, or (authors' code) to mean, sigma and the chosen code. Needs vlq."""
        codebook_param: Literal["free", "linear"] = "free"
        """Codes as parameters, or as a learned linear map of parameters (SimVQ's, in the authors' code)."""
        init: Init = field(default="uniform", metadata=_OPEN)
        """Start of the codes: uniform in ±1/K as vqgan's, normal N(0, 1/d), or unit_normal N(0, 1)."""
        beta: float = 0.25
        """Without rcs: weight of the term that beta_on names, as in vqgan."""
        beta_on: BetaOn = "commitment"
        """Without rcs: which term beta weights, as in vqgan."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            if not 0 < self.sigma_init < math.inf:
                raise ValueError(f"sigma_init must be positive, not {self.sigma_init}")
            for name in ("beta", "dual_weight", "rcs_weight", "rcs_sigma_min", "dcr_weight"):
                check_weight(name, getattr(self, name))
            if self.kl_weight is not None:
                check_weight("kl_weight", self.kl_weight)
                if self.kl_weight > 0 and not self.vlq:
                    raise ValueError("kl_weight above 0 has no meaning without vlq: there is no variance; leave it out")
            if self.dcr_target == "prior" and self.dcr_moments == "live":
                raise ValueError(
                    "dcr_moments=live has no meaning where dcr_target is prior: set it to means or samples"
                )

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # The default until 2026-11, which was chosen at 8,000 images and d = 64, and breaks later: docs/vaevq.md.
        "first": {"rcs_sigma_min": 0.1, "dcr_target": "prior", "dcr_reduction": "sum"},
        # Equation by equation, open choices as latent diffusion has them. Equation 7 has no equilibrium once
        # reconstruction shrinks sigma: expect the collapse that the diagnostics show.
        "paper": {
            "quantize": "sample",
            "sigma_init": 1.0,
            "rcs_sigma": "detached",
            "rcs_sigma_min": 0.0,
            "rcs_reduction": "sum",
            "dcr_target": "prior",
            "dcr_reduction": "sum",
            "init": "unit_normal",
        },
        # What script-Yang/VAEVQ does: neither KL nor dcr is in its loss, and the codebook is SimVQ's, unfrozen.
        "released": {
            # They average the reconstruction losses of the two paths, which the harness adds, beside rcs at weight 1.
            "rcs_weight": 2.0,
            "kl_weight": 0.0,
            "dcr": False,
            "quantize": "mean",
            "sigma_init": 1.0,
            "rcs_sigma": "live",
            "rcs_sigma_min": 0.0,
            "rcs_reduction": "mean",
            "estimator": "reparameterised",
            "codebook_param": "linear",
            "init": "normal",
        },
    }

    # A decade or two about the defaults: the paper searches nothing, and names no KL weight. A field that is part of a
    # component is drawn only where the component is on.
    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "rcs_weight": Range(0.1, 10.0, log=True, group="losses"),
        "dcr_weight": Range(0.01, 1.0, log=True, group="losses"),
        "dual_weight": Range(0.1, 3.0, log=True, group="losses"),
        "kl_weight": Range(1e-8, 1e-4, log=True, group="losses"),
        "beta": Range(0.1, 2.0, log=True, group="losses", when={"rcs": False}),
        "sigma_init": Range(0.01, 1.0, log=True, group="latent"),
        "rcs_sigma_min": Range(0.03, 1.0, log=True, group="latent"),
        "quantize": Choices(("sample", "mean"), group="latent"),
        "init": Choices(("uniform", "normal", "unit_normal"), group="codebook"),
    }

    paper_rows: ClassVar[tuple[PaperRow, ...]] = PAPER_ROWS

    paper_presets: ClassVar[tuple[str, ...]] = ("first", "paper")

    published: ClassVar[tuple[Published, ...]] = PUBLISHED

    config: Config

    @classmethod
    def remark(cls, config: Config) -> str:
        """dcr to N(0, I) without vlq is legal and pulls at nothing but the codes."""
        if config.dcr and config.dcr_target == "prior" and not config.vlq:
            return "dcr draws the codes to N(0, I), but without vlq nothing draws the latents there"
        return ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.out_channels = config.dim
        self.in_channels = 2 * config.dim if config.vlq else config.dim  # no head for a variance that nobody uses
        self.embedding = nn.Parameter(initial_codebook(config.codebook_size, config.dim, config.init))
        self.projection = nn.Linear(config.dim, config.dim) if config.codebook_param == "linear" else None
        if config.dcr and config.dcr_target != "prior":
            self.register_buffer("latent_mean", torch.zeros(config.dim))
            self.register_buffer("latent_covariance", torch.zeros(config.dim, config.dim))
            self.register_buffer("moments_weight", torch.zeros(()))

    def _codes(self) -> Tensor:
        return mapped(self.embedding, self.projection)

    latent_mean: Tensor
    latent_covariance: Tensor
    moments_weight: Tensor

    @property
    def codebook(self) -> Tensor:
        """(K, d) effective code vectors, after the linear map where there is one."""
        with torch.no_grad(), torch.autocast(self.embedding.device.type, enabled=False):
            return self._codes().detach()

    @property
    def gradient_routes(self) -> GradientRoutes:
        """As configured; without rcs the routes of vqgan, and dcr reaches the latents only as a live target."""
        c = self.config
        hard_z, hard_codes = c.beta > 0 or c.beta_on == "codebook", c.beta > 0 or c.beta_on == "commitment"
        soft, drawn = c.rcs_weight > 0, c.dcr and c.dcr_weight > 0
        return GradientRoutes(
            decoder_to_input=True,
            decoder_to_parameters=c.vlq and c.estimator == "reparameterised",
            losses_to_input=(soft if c.rcs else hard_z)
            or (c.vlq and self._kl_weight > 0)
            or (drawn and c.dcr_moments == "live"),
            losses_to_parameters=(soft if c.rcs else hard_codes) or drawn,
        )

    @property
    def _kl_weight(self) -> float:
        return DEFAULT_KL_WEIGHT if self.config.kl_weight is None else self.config.kl_weight

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """Mean and log-variance (B, 2 d, h, w), or without vlq the mean alone, to the nearest codes."""
        if not self.config.vlq:
            return self._align(z, z, None) if self.training else Quantized(*quantize(z, self._codes()))
        mean, log_variance = z.chunk(2, 1)
        log_variance = (log_variance + 2 * math.log(self.config.sigma_init)).clamp(*LOG_VARIANCE_RANGE)
        if not self.training:
            sampled = self.config.evaluate == "sample"
            chosen = mean + (0.5 * log_variance).exp() * _fixed_noise(mean) if sampled else mean
            codes = quantize(chosen, self._codes())
            return Quantized(*codes, continuous=chosen, continuous_weight=self.config.dual_weight)
        sample = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)  # eq. 1
        quantized = self._align(mean, sample, log_variance)
        quantized.continuous, quantized.continuous_weight = sample, self.config.dual_weight  # eq. 3 and 4
        if self._kl_weight > 0:
            kl = kl_per_image(mean, log_variance).mean()
            per_image = 1 if self.config.kl_reduction == "image" else mean[0].numel()
            quantized.losses["kl"] = self._kl_weight * kl / per_image
        return quantized

    def _align(self, mean: Tensor, sample: Tensor, log_variance: Tensor | None) -> Quantized:
        """Quantize one of the two, and bring codes and encoder together."""
        config, codes = self.config, self._codes()
        z = sample if config.quantize == "sample" else mean
        z_q, indices = quantize(z, codes)  # eq. 2
        sigma = (0.5 * log_variance).exp() if log_variance is not None else None
        if config.rcs:
            losses = {"rcs": self._rcs(z_q, mean, sigma)}
        else:
            losses = vq_losses(z, z_q, config.beta, config.beta_on)
        if config.dcr:
            losses["dcr"] = self._dcr(mean if config.dcr_target == "means" else sample, codes)
        diagnostics = {**norms(mean, codes), **self._spread(z_q, mean, sigma)}
        return Quantized(self._estimate(mean, z, z_q, sigma), indices, losses, diagnostics=diagnostics)

    @torch.no_grad()
    def _spread(self, z_q: Tensor, mean: Tensor, sigma: Tensor | None) -> dict[str, Tensor]:
        """What sigma does, without the floor of rcs, under which a collapse would not be seen."""
        if sigma is None:
            return {}
        return {
            "sigma_median": sigma.median(),
            "sigma_under_floor": (sigma < self.config.rcs_sigma_min).float().mean(),
            "precision_max": sigma.min() ** -2,
            "alignment_rms": ((z_q - mean) / sigma).square().mean().sqrt(),
            **({"alignment_weight_max": self._floored(sigma).min() ** -2} if self.config.rcs else {}),
        }

    def _floored(self, sigma: Tensor) -> Tensor:
        return sigma.clamp(min=self.config.rcs_sigma_min)

    def _rcs(self, z_q: Tensor, mean: Tensor, sigma: Tensor | None) -> Tensor:
        config = self.config
        floored: Tensor | float = 1.0
        if sigma is not None:
            weighing = sigma.detach() if config.rcs_sigma == "detached" else sigma
            floored = self._floored(weighing)
        per_token = rcs_per_token(z_q, mean, floored).mean()
        return config.rcs_weight * per_token / (1 if config.rcs_reduction == "sum" else mean.shape[1])

    def _dcr(self, target: Tensor, codes: Tensor) -> Tensor:
        config = self.config
        if config.dcr_target == "prior":
            distance = squared_w2_to_standard_normal(codes)
        else:
            distance = squared_w2_to_normal(codes, *self._latent_moments(target))
        return config.dcr_weight * distance / (1 if config.dcr_reduction == "sum" else config.dim)

    def _latent_moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Running mean (d,) and covariance (d, d) of the latents; where they are live, this batch's carry gradients."""
        rows = latents.movedim(1, -1).flatten(0, -2)
        mean, covariance = moments(rows)
        covariance = covariance * (1 - 1 / len(rows))  # a mean over the batch, whatever its size
        with torch.no_grad():
            self.moments_weight.mul_(_MOMENTS_DECAY).add_(1 - _MOMENTS_DECAY)
            share = (1 - _MOMENTS_DECAY) / self.moments_weight  # an average of all batches so far, while they are few
            of_batch = _over_processes(mean, covariance)
            self.latent_mean.lerp_(of_batch[0], share)
            self.latent_covariance.lerp_(of_batch[1], share)
        running_mean, running_covariance = self.latent_mean.clone(), self.latent_covariance.clone()
        if self.config.dcr_moments == "detached":
            return running_mean, running_covariance
        return running_mean + mean - mean.detach(), running_covariance + covariance - covariance.detach()

    def _estimate(self, mean: Tensor, z: Tensor, z_q: Tensor, sigma: Tensor | None) -> Tensor:
        """z_q in value; the estimator says where the decoder's gradient goes."""
        if sigma is None or self.config.estimator == "straight_through":
            return straight_through(z, z_q)
        noise = ((z_q - mean) / sigma).detach()  # the ε that would have drawn z_q: gradient to the mean and sigma …
        return mean + sigma * noise + (z_q - z_q.detach())  # … and, unlike a straight-through, to the code

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) effective codes, after the linear map where there is one."""
        return look_up(indices, self._codes())
