"""Rate-distortion: quality against bits, one curve per method."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.bd_rate import bd_rate
from vqbench.reports.figures.captions import first_of, means
from vqbench.reports.figures.points import draw_panels, share_places
from vqbench.reports.figures.series import Curve, curves, of_rate, score, scored, shown_qualities
from vqbench.reports.figures.style import MOST, Picture, shortened_note
from vqbench.reports.report import ReportSection

_RATES = (("bpp", "bpp_entropy"), ("bits_per_token", "entropy_bits_per_token"))
"""(as indices are stored, after an ideal entropy coder), of images and of features."""


def rate_distortion(section: ReportSection) -> Picture | None:
    """A row of panels per metric: against stored bits, and against entropy-coded bits with hollow markers."""
    chosen = next(((r, c) for r, c in _RATES if scored(section.rows, r)), None)
    if chosen is None:
        return None
    rate, coded = chosen
    shown_metrics, groups = shown_qualities(section.rows, 2, rate)
    if not shown_metrics:
        return None
    every = curves(groups, lambda g: score(g, rate).mean, of_rate(lambda g: score(g, rate).mean))
    drawn = every[:MOST]
    shown = [group for curve in drawn for group in curve.groups]
    columns = [name for name in chosen if len(scored(shown, name)) == len(shown)]
    places = {_rate_label(name, coded): functools.partial(score, metric=name) for name in columns}
    figure, intervals = draw_panels(drawn, shown_metrics, places, hollow=_rate_label(coded, coded))
    said = f"{_titles(shown_metrics)} against {DEFINITIONS[rate].title}"
    said += ", as indices are stored (filled) and after an ideal entropy coder (hollow)" if len(columns) > 1 else ""
    caption = f"{said}. {means(section.section, shown)}{intervals}"
    if share_places([score(group, rate).mean for group in shown]):
        caption += " Points at one rate are set side by side."
    caption += delta_rates(drawn, rate) + first_of(len(drawn), len(every), "curves")
    caption += shortened_note(curve.label for curve in drawn)
    return Picture("rate-distortion", "Rate-distortion", caption, figure)


def _rate_label(name: str, coded: str) -> str:
    unit = DEFINITIONS[name].unit
    what = "bits per pixel" if name.startswith("bpp") else "bits per token"
    return f"{what}{', entropy-coded' if name == coded else ''} ({unit})"


def _titles(metrics: Sequence[str]) -> str:
    return " and ".join(DEFINITIONS[name].title for name in metrics)


def delta_rates(drawn: Sequence[Curve], rate: str) -> str:
    """BD-rate in PSNR of every curve with 4 points against the first that has them; empty where there are none."""
    long = [curve for curve in drawn if len(scored(curve.groups, rate, "psnr")) >= 4]
    if len(long) < 2:
        return ""
    points = {
        curve.label: ([score(g, rate).mean for g in curve.groups], [score(g, "psnr").mean for g in curve.groups])
        for curve in long
    }
    anchor, *others = points
    found = {label: bd_rate(*points[anchor], *points[label]) for label in others}
    known = [f"{label} {value:+.1f} %" for label, value in found.items() if value is not None]
    unknown = [label for label, value in found.items() if value is None]
    said = f" BD-rate (PSNR, more is more bits) against {anchor}: {', '.join(known)}." if known else ""
    if unknown:
        said += (
            f" No BD-rate of {', '.join(unknown)} against {anchor}: PSNR does not rise with the rate, or the ranges of "
            "PSNR do not overlap."
        )
    return said
