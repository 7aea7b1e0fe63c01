"""Nearest code for each vector, exactly as brute force finds it, without the N × K matrix of distances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SCORE_BYTES = 24 * 2**20
"""Upper bound, in bytes, of the block of scores that exists at one time (384 vectors against 16384 codes).

On one idle core blocks of 2 to 32 MiB take the same time; with several threads each block is a point where they
wait for each other, and where cores are shared small blocks become slower than `torch.cdist`.
"""


@contextmanager
def ieee_products(device: torch.device) -> Iterator[None]:
    """Products of float32 are those of float32 within."""
    # A trainer may allow TF32 for speed; its 10 bits of mantissa assign close codes wrongly.
    if device.type != "cuda":
        yield
        return
    asked = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = asked


def _scores_as_product(z: Tensor, codes: Tensor, precision: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Left (N, c), right (K, c) and bias (K,): bias + left·right is the squared distance less what z alone decides."""
    # Distances do not change when both are moved. About the codebook's mean the products are smallest, and so
    # is what cancels in them: codes that lie close together far from zero are still told apart.
    center = codes.mean(0)
    z, codes = z - center, codes - center
    if precision is None:
        return -2 * z, codes, codes.square().sum(1)
    # Σ p (z − e)² = Σ p z² − 2 Σ (p z) e + Σ p e², and the first term is the same for every code.
    return (
        torch.cat([-2 * precision * z, precision], 1),
        torch.cat([codes, codes.square()], 1),
        codes.new_zeros(len(codes)),
    )


@torch.no_grad()
def nearest(z: Tensor, codes: Tensor, precision: Tensor | None = None) -> Tensor:
    """Index of the nearest of `codes` (K, d) for each row of `z` (N, d), as (N,) int64.

    Squared Euclidean distance in float32; `precision` (N, d) weights the coordinates of each row. Besides z and
    the codes it needs at most SCORE_BYTES (one row of scores where that is more). No gradient. Between codes at
    the same distance, to rounding, any may be returned.
    """
    if len(codes) == 0:
        raise ValueError("a codebook needs at least one code")
    with torch.autocast(z.device.type, enabled=False), ieee_products(z.device):
        weights = None if precision is None else precision.float()
        left, right, bias = _scores_as_product(z.float(), codes.float(), weights)
        rows = max(1, min(len(z), SCORE_BYTES // (4 * len(codes))))
        scores = left.new_empty(rows, len(codes))
        indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
        for start in range(0, len(z), rows):
            block = left[start : start + rows]
            found = torch.addmm(bias, block, right.t(), out=scores[: len(block)])
            torch.argmin(found, 1, out=indices[start : start + rows])
    return indices
