"""Distance of a codebook's distribution to a normal: equations 8 to 11 of VAEVQ (arXiv:2511.06863)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 2**20
"""Upper bound, in bytes, of a block of codes in float64 on a CPU, whose cache should hold the two that there are."""

MIN_EIGENVALUE = 1e-6
"""Below this eigenvalue the square root is replaced by its chord through zero."""


def _square_root(eigenvalues: Tensor) -> Tensor:
    # The root's slope is infinite at 0, where a codebook with fewer codes than dimensions has eigenvalues. A clamp
    # would take the slope away altogether, and of a codebook that starts small (±1/K) only Tr Σ would be left,
    # which pulls it to nothing. The chord keeps a bounded push outwards, and the value at 0.
    usual = eigenvalues.clamp(min=MIN_EIGENVALUE).sqrt()
    return torch.where(eigenvalues > MIN_EIGENVALUE, usual, eigenvalues / MIN_EIGENVALUE**0.5)


def moments(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of codes (K, d), of one code 0: equations 9 and 10."""
    mean = codes.mean(0)
    centered = codes - mean
    return mean, centered.t() @ centered / max(len(codes) - 1, 1)


class _MomentsByBlocks(torch.autograd.Function):
    """`moments` in float64, `rows` codes at a time both ways: in whole, most of the time goes to getting memory."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Mean and covariance."""
        mean = torch.zeros(codes.shape[1], dtype=torch.float64, device=codes.device)
        for block in torch.split(codes, rows):
            mean += block.double().sum(0)
        mean /= len(codes)
        covariance = mean.new_zeros(len(mean), len(mean))
        for block in torch.split(codes, rows):
            centered = block - mean
            covariance.addmm_(centered.t(), centered)
        ctx.rows = rows
        ctx.save_for_backward(codes, mean)
        return mean, covariance / (len(codes) - 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_covariance: Tensor) -> tuple[Tensor, None]:
        """To the codes: of the mean the same for each, of the covariance along what each has off the mean."""
        codes, mean = ctx.saved_tensors
        shared, slope = of_mean / len(codes), (of_covariance + of_covariance.t()) / (len(codes) - 1)
        gradient = torch.empty_like(codes)
        for block, found in zip(torch.split(codes, ctx.rows), torch.split(gradient, ctx.rows), strict=True):
            found.copy_(torch.addmm(shared, block - mean, slope))
        return gradient, None


def _wide_moments(codes: Tensor, unit: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """`moments` of codes over `unit`, in float64 (MPS has none)."""
    rows = max(1, BLOCK_BYTES // (8 * codes.shape[1]))
    if codes.device.type != "cpu" or len(codes) <= rows:
        return moments((codes if codes.device.type == "mps" else codes.double()) / unit)
    mean, covariance = _MomentsByBlocks.apply(codes, rows)  # type: ignore[no-untyped-call]
    return mean / unit, covariance / unit**2


def squared_w2_to_standard_normal(codes: Tensor) -> Tensor:
    """W₂² between the normal with the moments of codes (K, d) and N(0, I), a scalar of the dtype of `codes`.

    Equation 11 with the + d that it lacks: without it the value is below the distance by d, the gradient the same.
    """
    # d × d in float64 costs nothing beside the encoder, and the small eigenvalues need it. MPS has no float64.
    mean, covariance = _wide_moments(codes)
    # Tr Σ^½ from the eigenvalues alone: their gradient needs no gap between them, unlike that of the eigenvectors.
    roots = _on_host(_sum_of_roots, covariance)
    distance = mean.square().sum() + covariance.trace() - 2 * roots + codes.shape[1]
    return distance.to(codes.dtype)


def squared_w2_to_normal(codes: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """W₂² between the normal with the moments of codes (K, d) and N(mean, covariance), a scalar of `codes`' dtype.

    mean (d,) and covariance (d, d), which may be singular, may carry gradients. For N(0, I) it is equation 11 with its
    + d. What is not finite makes it NaN.
    """
    wide = codes.dtype if codes.device.type == "mps" else torch.float64
    mean, covariance = mean.to(wide), covariance.to(wide)
    # In units of the target's own size, so that the chord under the root means the same for latents of any scale.
    variance = (covariance.detach().trace() / codes.shape[1]).clamp(min=1e-30)
    own_mean, own = _wide_moments(codes, variance.sqrt())
    target = covariance / variance
    roots = _on_host(_trace_of_roots, own, target)
    apart = (own_mean - mean / variance.sqrt()).square().sum()
    distance = apart + own.trace() + target.trace() - 2 * roots
    return (variance * distance).to(codes.dtype)


def _sum_of_roots(covariance: Tensor) -> Tensor:
    return _square_root(torch.linalg.eigvalsh(covariance)).sum()


def _trace_of_roots(own: Tensor, target: Tensor) -> Tensor:
    """Tr (T^½ O T^½)^½, with the gradients of both sides."""
    roots = _trace_of_root(own, target.detach())
    if target.requires_grad:  # the same number again, for the gradient of the other side
        other = _trace_of_root(target, own.detach())
        roots = roots + other - other.detach()
    return roots


def _on_host(function: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
    """`function`, a scalar of matrices (d, d), whose eigenvalues CUDA is slow in and waits for several times a step."""
    return OnHost.apply(function, *matrices) if matrices[0].is_cuda else function(*matrices)  # type: ignore[no-untyped-call, no-any-return]


class OnHost(torch.autograd.Function):
    """A scalar of matrices (d, d) and its gradients, found on the CPU, for which the device is waited for once."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
        """The value, on the device of the matrices; the gradients are found with it."""
        wanted = ctx.needs_input_grad[1:]
        here = torch.stack(matrices).cpu().unbind()
        leaves = [matrix.clone().requires_grad_(needed) for matrix, needed in zip(here, wanted, strict=True)]
        with torch.enable_grad():
            value = function(*leaves)
            moved = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(value, moved)) if moved else iter(())
        gradients = torch.stack(
            [next(found) if needed else torch.zeros_like(m) for m, needed in zip(here, wanted, strict=True)]
        )
        ctx.save_for_backward(gradients.to(matrices[0].device))
        return value.detach().to(matrices[0].device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """The gradients, times what comes from above."""
        (found,) = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        return None, *(gradient * g if needed else None for g, needed in zip(found, wanted, strict=True))


def _trace_of_root(moving: Tensor, fixed: Tensor) -> Tensor:
    """Tr (F^½ M F^½)^½ of two covariances; its gradient goes to M alone, whose eigenvectors it does not need."""
    # LAPACK raises at what is not finite, and a training has words of its own for that: 0 × NaN brings it back
    values, vectors = torch.linalg.eigh(fixed.nan_to_num(0.0, 0.0, 0.0))
    factor = vectors * values.clamp(min=0).sqrt()
    inner = (factor.t() @ moving @ factor).nan_to_num(0.0, 0.0, 0.0)
    return _square_root(torch.linalg.eigvalsh(inner)).sum() + 0 * (fixed.sum() + moving.sum())


def w2_to_normal(codes: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """W₂ between the normal with the moments of codes (K, d) and N(mean, covariance), as Wasserstein-VQ measures it.

    In units of the target's largest standard deviation of a coordinate, held constant, and with the authors' 1e-10
    under the root (Fang et al., 2025, arXiv:2506.15078).
    """
    unit = covariance.detach().diagonal().max().clamp(min=0).sqrt() + 1e-8
    squared = squared_w2_to_normal(codes, mean, covariance) / unit.square()
    return (squared.clamp(min=0) + 1e-10).sqrt()
