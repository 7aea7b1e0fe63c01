"""CVQ-VAE: codes that nobody uses move to latents. Paper: https://arxiv.org/abs/2307.15139."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from vqbench.methods.blocks import sum_over_blocks
from vqbench.methods.codebook import (
    Init,
    as_rows,
    check_codebook,
    check_weight,
    initial_codebook,
    look_up,
    norms,
    straight_through,
    vq_losses,
)
from vqbench.methods.ema import check_decay, follow, hits
from vqbench.methods.nearest import SCORE_BYTES, nearest, nearest_both_ways
from vqbench.methods.processes import of_best_process, of_first_process
from vqbench.quantizer import Choices, GradientRoutes, Published, Quantized, Quantizer, Range, full_precision
from vqbench.registry import METHODS

Distance = Literal["cos", "l2"]
Anchor = Literal["closest", "random", "probrandom"]

_MOVES, _CONTRAST = {"part_of": "reinitialisation"}, {"part_of": "contrastive"}
_CIFAR = "CIFAR-10 32 px validation images, K 512, d 64, pytorch-fid against validation images"


def similarity(codes: Tensor, rows: Tensor, distance: Distance) -> Tensor:
    """(K, N): cosines of codes (K, d) and rows (N, d), or minus their squared distances; the larger the nearer."""
    if distance == "cos":
        return normalize(codes, dim=1) @ normalize(rows, dim=1).t()
    return 2 * codes @ rows.t() - codes.square().sum(1, keepdim=True) - rows.square().sum(1)


def contrastive_loss(codes: Tensor, rows: Tensor, distance: Distance, temperature: float) -> Tensor:
    """Cross entropy of each code's nearest of `rows` (N, d), without gradient, against the farther half; a scalar.

    The positive is the mean similarity of the nearest N / K rows, at least one; a mean over the codes.
    """
    near, far = max(1, len(rows) // len(codes)), len(rows) // 2
    constant = rows.detach()

    def term(block: Tensor) -> Tensor:
        scores = similarity(block, constant, distance)
        positive = scores.topk(near, dim=1, sorted=False).values.mean(1)
        negatives = scores.topk(far, dim=1, largest=False, sorted=False).values
        # log(eᵖ + Σ eⁿ) − p
        return softplus((negatives / temperature).logsumexp(1) - positive / temperature).sum()

    return sum_over_blocks(codes, term, len(rows)) / len(codes)


def _closest(rows: Tensor, closest: Tensor, compared: Tensor, codes: Tensor) -> Tensor:
    """`rows` (N, d) at `closest` (K,), of the process whose `compared` (N, d) there are the nearest to the codes."""
    return of_best_process(rows[closest], -(codes - compared[closest]).square().sum(1))


@METHODS.register("cvq")
class CVQ(Quantizer):
    """Online clustered codebook (Zheng and Vedaldi, 2023, arXiv:2307.15139).

    VQGAN's losses; after each step's look-up a code moves towards an anchor, one of the batch's latents, by
    a = exp(−10 K p / (1 − decay) − 1e-3), p its running share of the tokens: all the way if nobody uses it, not at
    all otherwise. Shares and anchors are those of all processes together (in the authors' code each has its own, and
    the codebooks part).

    The losses are of the codebook of before the move, as in the authors' code; the optimiser then applies their
    gradient, and its moments, to the moved one. Their contrastive loss normalises the moved codes in its backward
    pass; here its gradient is that of its value.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of `cvq`."""

        codebook_size: int = 512
        """Number of codes, K."""
        dim: int = 64
        """Channels of a code, d."""
        distance: Distance = "cos"
        """What the nearest code is of: cosines, or Euclidean distances; codes and anchors keep their length."""
        beta: float = 0.25
        """Weight of the commitment; the codebook term has weight 1."""
        reinitialisation: bool = field(default=True, metadata={"component": "reinitialisation"})
        """Move codes that are not used to anchors among the latents."""
        anchor: Anchor = field(default="closest", metadata=_MOVES)
        """A code's anchor: the closest latent, one from a pool of K, or one drawn by softmax of the similarities."""
        decay: float = field(default=0.99, metadata=_MOVES)
        """Share of the running shares that a step keeps."""
        contrastive: bool = field(default=False, metadata={"component": "contrastive"})
        """Draw each code to its nearest latents, and away from the farther half."""
        contrastive_weight: float = field(default=1.0, metadata=_CONTRAST)
        """Weight of that loss; the authors' has none."""
        temperature: float = field(default=0.07, metadata=_CONTRAST)
        """Temperature of its softmax."""
        init: Init = "uniform"
        """Start of the codes: uniform in ±1/K (the authors'), normal N(0, 1/d), or unit_normal N(0, 1)."""

        def __post_init__(self) -> None:
            check_codebook(self.codebook_size, self.dim)
            check_weight("beta", self.beta)
            check_weight("contrastive_weight", self.contrastive_weight)
            check_decay(self.decay)
            if not self.temperature > 0:
                raise ValueError(f"temperature must be positive, not {self.temperature}")

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # the default of the authors' class; that of their command line is closest
        "probrandom": {"anchor": "probrandom"},
        "random": {"anchor": "random"},
        "contrastive": {"contrastive": True},
    }

    published: ClassVar[tuple[Published, ...]] = (Published("rfid", 24.73, _CIFAR, "the paper"),)

    search_space: ClassVar[Mapping[str, Range | Choices]] = {
        "beta": Range(0.1, 2.0, log=True, group="losses"),  # as vqgan's
        "distance": Choices(("cos", "l2"), group="codebook"),  # what the paper compares
        "anchor": Choices(("closest", "random", "probrandom"), group="codebook"),
    }

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        self.embedding = nn.Parameter(initial_codebook(config.codebook_size, config.dim, config.init))
        if config.contrastive:  # the more latents, the more negatives
            self.losses_of_batch_size = ("contrastive",)
        if config.reinitialisation:
            self.register_buffer("shares", torch.zeros(config.codebook_size))
        if config.reinitialisation and config.anchor == "random":
            self.register_buffer("pool", initial_codebook(config.codebook_size, config.dim, "uniform"))
            self.register_buffer("pooled", torch.zeros((), dtype=torch.int64))

    shares: Tensor
    pool: Tensor
    pooled: Tensor

    @property
    def codebook(self) -> Tensor:
        """(K, d) code vectors."""
        return self.embedding.detach()

    @property
    def gradient_routes(self) -> GradientRoutes:
        """As vqgan's."""
        return GradientRoutes(True, False, self.config.beta > 0, True)

    @full_precision
    def forward(self, z: Tensor) -> Quantized:
        """z (B, d, h, w) to its nearest codes; in training the unused codes then move."""
        config, rows = self.config, as_rows(z.detach())
        compared = (rows, self.embedding.detach())
        if config.distance == "cos":
            compared = (normalize(compared[0], dim=1), normalize(compared[1], dim=1))
        moves = self.training and config.reinitialisation
        if moves and config.anchor == "closest":
            chosen, closest = nearest_both_ways(*compared)
        else:
            chosen, closest = nearest(*compared), None
        indices = chosen.view(z.shape[0], *z.shape[2:])
        z_q = look_up(indices, self.embedding)
        if not self.training:
            return Quantized(z_q, indices)
        losses = vq_losses(z, z_q, config.beta, "commitment")
        diagnostics = norms(z, self.embedding)
        if config.contrastive:
            contrast = contrastive_loss(self.embedding, rows, config.distance, config.temperature)
            losses["contrastive"] = config.contrastive_weight * contrast
        if moves:
            anchors = self._anchors(rows) if closest is None else _closest(rows, closest, *compared)
            diagnostics["anchored"] = self._reinitialise(chosen, anchors)
        return Quantized(straight_through(z, z_q), indices, losses, diagnostics=diagnostics)

    @torch.no_grad()
    def _reinitialise(self, chosen: Tensor, anchors: Tensor) -> Tensor:
        """Move codes to their anchors (K, d); the mean of how far, 0-d."""
        counts = hits(chosen, self.codebook_size)
        follow(self.shares, counts / counts.sum(), self.config.decay)
        moved = torch.exp(-10 * self.codebook_size * self.shares / (1 - self.config.decay) - 1e-3)
        self.embedding.lerp_(anchors, moved[:, None])
        return moved.mean()

    @torch.no_grad()
    def _anchors(self, rows: Tensor) -> Tensor:
        """(K, d): for each code one of the latents (N, d) of all processes, at random."""
        if self.config.anchor == "random":
            return self._from_pool(rows)
        score, found = self._drawn(rows)
        return of_best_process(rows[found], score)

    def _drawn(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A row for each code with the probabilities softmax(similarity): a score and its index.

        The score is the logarithm of the weight of all rows here plus Gumbel noise: the largest of all processes' is a
        draw among the processes by their weights, and with it that among all their rows.
        """
        scores, found = [], []
        for block in torch.split(self.embedding, max(1, SCORE_BYTES // (4 * len(rows)))):
            logits = similarity(block, rows, self.config.distance)
            most = logits.amax(1, keepdim=True)
            weights = logits.sub_(most).exp_().cumsum(1)
            drawn = torch.searchsorted(weights, weights[:, -1:] * torch.rand_like(most), right=True)
            found.append(drawn[:, 0].clamp(max=len(rows) - 1))
            noise = torch.empty_like(most).exponential_().log()
            scores.append((most + weights[:, -1:].log() - noise)[:, 0])
        return torch.cat(scores), torch.cat(found)

    def _from_pool(self, rows: Tensor) -> Tensor:
        """The pool of K latents, after the batch has replaced some of it, or all where it is larger."""
        size, before = len(self.pool), int(self.pooled)
        if len(rows) > size:
            self.pool.copy_(rows[torch.randint(len(rows), (size,), device=rows.device)])
        elif before < size:
            self.pool[before : before + len(rows)] = rows[: size - before]
        else:
            self.pool[torch.randperm(size, device=rows.device)[: len(rows)]] = rows
        self.pooled.fill_(min(size, before + len(rows)))
        self.pool.copy_(of_first_process(self.pool))
        return self.pool

    @full_precision
    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, d, h, w) codes."""
        return look_up(indices, self.embedding)
