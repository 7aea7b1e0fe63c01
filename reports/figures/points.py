"""Points with intervals, joined into curves: metrics against something that has a place on an axis, a panel each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vqbench.reports.experiment import Group
from vqbench.reports.figures.captions import CUT, LEFT_OUT
from vqbench.reports.figures.series import Curve, score
from vqbench.reports.figures.style import (
    Mark,
    legend_below,
    legend_handle,
    logarithmic,
    marks,
    metric_label,
    new_figure,
)
from vqbench.reports.summary import Estimate

Place = Callable[[Group], Estimate]
"""Where a group is on an axis."""


_BESIDE = 0.012
"""Points at one place stand this far apart, as a share of the panel's width."""
_CUT = 0.9
"""An interval may reach this far beyond the outermost points, in shares of what the points themselves span."""


def draw_panels(
    curves: Sequence[Curve],
    metrics: Sequence[str],
    places: Mapping[str, Place],
    hollow: str = "",
    may_be_logarithmic: bool = False,
) -> tuple[Any, str]:
    """A figure with a row per metric and a column per axis, or with one row where there is one axis; and what its
    caption must say of intervals.

    The keys of `places` are the labels of their axes, `hollow` the one whose markers are not filled.
    """
    rows, columns = (len(metrics), len(places)) if len(places) > 1 else (1, len(metrics))
    figure = new_figure(0.6 + 2.2 * rows + 0.085 * len(curves))
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row" if rows > 1 else False, sharex="col")
    wanted = [(metric, label) for metric in metrics for label in places]
    style, said = marks(curve.label for curve in curves), set[str]()
    for axes, (metric, label) in zip(grid.ravel(), wanted, strict=True):
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel=label, ylabel=metric_label(metric))
        if rows > 1:
            axes.label_outer()
        if may_be_logarithmic:
            logarithmic(axes.xaxis, [places[label](group).mean for curve in curves for group in curve.groups])
        said |= _draw_points(axes, curves, style, places[label], metric, label == hollow)
    legend_below(figure, {m.short: legend_handle(m, len(c.groups) > 1) for c in curves for m in [style[c.label]]})
    return figure, "".join(sorted(said))


def _draw_points(
    axes: Any, curves: Sequence[Curve], style: Mapping[str, Mark], place: Place, metric: str, hollow: bool
) -> set[str]:
    """Mean and interval of every group at its place, a line through each curve; what a caption must say of intervals.

    An artist's label is the short label of its curve. Intervals on both axes where both have them.
    """
    groups = [group for curve in curves for group in curve.groups]
    at, values = [place(group) for group in groups], [score(group, metric) for group in groups]
    places, across, upwards = [x.mean for x in at], _limits(at), _limits(values)
    for number, curve in enumerate(curves):
        move = _beside(places, number - (len(curves) - 1) / 2, logarithmic=axes.get_xscale() == "log")
        own = [place(group) for group in curve.groups]
        wide = [x.half_width or 0.0 for x in own] if across is None and any(x.half_width for x in own) else None
        _draw_curve(axes, curve, style[curve.label], [move(x.mean) for x in own], wide, metric, hollow)
    if len({round(x, 9) for x in places}) == 1:
        axes.set(xticks=[places[0]], xticklabels=[f"{places[0]:.4g}"], xlim=(places[0] * 0.8, places[0] * 1.2))
    if upwards is not None:
        axes.set_ylim(*upwards)
        for container in axes.containers:
            for bars in container.lines[2]:
                bars.set_alpha(0.5)
    said = {LEFT_OUT: across, CUT: upwards}
    return {sentence for sentence, limits in said.items() if limits is not None}


def _draw_curve(
    axes: Any, curve: Curve, mark: Mark, at: Sequence[float], wide: Sequence[float] | None, metric: str, hollow: bool
) -> None:
    values = [score(group, metric) for group in curve.groups]
    axes.errorbar(
        at, [y.mean for y in values], xerr=wide,
        yerr=[y.half_width or 0.0 for y in values] if any(y.half_width for y in values) else None,
        color=mark.color, marker=mark.marker, linestyle=mark.dashes if len(at) > 1 else "none", label=mark.short,
        markerfacecolor="white" if hollow else mark.color, elinewidth=0.9, capsize=2,
    )  # fmt: skip


def _limits(values: Sequence[Estimate]) -> tuple[float, float] | None:
    """Limits of an axis where the intervals would leave no room for the means."""
    ends = [(v.mean - (v.half_width or 0.0), v.mean + (v.half_width or 0.0)) for v in values]
    return within([v.mean for v in values], [low for low, _ in ends], [high for _, high in ends])


def share_places(places: Sequence[float]) -> bool:
    """Whether several groups have one place, so that they are drawn side by side."""
    return len({round(x, 9) for x in places}) < len(places)


def _beside(places: Sequence[float], number: float, logarithmic: bool) -> Callable[[float], float]:
    """Moves the points of a curve to the left (number < 0) or right, where several groups share a place."""
    low, high = min(places), max(places)
    if not share_places(places):
        return lambda x: x
    if logarithmic:
        return lambda x: x * (high / low) ** (_BESIDE * number)
    width = high - low or 2 * abs(low) or 1.0
    return lambda x: x + _BESIDE * number * width


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
