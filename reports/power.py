"""How many seeds a difference asks for, judged by the spread that was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from vqbench.reports.statistics import Array

LEVEL, POWER = 0.05, 0.8
MOST_SEEDS = 100
"""More seeds than this are not counted: whoever needs them compares what is the same for all purposes."""


def power_of_seeds(effect: float, seeds: ArrayLike) -> Array:
    """Probability that a paired t test at two-sided 5 % separates a difference of `effect` standard deviations.

    effect = mean / sd of the differences of one seed. t of S seeds is noncentral with S − 1 degrees of freedom and
    noncentrality effect·√S (Johnson and Welch, 1940, doi:10.1093/biomet/31.3-4.362); both tails count. Exact where
    the differences are normal.
    """
    from scipy.special import nctdtr, stdtrit

    count = np.asarray(seeds, np.float64)
    critical, shift = stdtrit(count - 1, 1 - LEVEL / 2), abs(effect) * np.sqrt(count)
    return np.asarray(1 - nctdtr(count - 1, shift, critical) + nctdtr(count - 1, shift, -critical))


def seeds_needed(differences: Sequence[float], image_error: float = 0.0) -> float:
    """Seeds at which a difference of the mean and spread of `differences` would be separated in 4 of 5 experiments.

    differences: (S,) of S ≥ 2 seeds. math.inf where S + 100 seeds are too few, or where all seeds of the world would
    be: what the images leave uncertain, `image_error`, stays. An estimate from S numbers, no promise.

    Raises ValueError for fewer than 2 differences.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or len(d) < 2:
        raise ValueError(f"expected the differences of at least 2 seeds, (S,), not of shape {d.shape}")
    delta, deviation = abs(float(d.mean())), float(d.std(ddof=1))
    if images_are_too_few(delta, image_error) or delta == 0:
        return math.inf
    counts = np.arange(2, len(d) + MOST_SEEDS + 1)
    enough = counts[power_of_seeds(delta / deviation, counts) >= POWER] if deviation > 0 else counts
    return float(enough[0]) if len(enough) else math.inf


def images_are_too_few(delta: float, image_error: float) -> bool:
    """Whether the images' share of the error alone keeps a difference from being separated in 4 of 5 experiments."""
    from scipy.special import ndtri

    return bool(abs(delta) < (ndtri(1 - LEVEL / 2) + ndtri(POWER)) * image_error)
