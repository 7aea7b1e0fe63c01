"""What happened during training: usage, perplexity and PSNR over images, mean over seeds with a band.

And of single cells that collapsed: pixel loss and perplexity, with the moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vqbench.reports.experiment import Group, StoredCell
from vqbench.reports.figures.captions import first_of, seeds_of
from vqbench.reports.figures.style import (
    MOST,
    Mark,
    Picture,
    legend_below,
    legend_handle,
    logarithmic,
    marks,
    new_figure,
    shortened_note,
)
from vqbench.reports.report import ReportSection

_MOST_POINTS = 120
"""Of one line: the eye sees no more, and an SVG stays small."""
_PANELS = {
    "usage": ("usage since the last point", "share of codes"),
    "perplexity": ("perplexity since the last point", "codes"),
    "psnr": ("PSNR of a training batch", "dB"),
    "usage_100k": ("usage, last 100,000 tokens", "share of codes"),
    "perplexity_100k": ("perplexity, last 100,000 tokens", "codes"),
    "quantization_error": ("quantization error of a batch", "share of variance"),
}
"""What is logged → title and unit."""
_COLLAPSE_PANELS = (
    ("pixel loss of a training batch", {"loss/pixel": "codes", "loss/continuous_pixel": "continuous path"}),
    ("perplexity since the last point", {"perplexity": "codes"}),
)
"""Titles, and what is logged → its name in the legend."""


def training_curves(section: ReportSection) -> Picture | None:
    """A panel per quantity that was logged, over training images."""
    finished = [group for group in section.rows if group.finished]
    groups = finished[:MOST]
    points = {group.label: _points(group) for group in groups}
    groups = [group for group in groups if any(key in p for p in points[group.label] for key in _PANELS)]
    if not groups:
        return None
    keys = [key for key in _PANELS if any(key in p for own in points.values() for p in own)]
    style = marks(group.label for group in groups)
    columns = len(keys) if len(keys) < 4 else 2 if len(keys) == 4 else 3
    figure = new_figure(0.6 + 1.9 * -(-len(keys) // columns) + 0.085 * len(groups))
    panels = figure.subplots(-(-len(keys) // columns), columns, squeeze=False).ravel()
    for axes, key in zip(panels, keys, strict=False):
        for group in groups:
            _draw(axes, points[group.label], key, style[group.label])
        title, unit = _PANELS[key]
        axes.set_title(title, fontsize=8)
        axes.set(xlabel="training images", ylabel=unit)
        axes.locator_params(axis="x", nbins=4)
        if key.startswith("perplexity"):
            logarithmic(axes.yaxis, [p[key] for own in points.values() for p in own if key in p])
    for axes in panels[len(keys) :]:
        axes.remove()
    legend_below(figure, {mark.short: legend_handle(mark) for mark in style.values()})
    caption = (
        f"Codes and PSNR over training: mean over {seeds_of(groups)}, bands from the lowest to the highest seed. "
        "Measured on training batches as the cells logged them, not under the protocol."
    )
    caption += first_of(len(groups), len(finished)) + shortened_note(style)
    return Picture("training", "Training curves", caption, figure)


def collapses(section: ReportSection) -> Iterator[Picture]:
    """A picture for each cell that collapsed or diverged and has curves: what it lost, and when that was noticed."""
    flagged = [cell for group in section.rows for cell in group.cells if cell.result.get("collapse")]
    for cell in flagged[:MOST]:  # in the order of the table; the words are there for all
        points = cell.folder.curves
        panels = [
            (title, {key: name for key, name in keys.items() if any(key in point for point in points)})
            for title, keys in _COLLAPSE_PANELS
        ]
        if panels := [panel for panel in panels if panel[1]]:
            yield _collapse(cell, points, panels)


def _collapse(cell: StoredCell, points: list[dict[str, Any]], panels: list[tuple[str, dict[str, str]]]) -> Picture:
    style = marks(dict.fromkeys(name for _, keys in panels for name in keys.values()))
    figure = new_figure(2.1, 5.2)  # it is shown at half the width of a page
    handles = {mark.short: legend_handle(mark) for mark in style.values()}
    flag = cell.result["collapse"]
    for axes, (title, keys) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key, name in keys.items():
            _draw(axes, points, key, style[name])
        noticed = axes.axvline(flag["images"], color="0.35", linestyle=":", linewidth=1.2)
        handles[f"noticed after {flag['images']:,} images"] = noticed
        axes.set_title(title, fontsize=8)
        axes.set(xlabel="training images", ylim=(0, None))
        axes.locator_params(axis="x", nbins=5)
    legend_below(figure, handles)
    caption = "Measured on training batches as the cell logged them, not under the protocol."
    return Picture(f"collapse-{cell.folder.name}", "How it went", caption, figure, cell.folder.name)


def _points(group: Group) -> list[dict[str, Any]]:
    return [point for cell in group.cells if not cell.failed for point in cell.folder.curves]


def _draw(axes: Any, points: Sequence[dict[str, Any]], key: str, mark: Mark) -> None:
    by_images: dict[int, list[float]] = {}
    for point in points:
        value = point.get(key)
        if isinstance(value, int | float) and np.isfinite(value):
            by_images.setdefault(int(point["images"]), []).append(value)
    at = sorted(by_images)
    at = [at[i] for i in sorted({round(i) for i in np.linspace(0, len(at) - 1, min(len(at), _MOST_POINTS))})]
    if not at:
        return
    values = [by_images[x] for x in at]
    every = max(1, len(at) // 6)
    axes.plot(at, [np.mean(v) for v in values], color=mark.color, linestyle=mark.dashes, marker=mark.marker,
              markevery=every, label=mark.short)  # fmt: skip
    if any(len(v) > 1 for v in values):
        axes.fill_between(at, [min(v) for v in values], [max(v) for v in values], color=mark.color, alpha=0.18, lw=0)
