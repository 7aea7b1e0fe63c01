"""A panel of points with intervals, joined into curves: one metric against something that has a place on an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vqbench.reports.experiment import Group
from vqbench.reports.figures.families import Curve, score
from vqbench.reports.figures.style import Mark, metric_label
from vqbench.reports.summary import Estimate

Place = Callable[[Group], Estimate]
_BESIDE = 0.012
"""Points at one place stand this far apart, as a share of the panel's width."""
_CUT = 0.9
"""An interval may reach this far beyond the outermost points, in shares of what the points themselves span."""


def draw_points(
    axes: Any, curves: Sequence[Curve], marks: Mapping[str, Mark], place: Place, metric: str, hollow: bool = False
) -> bool:
    """Mean and interval of every group at its place, a line through each curve; whether intervals were cut.

    An artist's label is the short label of its curve. Intervals on both axes where both have them.
    """
    beside = _beside([place(group).mean for curve in curves for group in curve.groups])
    for number, curve in enumerate(curves):
        mark = marks[curve.label]
        at, values = [place(group) for group in curve.groups], [score(group, metric) for group in curve.groups]
        shift = beside * (number - (len(curves) - 1) / 2)
        axes.errorbar(
            [x.mean + shift for x in at],
            [y.mean for y in values],
            xerr=[x.half_width or 0 for x in at] if any(x.half_width for x in at) else None,
            yerr=[y.half_width or 0 for y in values] if any(y.half_width for y in values) else None,
            color=mark.color, marker=mark.marker, linestyle=mark.dashes if len(at) > 1 else "none", label=mark.short,
            markerfacecolor="white" if hollow else mark.color, elinewidth=0.9, capsize=2,
        )  # fmt: skip
    axes.set_ylabel(metric_label(metric))
    every = [score(group, metric) for curve in curves for group in curve.groups]
    halves = [value.half_width or 0.0 for value in every]
    limits = within(
        [value.mean for value in every],
        [value.mean - half for value, half in zip(every, halves, strict=True)],
        [value.mean + half for value, half in zip(every, halves, strict=True)],
    )
    if limits is not None:
        axes.set_ylim(*limits)
    return limits is not None


def _beside(places: Sequence[float]) -> float:
    """How far neighbours stand apart: 0, unless several groups share a place."""
    if len({round(x, 9) for x in places}) == len(places):
        return 0.0
    width = max(places) - min(places)
    return _BESIDE * (width or abs(places[0]) or 1.0)


def within(
    points: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None]
) -> tuple[float, float] | None:
    """Limits of an axis where intervals (two seeds: 12.7 standard errors) would press all points into one line.

    None where the intervals leave enough room for the points, or all points are one.
    """
    span = max(points) - min(points)
    least, most = min(points) - _CUT * span, max(points) + _CUT * span
    low = min([*points, *(end for end in lows if end is not None)])
    high = max([*points, *(end for end in highs if end is not None)])
    if not span or (low >= least and high <= most):
        return None
    return max(low, least) - 0.05 * span, min(high, most) + 0.05 * span
