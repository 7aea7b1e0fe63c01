"""How many seeds a difference asks for, judged by the spread that was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from vqbench.reports.statistics import LEVEL, Array

POWER = 0.8
MOST_SEEDS = 100
"""More seeds than so many more are not counted."""


def power_of_seeds(
    delta: float, deviation: float, seeds: ArrayLike, image_error: float = 0.0, level: float = LEVEL
) -> Array:
    """Probability that a true difference `delta` is separated at two-sided `level` with so many seeds.

    deviation: sd of the differences of one seed, > 0. t of S seeds is noncentral with S − 1 degrees of freedom and
    noncentrality delta √S / deviation (Johnson and Welch, 1940, doi:10.1093/biomet/31.3-4.362); to be separated the
    wrong way round does not count. Exact where the differences are normal. `image_error` is a standard error that
    stays whatever the seeds: it adds to the variance, and Welch's degrees of freedom stand for those of the sum.
    """
    from scipy.special import nctdtr, stdtrit

    count = np.asarray(seeds, np.float64)
    of_seeds, of_images = deviation**2 / count, image_error**2
    freedom = (count - 1) * (1 + of_images / of_seeds) ** 2
    critical, shift = stdtrit(freedom, 1 - level / 2), abs(delta) / np.sqrt(of_seeds + of_images)
    return np.asarray(1 - nctdtr(freedom, np.minimum(shift, 30), critical))  # beyond it scipy may give nan


def seeds_needed(differences: Sequence[float], image_error: float = 0.0, level: float = LEVEL) -> float:
    """Seeds at which a difference of the mean and spread of `differences` would be separated in 4 of 5 experiments.

    differences: (S,) of S ≥ 2 seeds. math.inf where S + 100 seeds are too few. An estimate from S numbers, no
    promise. Raises ValueError for fewer than 2 differences.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or len(d) < 2:
        raise ValueError(f"expected the differences of at least 2 seeds, (S,), not of shape {d.shape}")
    delta, deviation = float(d.mean()), float(d.std(ddof=1))
    counts = np.arange(2, len(d) + MOST_SEEDS + 1)
    if deviation == 0:
        return math.inf if images_are_too_few(delta, image_error, level) or delta == 0 else 2.0
    enough = counts[power_of_seeds(delta, deviation, counts, image_error, level) >= POWER]
    return float(enough[0]) if len(enough) else math.inf


def images_are_too_few(delta: float, image_error: float, level: float = LEVEL) -> bool:
    """Whether the images' share of the error alone keeps a difference from being separated in 4 of 5 experiments."""
    from scipy.special import ndtri

    return bool(abs(delta) < (ndtri(1 - level / 2) + ndtri(POWER)) * image_error)
