"""Maximum mean discrepancy of codes and latents, without a matrix of all pairs (Gretton et al., 2012)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqbench.methods.products import ieee_products, products

TILE = 512
"""Rows and columns of a block of kernels on a CPU: 1 MiB, some of which its cache holds."""


def squared_mmd(codes: Tensor, rows: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of codes (K, d) and rows (N, d), a scalar; its gradient goes to the codes.

    As in Wasserstein-VQ (Fang et al., 2025, arXiv:2506.15078): kernels exp(−D / b) + exp(−D / 2b) of the squared
    distance D, with b, held constant, the mean D of two different ones among all N + K. Pairs of one with itself count
    in the means.
    """
    with torch.autocast(codes.device.type, enabled=False), ieee_products(codes.device):
        distance: Tensor = _SquaredMMD.apply(codes, rows.detach())
    return distance


def _bandwidth(centered: Tensor) -> Tensor:
    size = len(centered)
    # Σ_ij |x_i − x_j|² = 2 n Σ_i |x_i − x̄|²
    return (2 * size * centered.square().sum() / (size**2 - size)).clamp(min=1e-30)


class _Kernels:
    """Blocks of kernels between points (n, d)."""

    def __init__(self, points: Tensor, bandwidth: Tensor) -> None:
        # One product of the two has both norms in it: of x / b, −|x|² / 2b, 1 and y, 1, −|y|² / 2b.
        norm, one = points.square().sum(1, keepdim=True) * (-0.5 / bandwidth), torch.ones_like(points[:, :1])
        self.left, self.right = torch.cat([points / bandwidth, norm, one], 1), torch.cat([points, one, norm], 1)
        side = TILE if points.device.type == "cpu" else 4 * TILE
        self.side = side

    def slices(self, start: int, end: int) -> list[slice]:
        """Rows from `start` to `end`, as many at a time as a block has."""
        return [slice(first, min(first + self.side, end)) for first in range(start, end, self.side)]

    def block(self, of: slice, with_: slice) -> tuple[Tensor, Tensor]:
        """Root kernels s = exp(−D / 2b), and w = s² + s / 2, which is −b times the slope of s² + s."""
        left, right = self.left[of], self.right[with_]
        root = products(left, right).exp_()
        return root, torch.mul(root, 0.5).addcmul_(root, root)


class _SquaredMMD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, rows: Tensor) -> Tensor:
        n, k = len(rows), len(codes)
        points = torch.cat([rows, codes])
        points = points - points.mean(0)  # what cancels in a product is least about the mean
        bandwidth = _bandwidth(points)
        kernels = _Kernels(points, bandwidth)
        of_rows, of_codes = kernels.slices(0, n), kernels.slices(n, n + k)
        exact = torch.float32 if codes.device.type == "mps" else torch.float64  # MPS has no float64
        own, between, within = (torch.zeros((), dtype=exact, device=codes.device) for _ in range(3))
        for i, left in enumerate(of_rows):
            for right in of_rows[i:]:
                root, weights = kernels.block(left, right)
                own += (weights.sum() + 0.5 * root.sum()) * (1 if right == left else 2)
        # Σ_j −2 w_ij (c_i − y_j) / b is the gradient of code i's kernels; among codes it is both of a pair's. Of it
        # here are Σ_j w_ij and Σ_j w_ij y_j. Tiles under the diagonal are those above it, and transposed sums take a
        # CPU a quarter less time.
        apart, together = -2 / (n * k), 2 / k**2
        mass, sums, mirrored = codes.new_zeros(k), torch.zeros_like(codes), codes.new_zeros(codes.shape[1], k)
        for i, left in enumerate(of_codes):
            mine = slice(left.start - n, left.stop - n)
            for right in of_rows:
                root, weights = kernels.block(left, right)
                of_each = weights.sum(1)
                mass[mine] += apart * of_each
                sums[mine].add_(products(weights, points[right].t()), alpha=apart)
                between += of_each.sum() + 0.5 * root.sum()
            for right in of_codes[i:]:
                root, weights = kernels.block(left, right)
                of_each = weights.sum(1)
                mass[mine] += together * of_each
                sums[mine].add_(products(weights, points[right].t()), alpha=together)
                within += (of_each.sum() + 0.5 * root.sum()) * (1 if right == left else 2)
                if right != left:
                    theirs = slice(right.start - n, right.stop - n)
                    mass[theirs] += together * weights.sum(0)
                    mirrored[:, theirs].add_(products(points[left].t(), weights.t()), alpha=together)
        ctx.save_for_backward((-2 / bandwidth) * (points[n:] * mass[:, None] - sums - mirrored.t()))
        return (own / n**2 - 2 * between / (n * k) + within / k**2).to(codes.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (of_codes,) = ctx.saved_tensors
        return gradient * of_codes, None
