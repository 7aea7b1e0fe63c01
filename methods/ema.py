"""Codes that are moving averages of the latents assigned to them, in place of gradients.

VQ-VAE-2 (Razavi et al., 2019, arXiv:1906.00446); restart of dead codes as in RQ-VAE (Lee et al., 2022,
arXiv:2203.01941).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vqbench.methods.processes import of_first_process, total_over_processes

FirstCount = Literal[0, 1]


def check_decay(decay: float) -> None:
    """ValueError for a decay that keeps everything, or nothing that makes sense."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1, not {decay}")


def check_epsilon(epsilon: float) -> None:
    """ValueError for a smoothing that does not keep a count from zero."""
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be between 0 and 1, not {epsilon}")


def hits(indices: Tensor, codebook_size: int) -> Tensor:
    """How many of `indices` (N,), over all processes, name each code: (codebook_size,) float32."""
    return total_over_processes(torch.bincount(indices, minlength=codebook_size).float())


def follow(average: Tensor, value: Tensor, decay: float) -> None:
    """One step of a moving average, in place."""
    average.mul_(decay).add_(value, alpha=1 - decay)


def drawn_rows(rows: Tensor, count: int) -> Tensor:
    """`count` of `rows` (N, d) at random; all of them, each with its own small noise, where N is smaller."""
    if len(rows) < count:
        rows = rows.repeat(-(-count // len(rows)), 1)
        rows = rows + torch.rand_like(rows) * (0.01 * rows.shape[1] ** -0.5)
    return rows[torch.randperm(len(rows), device=rows.device)[:count]]


class EMACodebook(nn.Module):
    """Codes (K, d) with the moving averages that they are made of: counts n (K,) and sums m (K, d), all buffers.

    e_k = m_k / n̄_k, with n̄_k = (n_k + ε) / (n + K ε) · n and n = Σ n_k: no count is zero.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: Tensor, decay: float, epsilon: float, first_count: FirstCount) -> None:
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.full((len(codes),), float(first_count)))
        self.register_buffer("sums", codes.clone())

    @torch.no_grad()
    def update(self, rows: Tensor, indices: Tensor, restart_below: float = 0.0) -> Tensor:
        """Move the codes to `rows` (N, d) at `indices` (N,), over all processes; the share of codes restarted, 0-d.

        A code whose count is then under `restart_below` starts again from one of the first process's rows, with its
        count at 1 and its sum at that row.
        """
        rows, size = rows.detach(), len(self.codes)
        sums = torch.zeros_like(self.sums).index_add_(0, indices, rows)
        follow(self.counts, hits(indices, size), self.decay)
        follow(self.sums, total_over_processes(sums), self.decay)
        dead = self.counts < restart_below
        if restart_below > 0:
            fresh = of_first_process(drawn_rows(rows, size))
            self.sums.copy_(torch.where(dead[:, None], fresh, self.sums))
            self.counts.masked_fill_(dead, 1.0)
        total = self.counts.sum()
        smoothed = (self.counts + self.epsilon) / (total + size * self.epsilon) * total
        self.codes.copy_(self.sums / smoothed[:, None])
        return dead.float().mean()
