"""Wasserstein VQ: the codebook is drawn to the latents' distribution. Paper: https://arxiv.org/abs/2506.15078."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vqbench.methods.codebook import (
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
from vqbench.methods.dcr import moments, w2_to_normal
from vqbench.methods.mmd import squared_mmd
from vqbench.methods.processes import of_all_processes
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

_OPEN = {"paper_unspecified": True}
_MATCHING = {"part_of": "matching"}
_README = ("ImageNet 256 px, f 16, d 8, K 100000, no GAN, their own evaluation", "README of Wasserstein-VQ")


@METHODS.register("wvq")
class WVQ(Quantizer):
    """Enhancing vector quantization with distributional matching (Fang et al., 2025, arXiv:2506.15078).

    VQGAN's losses, and a distance of the codes' distribution to that of the latents, which moves the codes alone: the
    Wasserstein distance between the normals with their moments, with a queue of latents for those of the latents, or
    (`wvq@mmd`) the maximum mean discrepancy to the batch.

    Of the queue only what has been filled counts; the authors' starts as noise, which is the target until as many
    latents have been seen. It holds the latents of all processes, and takes batches of any size.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `wvq`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a code, d."""
        beta: float = 0.1
        """Weight of the commitment; the codebook term has weight 1."""
        matching: bool = field(default=True, metadata={"component": "matching"})
        """Draw the codes' distribution to that of the latents."""
        matching_weight: float = field(default=0.5, metadata=_MATCHING)
        """Weight of the distance between the two."""
        matching_by: Literal["wasserstein", "mmd"] = field(default="wasserstein", metadata=_MATCHING)
        """That distance: of the normals with their moments, or the squared maximum mean discrepancy."""
        queue_size: int = field(default=65536, metadata=_MATCHING)
        """Latents whose moments are the target of wasserstein, the latest."""
        queue_start: Literal["empty", "noise"] = field(default="empty", metadata=_OPEN | _MATCHING)
        """What the queue holds at first: nothing, or (authors' code) N(0, 0.01²)."""
        init: Init = "uniform"
        """Start of the codes: uniform in ±1/K (one of the authors'), normal N(0, 1/d), or unit_normal N(0, 1)."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("beta", self.beta)
            check_weight("matching_weight", self.matching_weight)
            if self.queue_size < 2:
                raise ValueError(f"queue_size must be at least 2, not {self.queue_size}")

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "mmd": {"matching_by": "mmd"},
        # the authors' other scripts, which train it within a pretrained tokenizer
        "vqgan": {"beta": 0.2, "matching_weight": 1.0, "queue_size": 32768},
        "var": {"beta": 1.0, "matching_weight": 0.2},
    }

    published: ClassVar[tuple[Published, ...]] = (
        Published("usage", 1.0, *_README),
        Published("perplexity", 93e3, *_README),  # rounded
        Published("psnr", 25.88, *_README),
    )

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),  # the authors' are 0.1, 0.2 and 1
        "matching_weight": Range(0.05, 5.0, log=True, group="losses"),  # a decade about the authors' 0.2 to 1
        "init": Choices(("uniform", "normal", "unit_normal"), group="codebook"),
    }

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        self.embedding = nn.Parameter(initial_codebook(config.codebook_size, config.dim, config.init))
        if config.matching and config.matching_by == "mmd":  # whose bandwidth is a mean over latents and codes together
            self.losses_of_batch_size = ("mmd",)
        elif config.matching:
            noise = config.queue_start == "noise"
            start = torch.empty(config.queue_size, config.dim).normal_(0, 0.01) if noise else None
            self.register_buffer("queue", torch.zeros(config.queue_size, config.dim) if start is None else start)
            self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64))
            self.register_buffer("queue_filled", torch.tensor(config.queue_size if noise else 0))

    queue: Tensor
    queue_pointer: Tensor
    queue_filled: Tensor

    @property
    def codebook(self) -> Tensor:
        """(K, d) code vectors."""
        return self.embedding.detach()

    @property
    def gradient_routes(self) -> GradientRoutes:
        """As vqgan's; the matching moves the codes alone."""
        return GradientRoutes(True, False, self.config.beta > 0, True)

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to its nearest codes; losses in training only."""
        z_q, indices = quantize(z, self.embedding)
        if not self.training:
            return Quantized(z_q, indices)
        config = self.config
        losses = vq_losses(z, z_q, config.beta, "commitment")
        diagnostics = norms(z, self.embedding)
        if config.matching and config.matching_by == "mmd":
            losses["mmd"] = config.matching_weight * squared_mmd(self.embedding, as_rows(z))
        elif config.matching:
            self._enqueue(as_rows(z.detach()))
            diagnostics["queue_filled"] = self.queue_filled / config.queue_size
            losses["wasserstein"] = config.matching_weight * w2_to_normal(self.embedding, *self._queue_moments())
        return Quantized(straight_through(z, z_q), indices, losses, diagnostics=diagnostics)

    @torch.no_grad()
    def _enqueue(self, rows: Tensor) -> None:
        """The latents (N, d) of all processes in the place of the oldest."""
        size = self.config.queue_size
        rows = of_all_processes(rows).flatten(0, 1)[-size:]
        places = (self.queue_pointer + torch.arange(len(rows), device=rows.device)) % size
        self.queue.index_copy_(0, places, rows)
        self.queue_pointer.add_(len(rows)).remainder_(size)
        self.queue_filled.add_(len(rows)).clamp_(max=size)

    @torch.no_grad()
    def _queue_moments(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of what the queue holds.

        The covariance is unbiased for a full queue. Until then it is the mean over what there is times the same
        constant, so that the loss is no function of the batch's size.
        """
        filled, size = int(self.queue_filled), self.config.queue_size
        mean, covariance = moments(self.queue[:filled])
        return mean, covariance * ((1 - 1 / filled) * size / (size - 1))

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) codes."""
        return look_up(indices, self.embedding)
