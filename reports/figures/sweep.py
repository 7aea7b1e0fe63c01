"""Pictures of a sweep: what each parameter explains, and the trials of several objectives with their front."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqbench.reports.figures.style import (
    WIDTH,
    drawing,
    legend_below,
    legend_handle,
    marks,
    metric_label,
    new_figure,
    save,
    short_labels,
    without_math,
)


def draw_importances(importances: Mapping[str, Mapping[str, float]], title: str, target: Path) -> None:
    """Objective → parameter → share, as bars, the most important first, as a PNG."""
    shown = {name: shares for name, shares in importances.items() if shares}
    height = 1.2 + 0.3 * max(len(shares) for shares in shown.values())
    with drawing():
        figure = new_figure(height, WIDTH * max(1.0, len(shown) / 2))
        for axes, (objective, shares) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
        ):
            names = sorted(shares, key=lambda name: shares[name])
            axes.barh(
                [without_math(text) for text in short_labels(names, 30).values()], [shares[name] for name in names]
            )
            axes.set(xlim=(0, 1), xlabel=f"share of what tells good trials\nin {objective} from the rest")
        figure.suptitle(without_math(short_labels([title], 80)[title]), fontsize=9)
        save(figure, target.with_suffix(""), ("png",))


def draw_pareto(
    rows: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]], objectives: Sequence[str], target: Path
) -> None:
    """Every trial by two objectives at a time, a colour and marker per method, the front ringed, as a PNG."""
    from matplotlib.lines import Line2D

    pairs = list(itertools.combinations(objectives, 2))
    style = marks(row["method"] for row in rows)
    with drawing():
        figure = new_figure(3.6, WIDTH * max(1.0, len(pairs) / 2))
        for axes, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            for method, mark in style.items():
                own = [row["values"] for row in rows if row["method"] == method]
                axes.scatter([v[x] for v in own], [v[y] for v in own], color=mark.color, marker=mark.marker, alpha=0.8)
            best = [row["values"] for row in front]
            axes.scatter([v[x] for v in best], [v[y] for v in best], s=110, facecolors="none", edgecolors="black")
            axes.set(xlabel=metric_label(x), ylabel=metric_label(y))
        ring = Line2D([], [], marker="o", markersize=10, markerfacecolor="none", color="black", linestyle="none")
        methods = {mark.short: legend_handle(mark, line=False) for mark in style.values()}
        legend_below(figure, {**methods, "Pareto front": ring})
        save(figure, target.with_suffix(""), ("png",))
