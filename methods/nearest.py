"""Nearest code for each vector, exactly as brute force finds it, without the N × K matrix of distances; and the code of
the largest product."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vqbench.methods.products import ieee_products, products

SCORE_BYTES = 24 * 2**20
"""Upper bound, in bytes, of the block of scores that exists at one time (384 vectors against 16384 codes)."""

SCORE_BYTES_A_THREAD = 2 * 2**20
"""The same for each thread of a CPU, whose last cache holds it, where there are several: threads wait for each other at
each block, and each goes through all codes, so that it has as many rows as a vector has channels."""

TILE = 64
"""Scores of a row that are compared at once: a CPU's argmin takes them singly, its amin side by side."""


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


def rows_of_block(left: Tensor, right: Tensor, most: int, a_thread: int, least: int) -> int:
    """Rows of `left` whose products with all of `right`, in float32, exist at one time: `most` bytes of them.

    On a CPU, where there are several such blocks, `a_thread` bytes for each thread, but `least` rows if `most` allows.
    """
    row = 4 * len(right)
    rows = max(1, min(len(left), most // row))
    if left.device.type == "cpu" and rows < len(left):
        rows = min(rows, max(a_thread * torch.get_num_threads() // row, least, 1))
    return rows


def _rows(left: Tensor, right: Tensor) -> int:
    return rows_of_block(left, right, SCORE_BYTES, SCORE_BYTES_A_THREAD, left.shape[1])


def _blocks(left: Tensor, right: Tensor, bias: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First row and scores (rows, K) of each block of `left`. Whoever has used one deletes it, so that there is one."""
    rows = _rows(left, right)
    for start in range(0, len(left), rows):
        block = left[start : start + rows]
        yield start, products(block, right, bias, of_several=len(block) == rows < len(left))


def argmax(scores: Tensor) -> Tensor:
    """`scores.argmax(1)` of scores (rows, K), as (rows,) int64: of equal ones the first."""
    return _extreme(scores, torch.amax, torch.argmax)


def argmin(scores: Tensor) -> Tensor:
    """`scores.argmin(1)` of scores (rows, K), as (rows,) int64: of equal ones the first."""
    return _extreme(scores, torch.amin, torch.argmin)


def _extreme(scores: Tensor, value: Callable[..., Tensor], place: Callable[..., Tensor]) -> Tensor:
    if scores.device.type != "cpu" or scores.shape[1] % TILE or scores.shape[1] < 4 * TILE:
        return place(scores, 1)
    tiles, per_row = scores.reshape(-1, TILE), scores.shape[1] // TILE
    first = torch.arange(0, len(tiles), per_row, device=scores.device)
    tile = place(value(tiles, 1).view(-1, per_row), 1)
    return tile * TILE + place(tiles[tile + first], 1)


@torch.no_grad()
def nearest(z: Tensor, codes: Tensor, precision: Tensor | None = None) -> Tensor:
    """Index of the nearest of `codes` (K, d) for each row of `z` (N, d), as (N,) int64.

    Squared Euclidean distance in float32; `precision` (N, d) weights the coordinates of each row. Besides z and
    some copies of the codes it needs at most SCORE_BYTES (one row of scores where that is more). No gradient. Between
    codes at the same distance, to rounding, any may be returned.
    """
    if len(codes) == 0:
        raise ValueError("a codebook needs at least one code")
    with torch.autocast(z.device.type, enabled=False), ieee_products(z.device):
        weights = None if precision is None else precision.float()
        return _least(*_scores_as_product(z.float(), codes.float(), weights))


@torch.no_grad()
def largest_product(left: Tensor, right: Tensor) -> Tensor:
    """Index of the row of `right` (K, c) with the largest product with each row of `left` (N, c), as (N,) int64.

    In float32, with the memory of `nearest`. No gradient. Of equal products the first.
    """
    if len(right) == 0:
        raise ValueError("a codebook needs at least one code")
    with torch.autocast(left.device.type, enabled=False), ieee_products(left.device):
        return _least(-left.float(), right.float(), right.new_zeros(len(right), dtype=torch.float32))


def _least(left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    """Index of the smallest bias + left·right for each row of `left`, a block of rows at a time."""
    if torch.compiler.is_exporting():  # into a program, which takes any number of rows and knows no loop over them
        return torch.addmm(bias, left, right.t()).argmin(1)
    indices = torch.empty(len(left), dtype=torch.int64, device=left.device)
    for start, found in _blocks(left, right, bias):
        indices[start : start + len(found)] = argmin(found)
        del found
    return indices


@torch.no_grad()
def nearest_both_ways(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """`nearest(z, codes)` (N,) and `nearest(codes, z)` (K,), int64, from one product of the two."""
    if len(codes) == 0 or len(z) == 0:
        raise ValueError("a nearest one of each needs at least one code and one vector")
    with torch.autocast(z.device.type, enabled=False), ieee_products(z.device):
        left, right, bias = _scores_as_product(z.float(), codes.float(), None)
        of_z = 0.25 * left.square().sum(1)  # what the scores leave out, since it decides nothing between codes
        indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
        least = left.new_full((len(codes),), torch.inf)
        starts = torch.zeros(len(codes), dtype=torch.int64, device=z.device)
        for start, found in _blocks(left, right, bias):
            indices[start : start + len(found)] = argmin(found)
            found += of_z[start : start + len(found), None]
            nearer = found.amin(0)
            starts = torch.where(nearer < least, start, starts)
            least = torch.minimum(least, nearer)
            del found
        # An argmin down the columns is many times slower than along the rows: each code's own block is compared again.
        rows = torch.empty_like(starts)
        size = _rows(left, right)
        for start in range(0, len(z), size):
            mine = (starts == start).nonzero()[:, 0]
            found = torch.addmm(of_z[start : start + size], right[mine], left[start : start + size].t())
            rows[mine] = start + found.argmin(1)
    return indices, rows
