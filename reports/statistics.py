"""Paired differences of two tokenizers: an estimate, its 95 % interval and a p-value, from stored values alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.05
"""Two rows are called separated where p, adjusted over the tests of a metric, is below this."""
Array = NDArray[np.float64]

SMALLEST_P = 1e-12
"""No p is reported below this: no model of the noise holds that far out, and p = 0 is never a finding."""


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
    image_error: float = 0.0
    """Standard error of delta that comes from the images alone, and that no further seed would take away."""

    def turned(self) -> Difference:
        """`base` minus `other`."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return replace(self, delta=-self.delta, low=low, high=high)


@dataclass(frozen=True)
class Resampled:
    """A score of one set of images, and how it varies over resamples of them.

    Two sets of the same images, resampled in the same way, pair up: the standard error of the difference of their
    scores is the length of the difference of their deviates.
    """

    score: float
    deviates: Array
    """(R,) deviations of resampled scores from their mean, so scaled that their length is the standard error."""
    images: int


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
    delta, parts = float(d.mean()), _image_parts(d)
    low, high, p = _interval(delta, *parts)
    return Difference(delta, low, high, p, seeds, images, "seeds and images" if seeds > 1 else "images", parts[-1][0])


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


def paired_resamples(base: Resampled, other: Resampled) -> Difference:
    """Difference of two scores of one seed each over the same images: delta ± 1.96 standard errors, images alone.

    Resamples that all differ by the same amount make no interval, unless it is 0: all codes but one, say, are used by
    many images, which is no certainty.
    Raises ValueError for resamples that are not of the same images, or not of the same number.
    """
    if base.images != other.images or base.deviates.shape != other.deviates.shape:
        raise ValueError(f"expected resamples of the same images, not of {base.images} and {other.images}")
    delta, error = other.score - base.score, float(np.linalg.norm(other.deviates - base.deviates))
    if delta != 0 and error <= 1e-12 * abs(delta):
        return Difference(delta, None, None, None, 1, base.images, "")
    low, high, p = _interval(delta, (error, math.inf))
    return Difference(delta, low, high, p, 1, base.images, "images", error)


def holm(p_values: Sequence[float | None], family: int = 0) -> list[float | None]:
    """Holm's step-down adjustment (1979, jstor:4615733): keeps the family-wise error rate, whatever the dependence.

    The i-th smallest of n becomes the largest of (n − j + 1) p₍ⱼ₎ over j ≤ i, at most 1. None stays None and is
    not counted in n. A larger `family` takes the place of n: hypotheses that were not tested for what the data showed,
    and count as tested with p = 1. Raises ValueError for a p outside [0, 1].
    """
    known = [(p, i) for i, p in enumerate(p_values) if p is not None]
    for p, _ in known:
        if not 0 <= p <= 1:
            raise ValueError(f"expected p-values in [0, 1], not {p}")
    adjusted: list[float | None] = [None] * len(p_values)
    largest, count = 0.0, max(family, len(known))
    for rank, (p, i) in enumerate(sorted(known)):
        largest = max(largest, min((count - rank) * p, 1.0))
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
# Behrens-Fisher covered 94 to 98 % with 3 or more seeds, 95 to 99 % with 2: it errs on the side of "not separated".
def _interval(delta: float, *parts: tuple[float, float]) -> tuple[float, float, float]:
    """95 % interval and two-sided p of delta, whose error is a sum of scaled Student t's: (scale, df) each."""
    from scipy import special  # scipy.stats would take a second to import

    present = sorted(part for part in parts if part[0] > 0)
    if not present:  # nothing varies: every image under every seed gave the same difference
        return delta, delta, 1.0 if delta == 0 else SMALLEST_P
    widths = [float(special.stdtrit(df, 0.975)) * scale for scale, df in present]
    if len(present) == 1:
        scale, df = present[0]
        half, p = widths[0], 2 * float(special.stdtr(df, -abs(delta) / scale))
    else:
        tail = _two_sided_tail(*present)
        half = _falls_to(0.05, tail, 0.99 * max(widths), 1.01 * sum(widths))
        p = tail(abs(delta))
    return delta - half, delta + half, min(max(p, SMALLEST_P), 1.0)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def _two_sided_tail(small: tuple[float, float], large: tuple[float, float]) -> Callable[[float], float]:
    """x → P(|a·T + b·U| ≥ x) for T, U independent Student t's; small = (a, its df), large = (b, its df), a ≤ b.

    2 ∫₀^∞ f(t) [P(U ≥ (x − a t)/b) + P(U ≥ (x + a t)/b)] dt by Gauss-Legendre in s, t = sinh(s): dense at 0 and far
    out, for the t with 1 degree of freedom has no variance. For x ≫ b the integrand falls at t = x/a within b/a, so
    half of the way there begins a second piece, dense at x/a. Against adaptive quadrature: wrong by less than 1e-7.
    """
    from scipy.special import gammaln, stdtr

    (a, df), (b, big_df) = small, large
    end = math.sqrt(df) * 1e12 ** (1 / df)  # beyond it T has less than 1e-12
    constant = float(gammaln((df + 1) / 2) - gammaln(df / 2)) - math.log(df * math.pi) / 2

    def tail(x: float) -> float:
        far = x > 3 * b
        s, weights = _panels(0.0, math.asinh(x / (2 * a) if far else end + x / a))
        t, weights = np.sinh(s), weights * np.cosh(s)
        if far:
            s, more = _panels(-math.asinh(x / (2 * b)), math.asinh(end * a / b))
            t = np.concatenate([t, x / a + b / a * np.sinh(s)])
            weights = np.concatenate([weights, more * b / a * np.cosh(s)])
        density = np.exp(constant - (df + 1) / 2 * np.log1p(t * t / df))
        inner = stdtr(big_df, (a * t - x) / b) + stdtr(big_df, (-a * t - x) / b)
        return 2 * float((weights * density) @ inner)

    return tail


def _panels(start: float, end: float) -> tuple[Array, Array]:
    """Nodes and weights of Gauss-Legendre on [start, end] in panels of at most 1."""
    count = max(1, math.ceil(end - start))
    half = (end - start) / count / 2
    middles = start + half * (2 * np.arange(count) + 1)
    return (middles[:, None] + half * _NODES).ravel(), np.broadcast_to(half * _WEIGHTS, (count, len(_WEIGHTS))).ravel()


def _falls_to(level: float, function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is `level`, between low and high: false position (Illinois), to 1e-11 in the level."""
    above, below, side = function(low) - level, function(high) - level, 0
    for _ in range(100):
        x = (low * below - high * above) / (below - above)
        value = function(x) - level
        if abs(value) < 1e-11:
            break
        if value > 0:
            low, above, below = x, value, below / 2 if side > 0 else below  # halved, lest one end stays for ever
        else:
            high, below, above = x, value, above / 2 if side < 0 else above
        side = 1 if value > 0 else -1
    return x
