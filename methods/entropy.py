"""Soft assignments of tokens to codes, and the entropies that are taken of them, without the N × K matrix.

Two ways. `assign` is for codes that are vectors: it goes through the logits block by block and makes them again in the
backward pass, so that beside its arguments, its results and their gradients it holds five blocks of BLOCK_BYTES (of one
row each where that is more). `bit_entropies` is for codes that are bits: there the probabilities of a token are a
product over the bits, and nothing as wide as the codes is made for each token: with g bits it needs some five times
4 N 2^(g/2) bytes (N = 4096 tokens and 2^18 codes: 40 MB).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from vqbench.methods.nearest import argmax, rows_of_block
from vqbench.methods.products import ieee_products, products

BLOCK_BYTES = 8 * 2**20
"""Upper bound of one block of logits (128 rows of 16384 codes); five exist at one time."""

BLOCK_BYTES_A_THREAD = 2**20
"""The same on a CPU, where there are several blocks and a block still has a quarter as many rows as channels: smaller
ones stay in the caches, and each goes through all codes and their gradients once."""

LEAST = -60.0
"""Least logit of a code, the largest being 0. It changes no sum in float32; smaller ones have denormal numbers for
probabilities, with which a CPU takes twelve times as long."""

Logarithm = Literal["added", "clamped"]
"""How the logarithm of a probability near 0 is bounded: log(p + ε), or log(max(p, ε))."""


class Entropies(NamedTuple):
    """What is taken of the assignments of a batch, in nats."""

    per_sample: Tensor
    """Mean over the tokens of the entropy of each one's assignment; small where tokens are sure of their code."""
    codebook: Tensor
    """Entropy of the mean assignment; large where all codes are used alike."""


class Assignment(NamedTuple):
    """What `assign` gives; what was not asked for is empty."""

    indices: Tensor
    """(N,) int64: the code of the largest logit, whatever is asked for."""
    latents: Tensor
    """(N, d)."""
    per_sample: Tensor
    """Scalar: mean over the tokens of the entropy of softmax(logits / entropy_temperature)."""
    mean: Tensor
    """(K,): mean over the tokens of that softmax."""


def assign(
    left: Tensor,
    right: Tensor,
    bias: Tensor | None = None,
    *,
    values: Tensor | None = None,
    hard: bool = False,
    temperature: float = 1.0,
    entropy_temperature: float | None = None,
    floor: float = 0.0,
) -> Assignment:
    """Assign rows of `left` (N, c) to codes by the logits left·right + bias, where `right` is (K, c) and `bias` (K,).

    With `values` (K, d) come `latents`: softmax(logits / temperature) @ values or, where `hard`, the
    value of the largest logit, with the gradient of that mixture to the logits and of the choice to the values (the
    straight-through estimator of a one-hot vector). With `entropy_temperature` come `per_sample` and `mean`; under
    `floor` a probability's logarithm is that of the floor. Gradients reach `left`, `right`, `bias` and `values`, once.
    In float32 whatever the autocast around it.
    """
    if torch.compiler.is_exporting() and entropy_temperature is None:
        return _at_once(left, right, bias, values, hard, temperature)
    with torch.autocast(left.device.type, enabled=False):
        settings = (hard, temperature, entropy_temperature, floor)
        return Assignment(*_Assign.apply(left, right, bias, values, settings))


def _at_once(
    left: Tensor, right: Tensor, bias: Tensor | None, values: Tensor | None, hard: bool, temperature: float
) -> Assignment:
    """As `assign`, into a program, which takes any number of rows and knows no loop over them."""
    logits = left @ right.t() if bias is None else torch.addmm(bias, left, right.t())
    indices, latents = logits.argmax(1), left.new_empty(0)
    if values is not None:
        latents = values[indices] if hard else (logits / temperature).softmax(1) @ values
    return Assignment(indices, latents, left.new_zeros(()), left.new_zeros(0))


class _Blocks:
    """The rows of the logits, a block at a time; what is made of them is in memory that each block uses again."""

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
        self.left, self.right, self.bias = left, right, bias
        self.rows = rows_of_block(left, right, BLOCK_BYTES, BLOCK_BYTES_A_THREAD, left.shape[1] // 4)
        self._memory = [left.new_empty(0)] * 3

    def __iter__(self) -> Any:
        for start in range(0, len(self.left), self.rows):
            yield slice(start, min(start + self.rows, len(self.left)))

    def empty(self, which: int, block: slice) -> Tensor:
        """Block `which` of three, not filled."""
        if not self._memory[which].numel():
            self._memory[which] = self.left.new_empty(self.rows, len(self.right))
        return self._memory[which][: block.stop - block.start]

    def logits(self, block: slice) -> Tensor:
        """Of the rows of a block."""
        return self.product(self.left[block], self.right, self.bias)

    def product(self, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        """`products` for one of these blocks."""
        return products(left, right, bias, of_several=len(left) == self.rows < len(self.left))

    def product_to(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        """The same into `out`; of one block the way it always was, for its last bits."""
        if self.rows < len(self.left):
            out.copy_(self.product(left, right))
        else:
            torch.mm(left, right.t(), out=out)

    def softmax(self, logits: Tensor, temperature: float, block: slice) -> tuple[Tensor, Tensor]:
        """In block 2 logits less their largest, which is 0, over the temperature; in block 1 their softmax."""
        scaled = torch.mul(logits, 1 / temperature, out=self.empty(2, block)).clamp_(min=LEAST)
        return scaled, torch.softmax(scaled, 1, out=self.empty(1, block))

    def row_products(self, a: Tensor, b: Tensor, which: int, block: slice) -> Tensor:
        """Σ_k a b for each row, (N, 1); their product takes block `which`."""
        return torch.mul(a, b, out=self.empty(which, block)).sum(1, keepdim=True)


class _Assign(torch.autograd.Function):
    """See `assign`."""

    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        right: Tensor,
        bias: Tensor | None,
        values: Tensor | None,
        settings: tuple[bool, float, float | None, float],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hard, temperature, entropy_temperature, floor = settings
        blocks = _Blocks(left, right, bias)
        indices = torch.empty(len(left), dtype=torch.int64, device=left.device)
        latents = left.new_empty(len(left), values.shape[1]) if values is not None else left.new_empty(0)
        per_sample = left.new_zeros(())
        mean = left.new_zeros(len(right) if entropy_temperature is not None else 0)
        with ieee_products(left.device):
            for block in blocks:
                logits = blocks.logits(block)
                indices[block] = argmax(logits)
                peak = indices[block].unsqueeze(1)
                logits -= logits.gather(1, peak)
                if values is not None and not hard:
                    blocks.product_to(latents[block], blocks.softmax(logits, temperature, block)[1], values.t())
                if entropy_temperature is not None:
                    logarithms, p = blocks.softmax(logits, entropy_temperature, block)
                    mean += p.sum(0)
                    logarithms += p.gather(1, peak).log()
                    if floor > 0:
                        logarithms.clamp_(min=math.log(floor))
                    per_sample -= blocks.row_products(p, logarithms, 0, block).sum()
                del logits
        if values is not None and hard:
            torch.index_select(values, 0, indices, out=latents)
        per_sample, mean = per_sample / max(len(left), 1), mean / max(len(left), 1)
        ctx.settings = settings
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(left, right, bias, values, indices, latents)
        return indices, latents, per_sample, mean

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, _: Tensor, at_latents: Tensor, at_per_sample: Tensor, at_mean: Tensor) -> tuple[Any, ...]:
        left, right, bias, values, indices, latents = ctx.saved_tensors
        hard, temperature, entropy_temperature, _floor = ctx.settings
        to_left, to_right, to_bias, to_values, _settings = ctx.needs_input_grad
        at_left = torch.zeros_like(left) if to_left else None
        at_right = torch.zeros_like(right) if to_right else None
        at_bias = torch.zeros_like(bias) if to_bias else None
        at_values = torch.zeros_like(values) if to_values else None
        blocks = _Blocks(left, right, bias)
        with ieee_products(left.device):
            if at_values is not None and hard:
                at_values.index_add_(0, indices, at_latents)
            for block in blocks:
                logits, peak = blocks.logits(block), indices[block].unsqueeze(1)
                logits -= logits.gather(1, peak)
                if values is not None:
                    _, p = blocks.softmax(logits, temperature, block)
                    at_logits = blocks.product(at_latents[block] / temperature, values)
                    if hard:
                        at_logits -= blocks.row_products(p, at_logits, 2, block)
                    else:
                        at_logits -= (at_latents[block] * latents[block]).sum(1, keepdim=True) / temperature
                        if at_values is not None:
                            at_values.addmm_(p.t(), at_latents[block])
                    at_logits *= p
                else:
                    at_logits = torch.zeros_like(logits)
                if entropy_temperature is not None:
                    _add_entropies(blocks, block, logits, peak, at_logits, at_per_sample, at_mean, ctx.settings)
                if at_left is not None:
                    blocks.product_to(at_left[block], at_logits, right.t())
                if at_right is not None:
                    at_right.addmm_(at_logits.t(), left[block])
                if at_bias is not None:
                    at_bias += at_logits.sum(0)
                del logits, at_logits
        return at_left, at_right, at_bias, at_values, None


def _add_entropies(
    blocks: _Blocks,
    block: slice,
    logits: Tensor,
    peak: Tensor,
    at_logits: Tensor,
    at_per_sample: Tensor,
    at_mean: Tensor,
    settings: tuple[bool, float, float, float],
) -> None:
    """Add to `at_logits` what the two entropies of a block send to its logits."""
    _, _, temperature, floor = settings
    tokens = max(len(blocks.left), 1)
    logarithms, p = blocks.softmax(logits, temperature, block)
    logarithms += p.gather(1, peak).log()
    # −(log p + 1) is the slope of −p log p; the 1 is the same for all codes of a row, and goes out below. Under the
    # floor the slope is −log floor, without it.
    if floor > 0:
        slope = torch.where(logarithms < math.log(floor), math.log(floor), logarithms + 1)
        torch.mul(slope, -at_per_sample / tokens, out=logarithms)
    else:
        logarithms *= -at_per_sample / tokens
    logarithms += at_mean / tokens
    logarithms -= blocks.row_products(p, logarithms, 0, block)
    at_logits.addcmul_(logarithms, p, value=1 / temperature)


def entropy_of(mean: Tensor, logarithm: Logarithm = "added", eps: float = 1e-5) -> Tensor:
    """Entropy in nats of probabilities along the last axis, with the bounded logarithm that was asked for."""
    bounded = mean + eps if logarithm == "added" else mean.clamp(min=eps)
    return -(mean * bounded.log()).sum(-1)


def bit_entropies(log_odds: Tensor, group: int = 0, logarithm: Logarithm = "added", eps: float = 1e-5) -> Entropies:
    """Entropies of codes whose bits are chosen independently: `log_odds` (N, bits) are log p(1) / p(0) of each.

    `per_sample` is exact, a sum over the bits. `codebook` is the sum over groups of `group` consecutive bits (the last
    may be shorter) of the entropy of the group's mean assignment; 0 is one group of all bits, the joint entropy.
    """
    certain = logsigmoid(log_odds), logsigmoid(-log_odds)
    per_sample = -(certain[0].exp() * certain[0] + certain[1].exp() * certain[1]).sum(1).mean()
    means = mean_bit_probabilities(log_odds, group)
    return Entropies(per_sample, torch.stack([entropy_of(mean, logarithm, eps) for mean in means]).sum())


def mean_bit_probabilities(log_odds: Tensor, group: int = 0) -> list[Tensor]:
    """Mean over the tokens of the probability of each code of each group of bits, (2^g,); the first bit is the highest.

    The code of a group is two halves, chosen independently given the token: the mean of their products is one product
    of matrices, (N, 2^(g/2)) by (N, 2^(g/2)), which is all that is made.
    """
    return [
        (_probabilities(part[:, : part.shape[1] // 2]).t() @ _probabilities(part[:, part.shape[1] // 2 :])).flatten()
        / len(part)
        for part in torch.split(log_odds, group or log_odds.shape[1], 1)
    ]


def _probabilities(log_odds: Tensor) -> Tensor:
    """(N, 2^g) probabilities of all codes of g bits, (N, 1) of none."""
    bits = log_odds.shape[1]
    places = torch.arange(bits - 1, -1, -1, device=log_odds.device)
    codes = torch.arange(2**bits, device=log_odds.device)
    ones = (codes[:, None] >> places & 1).to(log_odds)  # (2^g, g)
    return (logsigmoid(log_odds) @ ones.t() + logsigmoid(-log_odds) @ (1 - ones).t()).exp()
