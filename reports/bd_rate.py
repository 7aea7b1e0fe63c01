"""Bjøntegaard delta rate: how many bits more or fewer one curve takes than another at the same quality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST_POINTS = 4


def bd_rate(
    anchor_rate: Sequence[float],
    anchor_quality: Sequence[float],
    rate: Sequence[float],
    quality: Sequence[float],
) -> float | None:
    """Mean difference in rate at equal quality, in percent of the anchor's: −10 is a tenth fewer bits.

    rate: positive, in any unit, the same in both (bit/pixel); quality: PSNR in dB. Each curve is log(rate) as a
    function of quality, by monotone piecewise cubics (PCHIP) through its points. With D the range of quality that
    both cover and |D| its length: 100 · (exp(∫_D (log r − log r_anchor) dq / |D|) − 1). Bjøntegaard, "Calculation
    of average PSNR differences between RD-curves", ITU-T VCEG-M33, 2001, with piecewise cubics in the place of one
    polynomial, as the common test conditions of JCT-VC and JVET have it.

    None where it is not defined: fewer than 4 points in either, a curve whose quality does not rise with the rate, or
    ranges of quality that do not overlap. Raises ValueError for lengths that differ, rates that are not positive, and
    values that are not finite.
    """
    curves = [_log_rate(*points) for points in ((anchor_rate, anchor_quality), (rate, quality))]
    if any(curve is None for curve in curves):
        return None
    (anchor_q, anchor_log), (other_q, other_log) = (curve for curve in curves if curve is not None)
    low, high = max(anchor_q[0], other_q[0]), min(anchor_q[-1], other_q[-1])
    if low >= high:
        return None
    from scipy.interpolate import PchipInterpolator

    areas = [
        float(PchipInterpolator(q, log).integrate(low, high))
        for q, log in ((anchor_q, anchor_log), (other_q, other_log))
    ]
    return float(100 * np.expm1((areas[1] - areas[0]) / (high - low)))


def _log_rate(
    rate: Sequence[float], quality: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Quality and log(rate), both rising; None where the one does not rise with the other."""
    r, q = np.asarray(rate, np.float64), np.asarray(quality, np.float64)
    if r.shape != q.shape or r.ndim != 1:
        raise ValueError(f"expected as many rates as qualities, not {r.shape} and {q.shape}")
    if not (np.isfinite(r).all() and np.isfinite(q).all() and (r > 0).all()):
        raise ValueError("expected positive rates and finite qualities")
    order = np.argsort(r, kind="stable")
    r, q = r[order], q[order]
    if len(r) < FEWEST_POINTS or (np.diff(q) <= 0).any() or (np.diff(r) <= 0).any():
        return None
    return q, np.log(r)
