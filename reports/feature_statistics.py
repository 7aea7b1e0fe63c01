"""FID and KID of one seed, with intervals over images alone: each set is resampled once, whatever it is paired with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vqbench.metrics import frechet
from vqbench.reports.statistics import Array, Resampled

FRECHET_ROWS, FRECHET_REPLICATES, FRECHET_SEED = 500, 60, 2017
"""Images in one bootstrap sample of features (one SVD takes about 10 ms), samples (so many tell an sd to a tenth, in
seconds per cell), and the seed of both draws."""
Features = NDArray[Any]


def resample_frechet(
    reference: Features, features: Features, distance: float | None = None, replicates: int = FRECHET_REPLICATES
) -> Resampled:
    """FID(reference, features), known as `distance` or computed here, and its bootstrap over images.

    reference and features (N, d) are of the N images and of their reconstructions, row by row. A random
    m = min(N, 500) of the images is resampled `replicates` times, the same images in both sets, and for every
    tokenizer the same; scaled by √(m/N), for the error falls as 1/√N (m-out-of-n bootstrap, Bickel, Götze and van
    Zwet, 1997).

    Raises ValueError for shapes that differ or are not (N ≥ 2, d), for values that are not finite, and for
    fewer than 2 replicates.
    """
    _check(reference, features, least=2)
    if replicates < 2:
        raise ValueError(f"expected at least 2 replicates, not {replicates}")
    score = frechet.frechet_distance(reference, features) if distance is None else _finite(distance)
    images = len(reference)
    rng = np.random.default_rng(FRECHET_SEED)
    rows = _some_rows(images, FRECHET_ROWS, rng)
    draws = _frechet_draws(reference[rows], features[rows], replicates, rng)
    scale = math.sqrt(len(rows) / images / (replicates - 1))
    return Resampled(score, (draws - draws.mean()) * scale, images)


def resample_kernel(reference: Features, features: Features, distance: float | None = None) -> Resampled:
    """KID(reference, features), known as `distance` or computed here, and its jackknife over images.

    Up to 1000 images KID is one estimate over all: each image is left out in turn, in both sets at once. Beyond,
    KID is the mean over 100 pairs of random subsets of 1000, which is that estimate with noise of its own. The
    jackknife is then that of a random 1000 images, scaled by √(1000/N); and the subsets add, for each set on its own,
    the variance of a subset of 1000 without replacement, (1 − 1000/N), over 100 subsets. What the reference has with
    itself is the same for every tokenizer, and left out of the deviates.

    Raises ValueError for shapes that differ or are not (N ≥ 3, d), and for values that are not finite.
    """
    _check(reference, features, least=3)
    score = frechet.kernel_distance(reference, features) if distance is None else _finite(distance)
    images, size = len(reference), frechet.KID_SUBSET_SIZE
    rows = _some_rows(images, size, np.random.default_rng(frechet.KID_SEED))
    both, of_reference, of_features = _kernel_deviates(reference[rows], features[rows])
    if images <= size:
        return Resampled(score, both, images)
    of_subsets = math.sqrt((1 - size / images) / frechet.KID_SUBSETS)
    parts = (both * math.sqrt(size / images), of_reference * of_subsets, of_features * of_subsets)
    return Resampled(score, np.concatenate(parts), images)


def _finite(distance: float) -> float:
    if not math.isfinite(distance):
        raise ValueError(f"expected a finite distance, not {distance}")
    return float(distance)


def _check(reference: Features, features: Features, least: int) -> None:
    shapes = np.shape(reference), np.shape(features)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] < least:
        raise ValueError(f"expected features (N, d) of the same N ≥ {least} images, not {shapes[0]} and {shapes[1]}")
    for name, x in (("reference", reference), ("reconstruction", features)):
        with np.errstate(invalid="ignore", over="ignore"):
            total = x.sum(dtype=np.float64)  # one number, where np.isfinite(x) may be 100 million
        if not np.isfinite(total):
            raise ValueError(f"expected finite features, but those of the {name} {x.shape} are not")


def _some_rows(images: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(rng.choice(images, most, replace=False)) if most < images else np.arange(images)


def _frechet_draws(reference: Features, features: Features, replicates: int, rng: np.random.Generator) -> Array:
    """(replicates,) bootstrap FIDs over m images (m, d): rows are only reweighted, never copied."""
    centre = reference.mean(axis=0, dtype=np.float64)  # a shift of both changes no FID, and saves digits
    x, y = (np.asarray(given, np.float64) - centre for given in (reference, features))
    grams = x @ x.T, y @ y.T, x @ y.T
    m = len(x)
    draws = np.empty(replicates)
    # Threads gain nothing at this size, and on a busy machine they wait for each other: 20 times as long was measured.
    with threadpool_limits(1, user_api="blas"):
        for k in range(replicates):
            weights = rng.multinomial(m, np.full(m, 1 / m))
            drawn = np.flatnonzero(weights)  # 63 % of the rows, so a quarter of the SVD's cost
            xx, yy, xy = (gram[np.ix_(drawn, drawn)] for gram in grams)
            draws[k] = _weighted_frechet(xx, yy, xy, weights[drawn].astype(np.float64))
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


def _kernel_deviates(reference: Features, features: Features) -> tuple[Array, Array, Array]:
    """Jackknife deviates (n,) of KID: image i left out of both sets, of the reference, of the features.

    Leaving a row out of a sum over pairs takes its row and its column off, so each costs O(1) after the row sums.
    """
    x, y = (np.asarray(given, np.float64) for given in (reference, features))
    n = len(x)
    cross, within = frechet.kernel(x, y), frechet.kernel(y, y)
    np.fill_diagonal(within, 0.0)
    of_x, of_y, of_both, whole = cross.sum(axis=1), cross.sum(axis=0), np.diag(cross), cross.sum()
    without_y = (within.sum() - 2 * within.sum(axis=1)) / ((n - 1) * (n - 2))
    left = (
        without_y - 2 * (whole - of_x - of_y + of_both) / (n - 1) ** 2,
        -2 * (whole - of_x) / (n * (n - 1)),
        without_y - 2 * (whole - of_y) / (n * (n - 1)),
    )
    a, b, c = ((scores - scores.mean()) * math.sqrt((n - 1) / n) for scores in left)
    return a, b, c
