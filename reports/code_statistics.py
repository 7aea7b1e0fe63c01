"""What a tokenizer does with its codes, of one seed, with intervals over images alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.reports.statistics import Array, Resampled

Counts = NDArray[np.int64]
CODE_SCORES = ("usage", "perplexity", "dead_codes")
_CODES_AT_ONCE = 1 << 22  # codes that are sorted at a time: about 200 MiB of temporaries


def resample_codes(codes: NDArray[Any], codebook_size: int, score: str) -> Resampled:
    """Codebook usage, perplexity or dead codes, and its jackknife: each image is left out in turn.

    The jackknife of a count of codes is too wide and is narrowed, see `_narrowed`.

    codes are integers (N, T), or (N, T, G) for G codebooks of `codebook_size`. The score is the mean over
    codebooks of `vqbench.metrics.codes`: usage in (0, 1], perplexity in [1, codebook size], dead codes from 0.

    Raises ValueError for N < 2, codes that are not integers or outside their codebook, other scores.
    """
    if score not in CODE_SCORES:
        raise ValueError(f"expected one of the scores {', '.join(CODE_SCORES)}, not {score!r}")
    grid = _checked(codes, codebook_size)
    one_codebook = _perplexity if score == "perplexity" else _used
    found = [one_codebook(grid[:, :, g], codebook_size) for g in range(grid.shape[2])]
    whole, parts = float(np.mean([all_ for all_, _ in found])), np.mean([each for _, each in found], axis=0)
    if score == "usage":
        whole, parts = whole / codebook_size, parts / codebook_size
    elif score == "dead_codes":
        whole, parts = codebook_size - whole, -parts
    return Resampled(whole, parts, len(grid))


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


def _used(codes: NDArray[Any], codebook_size: int) -> tuple[float, Array]:
    """Codes of (N, T) that are used at least once and, (N,), the parts of its deviation."""

    def lost(of_code: NDArray[np.int64], of_image: NDArray[np.int64]) -> Array:
        return np.asarray(of_code == of_image, np.float64)  # a code that no other image has

    histogram = _histogram(codes, codebook_size)
    used = int(np.count_nonzero(histogram))
    parts = _jackknife(used - _sum_by_image(codes, histogram, lost))
    return used, _narrowed(parts, _images_of_each(codes, codebook_size))


def _jackknife(without: Array) -> Array:
    images = len(without)
    return np.asarray((without - without.mean()) * math.sqrt((images - 1) / images))


_UNSEEN = (511 / 512, 502 / 512, 466 / 512, 382 / 512, 256 / 512, 130 / 512, 46 / 512, 10 / 512, 1 / 512)
"""P(Binomial(9, ½) ≥ r) for r = 1 to 9: Efron and Thisted's Euler weights."""
_LEAST = 0.5  # of the jackknife's variance: beyond, the series is mostly noise
_FEWEST = 10  # codes of one image: with fewer, it is nothing but noise


def _narrowed(parts: Array, images_of_each: NDArray[np.int64]) -> Array:
    """Parts (N,) of the jackknife of a count of codes, without what single codes add to it beyond their variance.

    A code that is expected in x images is missed with probability e⁻ˣ, so that the count has variance Σ e⁻ˣ − e⁻²ˣ,
    while the jackknife counts codes of one image, f₁ = Σ x e⁻ˣ on average. That variance is also what N more images
    are expected to show of new codes, f₁ − f₂ + f₃ − …, with fᵣ the codes that r images have (Good and Toulmin, 1956),
    here with the weights of Efron and Thisted (1976, doi:10.1093/biomet/63.3.435). The difference is taken from the
    jackknife's variance, which is larger than f₁ where rare codes come in company: theirs is left as it is.
    """
    of = np.bincount(images_of_each, minlength=len(_UNSEEN) + 1)[1 : len(_UNSEEN) + 1]
    if of[0] < _FEWEST:
        return parts
    new = sum(weight * (-1) ** r * int(count) for r, (weight, count) in enumerate(zip(_UNSEEN, of, strict=True)))
    variance = float(np.square(parts).sum())
    return parts * math.sqrt(min(max(1 - (int(of[0]) - new) / variance, _LEAST), 1.0)) if variance > 0 else parts


def _perplexity(codes: NDArray[Any], codebook_size: int) -> tuple[float, Array]:
    """exp(entropy), entropy = log n − Σ h log h / n for a histogram h of n codes, and the parts of its deviation."""
    from scipy.special import xlogy  # 0 log 0 = 0

    def lost(of_code: NDArray[np.int64], of_image: NDArray[np.int64]) -> Array:
        left = of_code - of_image
        return np.asarray(xlogy(of_code, of_code) - xlogy(left, left))

    histogram = _histogram(codes, codebook_size)
    total, n = float(xlogy(histogram, histogram).sum()), codes.size
    left, n_left = total - _sum_by_image(codes, histogram, lost), n - codes.shape[1]  # an image changes few terms
    return math.exp(math.log(n) - total / n), _jackknife(np.exp(math.log(n_left) - left / n_left))


def _histogram(codes: NDArray[Any], codebook_size: int) -> NDArray[np.int64]:
    step = max(_CODES_AT_ONCE // codes.shape[1], 1)
    histogram = np.zeros(codebook_size, np.int64)
    for start in range(0, len(codes), step):
        histogram += np.bincount(codes[start : start + step].ravel().astype(np.int64), minlength=codebook_size)
    return histogram


def _by_images(codes: NDArray[Any], codebook_size: int) -> Iterator[tuple[int, Counts, Counts, Counts]]:
    """Some images of (N, T) codes at a time: how many, then (image, code, count) of each one's distinct codes."""
    step = max(_CODES_AT_ONCE // codes.shape[1], 1)
    for start in range(0, len(codes), step):
        block = codes[start : start + step].astype(np.int64)
        keys, counts = np.unique(block + np.arange(len(block))[:, None] * codebook_size, return_counts=True)
        image, code = np.divmod(keys, codebook_size)
        yield len(block), image, code, counts


def _images_of_each(codes: NDArray[Any], codebook_size: int) -> NDArray[np.int64]:
    """How many images of (N, T) have each code, (codebook_size,)."""
    counted = (np.bincount(code, minlength=codebook_size) for _, _, code, _ in _by_images(codes, codebook_size))
    return np.asarray(sum(counted), np.int64)


def _sum_by_image(
    codes: NDArray[Any], histogram: NDArray[np.int64], term: Callable[[NDArray[np.int64], NDArray[np.int64]], Array]
) -> Array:
    """For each image of (N, T) codes: Σ over its distinct codes of term(count in all images, count in this image)."""
    sums = [
        np.bincount(image, weights=term(histogram[code], counts), minlength=images)
        for images, image, code, counts in _by_images(codes, len(histogram))
    ]
    return np.concatenate(sums)
