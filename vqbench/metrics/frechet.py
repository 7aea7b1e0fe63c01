"""FID and KID on features, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[Any]
"""(n, d), one row per image; any float type."""

KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 2020  # torch-fidelity's defaults
_ROWS = 8192  # of a block that is brought to float64 at a time: 128 MiB at d = 2048


def _check(x: Features, y: Features) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be (n, d) with one d, not {x.shape} and {y.shape}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a covariance needs at least 2 images, not {min(len(x), len(y))}")


def _covariance_root(x: Features, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """A matrix F (min(n, d), d) with FᵀF = the unbiased covariance of x.

    Few images: the centred features themselves. Many: the R of their QR decomposition, block by block. The
    covariance is never formed, so its small eigenvalues keep all their digits.
    """
    n, d = x.shape
    scale = float(np.sqrt(n - 1))
    if n <= d:
        return np.asarray((x.astype(np.float64) - mean) / scale)
    root: NDArray[np.float64] = np.empty((0, d))
    for start in range(0, n, _ROWS):
        block = x[start : start + _ROWS].astype(np.float64) - mean
        root = np.asarray(np.linalg.qr(np.vstack([root, block]), mode="r"))
    return np.asarray(root / scale)


def frechet_distance(x: Features, y: Features) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al., 2017, arXiv:1706.08500).

    |μx - μy|² + tr Σx + tr Σy - 2 tr (Σx Σy)^½. With Σx = FᵀF and Σy = GᵀG the eigenvalues of Σx Σy are the squared
    singular values of F Gᵀ, so the last trace is their plain sum: no matrix root, no 1e-6 on the diagonal, and
    a matrix of only n × n where images are fewer than dimensions.
    """
    _check(x, y)
    mx, my = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    f, g = _covariance_root(x, mx), _covariance_root(y, my)
    cross = np.linalg.svd(f @ g.T, compute_uv=False).sum()
    distance = np.square(mx - my).sum() + np.square(f).sum() + np.square(g).sum() - 2 * cross
    return max(float(distance), 0.0)  # rounding leaves -1e-12 for two equal sets


def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """KID's kernel (x·y/d + 1)³ of every row of x (m, d) with every row of y (n, d): (m, n)."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _mmd2(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    m, n = len(x), len(y)
    kxx, kyy, kxy = kernel(x, x), kernel(y, y), kernel(x, y)
    within_x = (kxx.sum() - np.trace(kxx)) / (m * (m - 1))
    within_y = (kyy.sum() - np.trace(kyy)) / (n * (n - 1))
    return float(within_x + within_y - 2 * kxy.mean())


def kernel_distance(x: Features, y: Features) -> float:
    """KID: unbiased squared MMD with the kernel (x·y/d + 1)³ (Bińkowski et al., 2018, arXiv:1801.01401).

    Up to 1000 images: one estimate over all of them. Beyond: the mean over 100 pairs of random subsets of 1000,
    drawn as torch-fidelity draws them. May be slightly negative.
    """
    _check(x, y)
    size = min(KID_SUBSET_SIZE, len(x), len(y))
    if max(len(x), len(y)) <= KID_SUBSET_SIZE:
        return _mmd2(x.astype(np.float64), y.astype(np.float64))
    rng = np.random.RandomState(KID_SEED)
    estimates = []
    for _ in range(KID_SUBSETS):
        a, b = (s[rng.choice(len(s), size, replace=False)].astype(np.float64) for s in (x, y))
        estimates.append(_mmd2(a, b))
    return float(np.mean(estimates))
