"""Paired differences of two tokenizers: an estimate, its 95 % interval and a p-value, from stored values alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqbench.metrics.frechet import frechet_distance

Array = NDArray[np.float64]
CodeScore = Literal["usage", "perplexity"]

SMALLEST_P = 1e-12
"""No p is reported below this: no model of the noise holds that far out, and p = 0 is never a finding."""
FRECHET_ROWS, FRECHET_REPLICATES, FRECHET_SEED = 500, 200, 2017
"""Images in one bootstrap sample of features (one SVD takes about 10 ms), samples, and the seed of both draws."""
_CODES_AT_ONCE = 1 << 22  # codes that are sorted at a time: about 200 MiB of temporaries


@dataclass(frozen=True)
class Difference:
    """A paired difference: `other` minus `base`, in the unit of the score."""

    delta: float
    """Mean of other − base; for scores of a whole set, the difference of the two scores."""
    low: float | None
    """Lower end of the 95 % interval; None where no interval can be had."""
    high: float | None
    p: float | None
    """Two-sided p of "no difference", from 1e-12 to 1; p < 0.05 exactly where the interval leaves out 0."""
    seeds: int
    images: int | None
    """Images that the difference is paired over; None for scores of a whole set."""
    over: str
    """What the interval generalises over: "seeds and images", "seeds", "images", or "" where there is none."""


def paired_images(base: ArrayLike, other: ArrayLike) -> Difference:
    """Difference of per-image values (S, N): row = seed, column = image, the same seeds and images in both.

    Two-way random effects, d[s, i] = μ + seed[s] + image[i] + residual[s, i]. The mean of d errs by the mean of
    S seed effects with their residuals, whose size the S row means show with S − 1 degrees of freedom, and by the
    mean of N image effects. Each is taken as a scaled Student t, and interval and p are those of the sum of the
    two: the Behrens-Fisher solution (Fisher, 1935, doi:10.1111/j.1469-1809.1935.tb02120.x). With S = 1 it is
    Student's paired t over images, and says nothing about other seeds.

    Raises ValueError for shapes that differ or are not (S ≥ 1, N ≥ 2), and for values that are not finite.
    """
    d = _differences(base, other, ndim=2, what="(S, N) values of S seeds and N images")
    seeds, images = d.shape
    if seeds < 1 or images < 2:
        raise ValueError(f"expected values of at least 1 seed and 2 images, (S, N), not of shape {d.shape}")
    delta = float(d.mean())
    low, high, p = _interval(delta, *_image_parts(d))
    return Difference(delta, low, high, p, seeds, images, "seeds and images" if seeds > 1 else "images")


def paired_seeds(base: ArrayLike, other: ArrayLike) -> Difference:
    """Difference of scores (S,) of whole sets, one per seed, the same seeds in both: Student's paired t.

    t = mean(d) / (sd(d) / √S) with S − 1 degrees of freedom. One seed has a difference but no interval, nor
    have seeds that all differ by the same amount, unless it is 0.
    Raises ValueError for shapes that differ or are not (S ≥ 1,), and for values that are not finite.
    """
    d = _differences(base, other, ndim=1, what="(S,) scores of S seeds")
    if len(d) < 1:
        raise ValueError("expected the scores of at least 1 seed, (S,), not of shape (0,)")
    delta = float(d.mean())
    if len(d) == 1:
        return Difference(delta, None, None, None, 1, None, "")
    error = _standard_error(d)
    if error == 0 and delta != 0:  # a score at its bound, usage 1 say: seeds that agree by that are no certainty
        return Difference(delta, None, None, None, len(d), None, "")
    low, high, p = _interval(delta, (error, len(d) - 1))
    return Difference(delta, low, high, p, len(d), None, "seeds")


def paired_frechet(
    reference: NDArray[Any],
    base: NDArray[Any],
    other: NDArray[Any],
    *,
    distances: tuple[float, float] | None = None,
    replicates: int = FRECHET_REPLICATES,
) -> Difference:
    """FID(reference, other) − FID(reference, base) of one seed, with an interval over images alone.

    reference, base and other are features (N, d) of the N images and of their reconstructions by two tokenizers;
    row i is the same image in all three. `distances` = (FID of base, FID of other) where they are known: at
    N = 50,000 they cost far more than the interval does.

    Standard deviation by a paired bootstrap: a random m = min(N, 500) of the images, resampled `replicates`
    times, the same images in all three sets; scaled by √(m/N), for it falls as 1/√N (m-out-of-n bootstrap, Bickel,
    Götze and van Zwet, 1997). FID is biased upwards in small samples and more so under resampling, so
    the interval is delta ± 1.96 sd around the difference on all images, not the replicates' quantiles.

    Raises ValueError for shapes that differ or are not (N ≥ 2, d), for values that are not finite, and for
    fewer than 2 replicates.
    """
    _check_features(reference, base, other)
    if replicates < 2:
        raise ValueError(f"expected at least 2 replicates, not {replicates}")
    images = len(reference)
    if distances is None:
        distances = frechet_distance(reference, base), frechet_distance(reference, other)
    delta = float(distances[1] - distances[0])
    if not math.isfinite(delta):
        raise ValueError(f"expected two finite distances, not {distances}")
    rng = np.random.default_rng(FRECHET_SEED)
    m = min(images, FRECHET_ROWS)
    rows = np.sort(rng.choice(images, m, replace=False)) if m < images else np.arange(images)
    draws = _frechet_draws(reference[rows], base[rows], other[rows], replicates, rng)
    deviation = float(draws.std(ddof=1)) * math.sqrt(m / images)
    low, high, p = _interval(delta, (deviation, math.inf))
    return Difference(delta, low, high, p, 1, images, "images")


def paired_codes(
    base: NDArray[Any], other: NDArray[Any], codebook_sizes: tuple[int, int], score: CodeScore
) -> Difference:
    """Difference of codebook usage or perplexity of one seed, with an interval over images alone.

    base and other are integer codes (N, T), or (N, T, G) for G codebooks; row i is the same image in both, T, G
    and the size of the codebook may differ. codebook_sizes = (of base, of other), per codebook. The score
    is the mean over codebooks of `vqbench.metrics.codes`: usage in (0, 1], perplexity in [1, codebook size].

    Standard deviation by the delete-one-image jackknife of the difference, v = (N − 1)/N Σ (δ₍ᵢ₎ − mean δ₍.₎)²,
    interval delta ± 1.96 √v. It is not too small on average (Efron and Stein, 1981, doi:10.1214/aos/1176345462).

    Raises ValueError for different N, N < 2, codes that are not integers or outside their codebook, other scores.
    """
    if score not in ("usage", "perplexity"):
        raise ValueError(f"expected the score 'usage' or 'perplexity', not {score!r}")
    if len(codebook_sizes) != 2:
        raise ValueError(f"expected two codebook sizes (of base, of other), not {codebook_sizes}")
    names, pair = ("base", "other"), (base, other)
    grids = [_codes(*given) for given in zip(names, pair, codebook_sizes, strict=True)]
    if len(grids[0]) != len(grids[1]):
        raise ValueError(f"expected codes of the same images, not shapes {np.shape(base)} and {np.shape(other)}")
    (theta_b, without_b), (theta_o, without_o) = (
        _score_without_each(codes, K, score) for codes, K in zip(grids, codebook_sizes, strict=True)
    )
    # A bootstrap of usage gave 0.7 to 2.3 times the true sd in simulations (a resample never shows a new code, and
    # loses a third of the codes seen once); the jackknife 1.1 to 1.4 times, and for perplexity 1.0 to 1.3 times.
    delta, deltas = theta_o - theta_b, without_o - without_b
    images = len(deltas)
    deviation = math.sqrt((images - 1) / images * float(np.square(deltas - deltas.mean()).sum()))
    low, high, p = _interval(delta, (deviation, math.inf))
    return Difference(delta, low, high, p, 1, images, "images")


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979, jstor:4615733): keeps the family-wise error rate, whatever the dependence.

    The i-th smallest of n becomes the largest of (n − j + 1) p₍ⱼ₎ over j ≤ i, at most 1. None stays None and is
    not counted in n. Raises ValueError for a p outside [0, 1].
    """
    known = [(p, i) for i, p in enumerate(p_values) if p is not None]
    for p, _ in known:
        if not 0 <= p <= 1:
            raise ValueError(f"expected p-values in [0, 1], not {p}")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        largest = max(largest, min((len(known) - rank) * p, 1.0))
        adjusted[i] = largest
    return adjusted


def _differences(base: ArrayLike, other: ArrayLike, ndim: int, what: str) -> Array:
    b, o = np.asarray(base, np.float64), np.asarray(other, np.float64)
    if b.shape != o.shape or b.ndim != ndim:
        raise ValueError(f"expected {what}, of one shape, not {b.shape} (base) and {o.shape} (other)")
    for name, values in (("base", b), ("other", o)):
        if bad := int(np.count_nonzero(~np.isfinite(values))):
            raise ValueError(f"expected finite values, but {bad} of {values.size} in {name} are not")
    return np.asarray(o - b)


def _standard_error(d: Array) -> float:
    return float(d.std(ddof=1)) / math.sqrt(len(d))


def _image_parts(d: Array) -> tuple[tuple[float, float], ...]:
    """(standard error, degrees of freedom) of the seeds' and of the images' share in the error of d.mean()."""
    seeds, images = d.shape
    rows, columns = d.mean(axis=1), d.mean(axis=0)
    if seeds == 1:
        return ((_standard_error(columns), images - 1),)
    residual = d - rows[:, None] - columns + d.mean()
    mean_square = float(np.square(residual).sum()) / ((seeds - 1) * (images - 1))
    # Row means and column means both hold the residual. It is left with the rows and taken from the columns: counted
    # twice, it would make intervals up to √2 too wide; this way no image effect leaves exactly the t over seeds.
    image_variance = max(float(columns.var(ddof=1)) - mean_square / seeds, 0.0)
    return (_standard_error(rows), seeds - 1), (math.sqrt(image_variance / images), images - 1)


# Why no resampling of seeds: percentiles over 3 resampled seeds cover about 75 %, not 95 %. Why no Satterthwaite:
# with 2 seeds its estimated degrees of freedom are large just where the seeds agree by luck, and it covers 87 %.
# Behrens-Fisher covered 94 to 98 % with 3 or more seeds, 95 to 99 % with 2: it errs on the side of "tied".
def _interval(delta: float, *parts: tuple[float, float]) -> tuple[float, float, float]:
    """95 % interval and two-sided p of delta, whose error is a sum of scaled Student t's: (scale, df) each."""
    from scipy import stats

    present = sorted(part for part in parts if part[0] > 0)
    if not present:  # nothing varies: every image under every seed gave the same difference
        return delta, delta, 1.0 if delta == 0 else SMALLEST_P
    if len(present) == 1:
        scale, df = present[0]
        half = float(stats.t.ppf(0.975, df)) * scale
        p = 2 * float(stats.t.sf(abs(delta) / scale, df))
    else:
        tail = _two_sided_tail(*present)
        widths = [float(stats.t.ppf(0.975, df)) * scale for scale, df in present]
        half = _solve(lambda x: tail(x) - 0.05, 0.99 * max(widths), 1.01 * sum(widths))
        p = tail(abs(delta))
    return delta - half, delta + half, min(max(p, SMALLEST_P), 1.0)


def _two_sided_tail(small: tuple[float, float], large: tuple[float, float]) -> Callable[[float], float]:
    """x → P(|a·T + b·U| ≥ x) for T, U independent Student t's; small = (a, its df), large = (b, its df), a ≤ b.

    ∫ f(t) P(U ≥ (x − a t)/b) dt by the trapezoidal rule in s, t = sinh(s): dense at 0 and out to 1e16, for the t
    with 1 degree of freedom has no variance. a ≤ b keeps the integrand smooth in t.
    """
    from scipy import special, stats

    (a, df), (b, big_df) = small, large
    s = np.linspace(-38.0, 38.0, 1521)
    t = np.sinh(s)
    weights = stats.t.pdf(t, df) * np.cosh(s) * (s[1] - s[0])
    return lambda x: 2 * float(weights @ special.stdtr(big_df, (a * t - x) / b))


def _solve(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy import optimize

    return float(optimize.brentq(function, low, high, xtol=1e-9 * high, rtol=1e-9))


def _check_features(*sets: NDArray[Any]) -> None:
    shapes = [np.shape(x) for x in sets]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] < 2:
        raise ValueError(f"expected features (N, d) of the same N ≥ 2 images in reference, base, other, not {shapes}")
    for name, x in zip(("reference", "base", "other"), sets, strict=True):
        with np.errstate(invalid="ignore", over="ignore"):
            total = x.sum(dtype=np.float64)  # one number, where np.isfinite(x) may be 100 million
        if not np.isfinite(total):
            raise ValueError(f"expected finite features, but {name} {x.shape} holds values that are not")


def _frechet_draws(
    reference: NDArray[Any], base: NDArray[Any], other: NDArray[Any], replicates: int, rng: np.random.Generator
) -> Array:
    """(replicates,) bootstrap differences of FID over m images (m, d): rows are only reweighted, never copied."""
    centre = reference.mean(axis=0, dtype=np.float64)  # a shift of all three changes no FID, and saves digits
    r, b, o = (np.asarray(x, np.float64) - centre for x in (reference, base, other))
    grams = {"rr": r @ r.T, "bb": b @ b.T, "oo": o @ o.T, "rb": r @ b.T, "ro": r @ o.T}
    m = len(r)
    draws = np.empty(replicates)
    for k in range(replicates):
        weights = rng.multinomial(m, np.full(m, 1 / m))
        drawn = np.flatnonzero(weights)  # 63 % of the rows, so a quarter of the SVD's cost
        w = weights[drawn].astype(np.float64)
        g = {name: gram[np.ix_(drawn, drawn)] for name, gram in grams.items()}
        distance_o = _weighted_frechet(g["rr"], g["oo"], g["ro"], w)
        draws[k] = distance_o - _weighted_frechet(g["rr"], g["bb"], g["rb"], w)
    return draws


def _weighted_frechet(xx: Array, yy: Array, xy: Array, weights: Array) -> float:
    """FID of x and y in which row i counts weights[i] times, from the inner products x xᵀ, y yᵀ, x yᵀ, each (u, u).

    As `frechet_distance`: with F = √w (x − μx)/√(m − 1) and G likewise, tr (Σx Σy)^½ = Σ singular values of F Gᵀ.
    """
    m = weights.sum()
    root = np.sqrt(weights)
    means = weights @ (xx + yy - xy - xy.T) @ weights / m**2
    traces = weights @ (np.diag(_centred(xx, weights)) + np.diag(_centred(yy, weights)))
    cross = np.linalg.svd(root[:, None] * _centred(xy, weights) * root, compute_uv=False).sum()
    return float(means + (traces - 2 * cross) / (m - 1))


def _centred(gram: Array, weights: Array) -> Array:
    """Inner products (u, u) of x and y after their weighted means are taken off."""
    w = weights / weights.sum()
    of_x, of_y = gram @ w, w @ gram
    return np.asarray(gram - of_x[:, None] - of_y + w @ of_x)


def _codes(name: str, codes: NDArray[Any], codebook_size: int) -> NDArray[Any]:
    """Codes as (N, T, G), checked."""
    array = np.asarray(codes)
    if array.ndim not in (2, 3) or array.shape[0] < 2 or array.size == 0:
        raise ValueError(f"expected {name} codes (N, T) or (N, T, G) of N ≥ 2 images, not of shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"expected {name} codes to be integers, not {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= codebook_size:
        raise ValueError(f"expected {name} codes in [0, {codebook_size}), but they go from {low} to {high}")
    return array if array.ndim == 3 else array[:, :, None]


def _score_without_each(codes: NDArray[Any], codebook_size: int, score: CodeScore) -> tuple[float, Array]:
    """The score of (N, T, G) codes and, (N,), the scores that are left when one image at a time is left out."""
    one_codebook = _usage_without_each if score == "usage" else _perplexity_without_each
    results = [one_codebook(codes[:, :, g], codebook_size) for g in range(codes.shape[2])]
    return float(np.mean([whole for whole, _ in results])), np.mean([each for _, each in results], axis=0)


def _usage_without_each(codes: NDArray[Any], codebook_size: int) -> tuple[float, Array]:
    def lost(of_code: NDArray[np.int64], of_image: NDArray[np.int64]) -> Array:
        return np.asarray(of_code == of_image, np.float64)  # a code that no other image has

    histogram = _histogram(codes, codebook_size)
    used = np.count_nonzero(histogram)
    return used / codebook_size, (used - _sum_by_image(codes, histogram, lost)) / codebook_size


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
