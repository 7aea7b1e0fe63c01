"""Sums over all pairs of codes and something else, a block of codes at a time, with the gradient to the codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqbench.methods.products import ieee_products

BLOCK_BYTES = 2 * 2**20
"""Upper bound, in bytes, of each matrix of one block: several are passed over, which a cache should hold."""


class _SumOverBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, term: Callable[[Tensor], Tensor], rows: int) -> Tensor:
        total = codes.new_zeros(())
        gradients: list[Tensor] = []
        for block in torch.split(codes.detach(), rows):
            moving = block.requires_grad_()
            with torch.enable_grad():
                value = term(moving)
            gradients += torch.autograd.grad(value, moving)
            total = total + value.detach()
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (of_codes,) = ctx.saved_tensors
        return gradient * of_codes, None, None


def sum_over_blocks(codes: Tensor, term: Callable[[Tensor], Tensor], pairs_with: int) -> Tensor:
    """Σ term(block) over blocks of the rows of codes (K, d), a scalar with the gradient to the codes alone.

    `term` makes a scalar of some rows, through matrices of (rows, pairs_with); the blocks are as large as keeps one
    such matrix within BLOCK_BYTES. Each block's gradient is taken in the forward pass, and its matrices are gone.
    """
    rows = max(1, BLOCK_BYTES // (4 * pairs_with))
    with torch.autocast(codes.device.type, enabled=False), ieee_products(codes.device):
        total: Tensor = _SumOverBlocks.apply(codes, term, rows)
    return total
