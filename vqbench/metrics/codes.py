"""What a tokenizer does with its codes, from the histogram over the whole split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbench.errors import VQBenchError
from vqbench.metrics.kinds import CodeFacts, CodeMetric


class CodeHistogram:
    """Counts codes batch by batch, for each codebook on its own."""

    def __init__(self, codebook_size: int, num_codebooks: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((num_codebooks, codebook_size), np.int64)

    def update(self, indices: Tensor) -> None:
        """Add (B, h, w) or (B, h, w, G) indices. Raises VQBenchError for one outside the codebook."""
        groups, size = self.counts.shape
        if groups > 1 and indices.shape[-1] != groups:
            raise VQBenchError(
                f"indices {tuple(indices.shape)} do not end in the {groups} codebooks that the quantizer declares",
                "return indices as (B, h, w, G); `vqbench check` tests it",
            )
        for count, codes in zip(self.counts, indices.reshape(-1, groups).unbind(1), strict=True):
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= size:
                raise VQBenchError(
                    f"index {low if low < 0 else high} is outside the codebook's [0, {size})",
                    "`vqbench check` shows what breaks it; codebook_size must be the effective number of codes",
                )
            count += torch.bincount(codes.long(), minlength=size).cpu().numpy()


def different_codes(codes: Tensor, codebook_size: int) -> list[int]:
    """How many different codes, or tuples of them, each item of (B, tokens of an item, G) uses."""
    first, *others = codes.long().unbind(dim=2)
    for codebook in others:  # a tuple gets a number of its own among those that there are
        first = torch.unique(first * codebook_size + codebook, return_inverse=True)[1]
    ordered = first.sort(dim=1).values
    return (1 + (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1)).tolist()


@dataclass(frozen=True)
class CodeStatistics:
    """One codebook over one split."""

    usage: float
    """Codes used at least once / codebook size, in (0, 1]."""
    perplexity: float
    """exp(entropy), from 1 to the codebook size."""
    dead_codes: int
    entropy_bits: float
    """Bits that an ideal entropy coder spends on one code."""


def entropy(counts: NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution that a histogram (K,) stands for."""
    seen = counts[counts > 0].astype(np.float64)
    p = seen / seen.sum()
    return abs(float(-(p * np.log(p)).sum()))  # abs: one code alone gives -0.0


def code_statistics(counts: NDArray[np.int64]) -> CodeStatistics:
    """Usage, perplexity, dead codes and entropy of one codebook's whole-split histogram (K,)."""
    if counts.sum() == 0:
        raise ValueError("no code was counted")
    nats, used = entropy(counts), int((counts > 0).sum())
    return CodeStatistics(used / len(counts), float(np.exp(nats)), len(counts) - used, nats / float(np.log(2)))


def code_scores(metrics: Iterable[CodeMetric], histogram: NDArray[np.int64], facts: CodeFacts) -> dict[str, float]:
    """Scores of `metrics` for a histogram (G, K).

    Of those that each codebook has, with G > 1, the plain name is the mean, and `usage/0`, `usage/1`… are the codebooks
    one by one.
    """
    scores: dict[str, float] = {}
    for metric in metrics:
        if not metric.each_codebook:
            scores[metric.name] = float(metric.score(histogram, facts))
            continue
        values = [float(metric.score(counts[None], facts)) for counts in histogram]
        scores[metric.name] = float(np.mean(values))
        if len(values) > 1:
            scores |= {f"{metric.name}/{i}": value for i, value in enumerate(values)}
    return scores
