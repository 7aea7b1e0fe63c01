"""What a tokenizer does with its codes, of one seed, with intervals over images alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqbench.reports.statistics import Array, Difference, Resampled, paired_resamples

CodeScore = Literal["usage", "perplexity", "dead_codes"]
CODE_SCORES: tuple[CodeScore, ...] = ("usage", "perplexity", "dead_codes")
_CODES_AT_ONCE = 1 << 22  # codes that are sorted at a time: about 200 MiB of temporaries


def resample_codes(codes: NDArray[Any], codebook_size: int, score: CodeScore) -> Resampled:
    """Codebook usage, perplexity or dead codes, and its jackknife: each image is left out in turn.

    codes are integers (N, T), or (N, T, G) for G codebooks of `codebook_size`. The score is the mean over
    codebooks of `vqbench.metrics.codes`: usage in (0, 1], perplexity in [1, codebook size], dead codes from 0.

    Raises ValueError for N < 2, codes that are not integers or outside their codebook, other scores.
    """
    if score not in CODE_SCORES:
        raise ValueError(f"expected one of the scores {', '.join(CODE_SCORES)}, not {score!r}")
    grid = _checked(codes, codebook_size)
    one_codebook = _perplexity_without_each if score == "perplexity" else _used_without_each
    found = [one_codebook(grid[:, :, g], codebook_size) for g in range(grid.shape[2])]
    whole, without = float(np.mean([all_ for all_, _ in found])), np.mean([each for _, each in found], axis=0)
    if score == "usage":
        whole, without = whole / codebook_size, without / codebook_size
    elif score == "dead_codes":
        whole, without = codebook_size - whole, codebook_size - without
    images = len(grid)
    # A bootstrap of usage gave 0.7 to 2.3 times the true sd in simulations (a resample never shows a new code, and
    # loses a third of the codes seen once); the jackknife 1.1 to 1.4 times, and for perplexity 1.0 to 1.3 times.
    return Resampled(whole, (without - without.mean()) * math.sqrt((images - 1) / images), images)


def paired_codes(
    base: NDArray[Any], other: NDArray[Any], codebook_sizes: tuple[int, int], score: CodeScore
) -> Difference:
    """Difference of a score of codes of one seed, with an interval over images alone.

    As `resample_codes`; row i of base and other is the same image, T, G and the size of the codebook may differ.
    codebook_sizes = (of base, of other), per codebook. Standard deviation by the delete-one-image jackknife of the
    difference, v = (N − 1)/N Σ (δ₍ᵢ₎ − mean δ₍.₎)², interval delta ± 1.96 √v. It is not too small on average (Efron
    and Stein, 1981, doi:10.1214/aos/1176345462).
    """
    of_base, of_other = (
        resample_codes(codes, size, score) for codes, size in zip((base, other), codebook_sizes, strict=True)
    )
    return paired_resamples(of_base, of_other)


def _checked(codes: NDArray[Any], codebook_size: int) -> NDArray[Any]:
    """Codes as (N, T, G)."""
    array = np.asarray(codes)
    if array.ndim not in (2, 3) or array.shape[0] < 2 or array.size == 0:
        raise ValueError(f"expected codes (N, T) or (N, T, G) of N ≥ 2 images, not of shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"expected codes to be integers, not {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= codebook_size:
        raise ValueError(f"expected codes in [0, {codebook_size}), but they go from {low} to {high}")
    return array if array.ndim == 3 else array[:, :, None]


def _used_without_each(codes: NDArray[Any], codebook_size: int) -> tuple[float, Array]:
    """Codes of (N, T) that are used at least once and, (N,), how many are left without each image."""

    def lost(of_code: NDArray[np.int64], of_image: NDArray[np.int64]) -> Array:
        return np.asarray(of_code == of_image, np.float64)  # a code that no other image has

    histogram = _histogram(codes, codebook_size)
    used = int(np.count_nonzero(histogram))
    return used, used - _sum_by_image(codes, histogram, lost)


def _perplexity_without_each(codes: NDArray[Any], codebook_size: int) -> tuple[float, Array]:
    """exp(entropy), entropy = log n − Σ h log h / n for a histogram h of n codes; an image changes few terms of it."""
    from scipy.special import xlogy  # 0 log 0 = 0

    def lost(of_code: NDArray[np.int64], of_image: NDArray[np.int64]) -> Array:
        left = of_code - of_image
        return np.asarray(xlogy(of_code, of_code) - xlogy(left, left))

    histogram = _histogram(codes, codebook_size)
    total, n = float(xlogy(histogram, histogram).sum()), codes.size
    left, n_left = total - _sum_by_image(codes, histogram, lost), n - codes.shape[1]
    return math.exp(math.log(n) - total / n), np.exp(math.log(n_left) - left / n_left)


def _histogram(codes: NDArray[Any], codebook_size: int) -> NDArray[np.int64]:
    step = max(_CODES_AT_ONCE // codes.shape[1], 1)
    histogram = np.zeros(codebook_size, np.int64)
    for start in range(0, len(codes), step):
        histogram += np.bincount(codes[start : start + step].ravel().astype(np.int64), minlength=codebook_size)
    return histogram


def _sum_by_image(
    codes: NDArray[Any], histogram: NDArray[np.int64], term: Callable[[NDArray[np.int64], NDArray[np.int64]], Array]
) -> Array:
    """For each image of (N, T) codes: Σ over its distinct codes of term(count in all images, count in this image)."""
    K, step = len(histogram), max(_CODES_AT_ONCE // codes.shape[1], 1)
    sums = []
    for start in range(0, len(codes), step):
        block = codes[start : start + step].astype(np.int64)
        keys, counts = np.unique(block + np.arange(len(block))[:, None] * K, return_counts=True)
        image, code = np.divmod(keys, K)
        sums.append(np.bincount(image, weights=term(histogram[code], counts), minlength=len(block)))
    return np.concatenate(sums)
