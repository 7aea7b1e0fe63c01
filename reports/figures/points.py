"""A panel of points with intervals, joined into curves: one metric against something that has a place on an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vqbench.reports.experiment import Group
from vqbench.reports.figures.curves import Curve, score
from vqbench.reports.figures.style import Mark, legend_below, legend_handle, metric_label, new_figure
from vqbench.reports.summary import Estimate

Place = Callable[[Group], Estimate]
"""Where a group is on an axis."""


@dataclass(frozen=True)
class Panel:
    """One metric against one axis."""

    axes: Any
    metric: str
    place: str
    """The label of the axis."""


_BESIDE = 0.012
"""Points at one place stand this far apart, as a share of the panel's width."""
_CUT = 0.9
"""An interval may reach this far beyond the outermost points, in shares of what the points themselves span."""


def panels_for(metrics: Sequence[str], places: Mapping[str, Place], curves: Sequence[Curve]) -> tuple[Any, list[Panel]]:
    """A figure with a row per metric and a column per axis, or with one row where there is one axis; room for a legend.

    The keys of `places` are the labels of their axes.
    """
    rows, columns = (len(metrics), len(places)) if len(places) > 1 else (1, len(metrics))
    figure = new_figure(0.6 + 2.2 * rows + 0.085 * len(curves))
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row" if rows > 1 else False, sharex="col")
    wanted = [(metric, label) for metric in metrics for label in places]
    panels = [Panel(axes, metric, label) for axes, (metric, label) in zip(grid.ravel(), wanted, strict=True)]
    for panel in panels:
        panel.axes.set(xlabel=panel.place, ylabel=metric_label(panel.metric))
        if rows > 1:
            panel.axes.label_outer()
    return figure, panels


def draw_points(
    axes: Any, curves: Sequence[Curve], marks: Mapping[str, Mark], place: Place, metric: str, hollow: bool = False
) -> bool:
    """Mean and interval of every group at its place, a line through each curve; whether intervals were cut.

    An artist's label is the short label of its curve. Intervals on both axes where both have them.
    """
    places = [place(group).mean for curve in curves for group in curve.groups]
    for number, curve in enumerate(curves):
        mark = marks[curve.label]
        at, values = [place(group) for group in curve.groups], [score(group, metric) for group in curve.groups]
        move = _beside(places, number - (len(curves) - 1) / 2, logarithmic=axes.get_xscale() == "log")
        axes.errorbar(
            [move(x.mean) for x in at],
            [y.mean for y in values],
            xerr=[x.half_width or 0 for x in at] if any(x.half_width for x in at) else None,
            yerr=[y.half_width or 0 for y in values] if any(y.half_width for y in values) else None,
            color=mark.color, marker=mark.marker, linestyle=mark.dashes if len(at) > 1 else "none", label=mark.short,
            markerfacecolor="white" if hollow else mark.color, elinewidth=0.9, capsize=2,
        )  # fmt: skip
    if len({round(x, 9) for x in places}) == 1:
        axes.set(xticks=[places[0]], xticklabels=[f"{places[0]:.4g}"], xlim=(places[0] * 0.8, places[0] * 1.2))
    across = axes.get_xscale() != "log" and _cut(axes.set_xlim, [place(g) for curve in curves for g in curve.groups])
    return _cut(axes.set_ylim, [score(group, metric) for curve in curves for group in curve.groups]) or across


def _cut(set_limits: Callable[[float, float], object], values: Sequence[Estimate]) -> bool:
    """Limit an axis where the intervals would leave no room for the means; whether that was so."""
    ends = [(v.mean - (v.half_width or 0.0), v.mean + (v.half_width or 0.0)) for v in values]
    limits = within([v.mean for v in values], [low for low, _ in ends], [high for _, high in ends])
    if limits is not None:
        set_limits(*limits)
    return limits is not None


def legend_of(figure: Any, curves: Sequence[Curve], marks: Mapping[str, Mark]) -> None:
    """The curves' legend below the panels."""
    legend_below(figure, {m.short: legend_handle(m, len(c.groups) > 1) for c in curves for m in [marks[c.label]]})


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
