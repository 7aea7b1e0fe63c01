"""VQGAN with a codebook of moving averages. Paper of the codebook: https://arxiv.org/abs/1906.00446."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import mse_loss

from vqbench.methods.codebook import (
    Init,
    as_rows,
    check_codebook,
    check_weight,
    initial_codebook,
    look_up,
    norms,
    quantize,
)
from vqbench.methods.ema import EMACodebook, FirstCount, check_decay, check_epsilon
from vqbench.methods.estimators import Estimator, estimate
from vqbench.methods.vaevq_paper import baseline
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

_OPEN = {"paper_unspecified": True}
_RESTART, _COMMITMENT = {"part_of": "restart"}, {"part_of": "commitment"}


def _of_vqgan_lc(metric: str, value: float, codes: str) -> Published:
    where = f"ImageNet 256 px validation images, f 16, K {codes}, clean-fid"
    return Published(metric, value, where, "VQGAN-LC paper, whose authors trained it")


@METHODS.register("vqgan_ema")
class VQGANEMA(Quantizer):
    """Generating diverse high-fidelity images with VQ-VAE-2 (Razavi et al., 2019, arXiv:1906.00446).

    VQGAN whose codes are moving averages of the latents assigned to them. Look-up, latents and loss use the codebook
    of before the step's update; counts and sums are of all processes together.

    The counts start at 1. The authors' code that everybody quotes (taming-transformers) starts them at 0 beside sums
    that start at the codes: the first update then throws a code that no latent chose to 1e5 times its start, and one
    that c latents chose to about 99 / c times, and all but a few are lost (`vqgan_ema@released`: as arithmetic, not
    to train with). A code that no latent chooses keeps its place while its count is far above epsilon, and then, after
    a thousand steps at a decay of 0.99, sinks to zero: `restart` brings it back.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `vqgan_ema`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a code, d."""
        decay: float = 0.99
        """Share of counts and sums that a step keeps."""
        epsilon: float = 1e-5
        """What is added to each count before it divides, relative to their sum."""
        first_count: FirstCount = field(default=1, metadata=_OPEN)
        """The counts at the start: 1, or 0 as in the authors' code, whose first update loses the codes."""
        commitment: bool = field(default=True, metadata={"component": "commitment"})
        """Draw the latents to their codes."""
        beta: float = field(default=0.25, metadata=_COMMITMENT)
        """Weight of the commitment."""
        restart: bool = field(default=False, metadata={"component": "restart"})
        """Start dead codes again from latents of the batch, with count and sum."""
        restart_below: float = field(default=1.0, metadata=_RESTART)
        """A code is dead whose moving average of latents a step is under this; it depends on the batch size."""
        estimator: Estimator = "straight_through"
        """Decoder's gradient: as it stands, or turned with the latent to its code, in one of two official forms."""
        init: Init = "unit_normal"
        """Start of the codes: unit_normal N(0, 1) (the authors'), normal N(0, 1/d), or uniform in ±1/K."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_decay(self.decay)
            check_epsilon(self.epsilon)
            check_weight("beta", self.beta)
            check_weight("restart_below", self.restart_below)

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # taming-transformers' EMAVectorQuantizer (whose constructor raises as released): arithmetic, not a training
        "released": {"first_count": 0},
        # the rotation trick's VQ-VAE, whose codebook is vector-quantize-pytorch's
        "rotation": {"estimator": "rotation", "decay": 0.8, "beta": 1.0},
    }

    published: ClassVar[tuple[Published, ...]] = (
        _of_vqgan_lc("rfid", 4.93, "1024"),
        _of_vqgan_lc("rfid", 3.41, "16384"),
        _of_vqgan_lc("usage", 0.832, "16384"),
        _of_vqgan_lc("rfid", 3.88, "50000"),
        _of_vqgan_lc("rfid", 3.46, "100000"),
        *baseline("rfid", 6.36, 9.35),
        *baseline("psnr", 20.23, 23.37),
        *baseline("ssim", 0.55, 0.83),
        *baseline("usage", 0.256, 0.181, "figure 5"),
    )

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),  # as vqgan's; the forms in use have 0.25 and 1
        "decay": Choices((0.8, 0.9, 0.99), group="codebook"),  # of vector-quantize-pytorch to taming-transformers
        "init": Choices(("uniform", "normal", "unit_normal"), group="codebook"),
        "restart": Choices((False, True), group="codebook"),
    }

    config: Config

    @classmethod
    def remark(cls, config: Config) -> str:
        """Counts from 0 without restart are the authors' arithmetic, and lose the codebook in a step."""
        if config.first_count == 0 and not config.restart:
            return "first_count=0 throws the codes far away in the first step; only few are ever used again"
        return ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        codes = initial_codebook(config.codebook_size, config.dim, config.init)
        self.ema = EMACodebook(codes, config.decay, config.epsilon, config.first_count)

    @property
    def codebook(self) -> Tensor:
        """(K, d) code vectors, a copy: the next step moves them."""
        return self.ema.codes.clone()

    @property
    def gradient_routes(self) -> GradientRoutes:
        """The codes learn without gradients."""
        commits = self.config.commitment and self.config.beta > 0
        return GradientRoutes(True, False, commits, False)

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to its nearest codes; in training the codes then move."""
        z_q, indices = quantize(z, self.ema.codes)
        if not self.training:
            return Quantized(z_q, indices)
        config = self.config
        losses = {"commitment": config.beta * mse_loss(z, z_q)} if config.commitment else {}
        diagnostics = norms(z, self.ema.codes)
        threshold = config.restart_below if config.restart else 0.0
        restarted = self.ema.update(as_rows(z), indices.flatten(), threshold)
        if config.restart:
            diagnostics["restarted"] = restarted
        return Quantized(estimate(z, z_q, config.estimator), indices, losses, diagnostics=diagnostics)

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) codes."""
        return look_up(indices, self.ema.codes)
