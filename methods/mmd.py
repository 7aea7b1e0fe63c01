"""Maximum mean discrepancy of codes and latents, without a matrix of all pairs (Gretton et al., 2012)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqbench.methods.nearest import ieee_products

TILE = 512
"""Rows and columns of the block of kernels that exists at one time on a CPU: 1 MiB, which its cache holds."""


def squared_mmd(codes: Tensor, rows: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of codes (K, d) and rows (N, d), a scalar; its gradient goes to the codes.

    As in Wasserstein-VQ (Fang et al., 2025, arXiv:2506.15078): kernels exp(−D / b) + exp(−D / 2b) of the squared
    distance D, with b, held constant, the mean D of two different ones among all N + K. Pairs of one with itself count
    in the means.
    """
    with torch.autocast(codes.device.type, enabled=False), ieee_products(codes.device):
        distance: Tensor = _SquaredMMD.apply(codes, rows.detach())
    return distance


def _bandwidth(together: Tensor) -> Tensor:
    size = len(together)
    # Σ_ij |x_i − x_j|² = 2 n Σ_i |x_i − x̄|²
    total = 2 * size * (together - together.mean(0)).square().sum()
    return (total / (size**2 - size)).clamp(min=1e-30)


def _kernels(left: Tensor, right: Tensor, bandwidth: Tensor) -> tuple[Tensor, Tensor]:
    """Root kernels s = exp(−D / 2b) of the rows of two, and w = s² + s / 2, which is −b times the kernels' slope."""

    def lifted(points: Tensor, side: int) -> Tensor:
        norm, one = points.square().sum(1, keepdim=True) * (-0.5 / bandwidth), torch.ones_like(points[:, :1])
        return torch.cat([points / bandwidth, norm, one] if side == 0 else [points, one, norm], 1)

    root = (lifted(left, 0) @ lifted(right, 1).t()).exp_()  # one product has both norms in it
    return root, (0.5 * root).addcmul_(root, root)


def _with_one(points: Tensor) -> Tensor:
    return torch.cat([points, torch.ones_like(points[:, :1])], 1)


class _SquaredMMD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, rows: Tensor) -> Tensor:
        together = torch.cat([rows, codes])
        bandwidth, center = _bandwidth(together), together.mean(0)
        latents, points = rows - center, codes - center  # what cancels in a product is least about the mean
        side = TILE if codes.device.type == "cpu" else 4 * TILE
        of_rows, of_codes = latents.split(side), points.split(side)
        # Σ_j w_ij [y_j, 1] of each code: with the latents, and with the codes
        across, among = (points.new_zeros(len(codes), points.shape[1] + 1) for _ in range(2))
        exact = torch.float32 if codes.device.type == "mps" else torch.float64  # MPS has no float64
        own, between, within = (torch.zeros((), dtype=exact, device=codes.device) for _ in range(3))
        for i, left in enumerate(of_rows):
            for j, right in enumerate(of_rows[i:]):
                root, weights = _kernels(left, right, bandwidth)
                own += (weights.sum() + 0.5 * root.sum()) * (1 if j == 0 else 2)
        for i, left in enumerate(of_codes):
            mine = slice(i * side, i * side + len(left))
            for right in of_rows:
                root, weights = _kernels(left, right, bandwidth)
                across[mine] += weights @ _with_one(right)
                between += 0.5 * root.sum()
            for j, right in enumerate(of_codes[i:], start=i):
                root, weights = _kernels(left, right, bandwidth)
                among[mine] += weights @ _with_one(right)
                if j > i:
                    among[j * side : j * side + len(right)] += weights.t() @ _with_one(left)
                within += 0.5 * root.sum() * (1 if j == i else 2)
        between, within = between + across[:, -1].sum(), within + among[:, -1].sum()
        n, k = len(rows), len(codes)

        def pulled(sums: Tensor) -> Tensor:
            """−2 / b Σ_j w_ij (c_i − y_j): the gradient of code i's kernels."""
            return (-2 / bandwidth) * (points * sums[:, -1:] - sums[:, :-1])

        ctx.save_for_backward(2 / k**2 * pulled(among) - 2 / (n * k) * pulled(across))
        return (own / n**2 - 2 * between / (n * k) + within / k**2).to(codes.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (of_codes,) = ctx.saved_tensors
        return gradient * of_codes, None
